"""Greedy decoding with a KV cache, stopping criteria, and label log-probabilities."""
