"""The quantized base model and its adapter: loading, PEFT methods, adapter algebra, attention over packed rows."""
