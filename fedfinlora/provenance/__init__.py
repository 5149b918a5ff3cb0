"""Who said what in a run, and the proof of it: signatures, the chain of hashes, signed adapters."""
