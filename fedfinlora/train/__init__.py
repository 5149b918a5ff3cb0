"""The training loop, the gradient of a step, the order of rows, and memory."""
