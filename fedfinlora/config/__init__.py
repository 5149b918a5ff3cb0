"""The configuration: schema (the home of every default), values, and the words that a user types."""
