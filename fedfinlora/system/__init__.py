"""The machine: locks, processes, HTTP, where modules come from, and bytes that are on the disk."""
