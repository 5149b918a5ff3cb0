"""The Flower ClientApp: one bank, thin."""
