"""Several adapters served on one base model: mixed batches, a decoding loop that rows join and leave, and HTTP."""
