"""Who said what in a run, and how that is verified: signatures, the chain of hashes, signed adapters."""
