"""The Flower ServerApp: round loop and strategies, thin."""
