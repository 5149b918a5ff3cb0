"""What PIXIU published for FLARE (Xie et al. 2023, arXiv 2306.05443)."""

from __future__ import annotations

from collections.abc import Mapping

FLARE_MODELS = ("ChatGPT", "GPT-4", "BloombergGPT", "FinMA 7B", "FinMA 30B", "FinMA 7B-full")
"""Columns of the published table that are kept here."""

_Cells = tuple[float | None, ...]
FLARE_PUBLISHED: Mapping[tuple[str, str], _Cells] = {
    ("flare_fpb", "accuracy"): (0.78, 0.76, None, 0.86, 0.87, 0.87),
    ("flare_fpb", "weighted F1"): (0.78, 0.78, 0.51, 0.86, 0.88, 0.87),
    ("flare_fiqa", "weighted F1"): (None, None, 0.75, 0.84, 0.87, 0.79),
    ("flare_ner", "entity F1"): (0.77, 0.83, 0.61, 0.75, 0.62, 0.69),
    ("finqa", "exact match"): (0.58, 0.63, None, 0.06, 0.11, 0.04),
    ("convfinqa", "exact match"): (0.60, 0.76, 0.43, 0.25, 0.40, 0.20),
    ("bigdata22", "accuracy"): (0.53, 0.54, None, 0.48, 0.47, 0.49),
    ("bigdata22", "Matthews"): (-0.025, 0.03, None, 0.04, 0.04, 0.01),
    ("acl18", "accuracy"): (0.50, 0.52, None, 0.50, 0.49, 0.56),
    ("acl18", "Matthews"): (0.005, 0.02, None, 0.00, 0.00, 0.10),
    ("cikm18", "accuracy"): (0.55, 0.57, None, 0.56, 0.43, 0.53),
    ("cikm18", "Matthews"): (0.01, 0.02, None, -0.02, -0.05, -0.03),
}
"""(benchmark, metric) -> figures of FLARE_MODELS, from the table "Benchmark" in the README of The-FinAI/PIXIU of 2023.
None: not published there.
"""
