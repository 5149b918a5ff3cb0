"""The 19 data sets: catalogue, sources, checks, partitioning, encoding, and a small bundled synthetic sample."""
