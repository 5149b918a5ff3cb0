"""The 19 data sets and FLARE's: catalogue, sources, checks, partitioning, encoding, a small synthetic sample."""
