"""The bundled sample: original, synthetic rows for all 19 benchmarks and FLARE's (`python -m data.sample.generate`)."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
"""Holds `train/*.jsonl` and `test/*.jsonl` in FinLoRA's split layout."""
