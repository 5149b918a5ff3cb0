"""The shared evaluator: generation, parsers, scoring and metrics, each on its own."""
