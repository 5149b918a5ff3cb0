"""Was this answer right: parsers of generated text, scorers, and the row score."""
