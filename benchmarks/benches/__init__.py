"""The benches of `bench NAME`: each measures one thing next to its reference, in one process run."""
