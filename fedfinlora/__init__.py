"""Banks fine-tune one quantized Llama together: configuration, adapter algebra, models, training, aggregation, run folder, report."""

__version__ = "0.1.0"
