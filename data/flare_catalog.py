"""The benchmarks of FLARE as data, with its published figures (PIXIU: Xie et al. 2023, arXiv 2306.05443).

Keys are names of their own, so that `fpb` stays FinLoRA's. Rows come in FLARE's form (`data.sources.flare`), answers
are judged by `eval.scoring.flare`. `evaluation.benchmarks=flare` names them all.
"""

from __future__ import annotations

from collections.abc import Mapping

from data.benchmark import Benchmark

_MOVEMENT = ("Rise", "Fall")
_STOCKS = "Rises or falls, from ten days of prices and the tweets on a stock."

FLARE = (
    Benchmark(
        key="flare_fpb",
        title="FLARE FPB",
        group="flare",
        test_file="flare_fpb_test",
        train_files=("flare_fpb_train",),
        reworded_from="fpb",
        labels=("positive", "neutral", "negative"),
        budget_tokens=10,
        parser="flare_label",
        scorer="flare_label",
        hub_id="TheFinAI/flare-fpb",
        source="Financial PhraseBank (Malo et al. 2014)",
        licence="CC BY-SA 3.0",
        notes="Without files of its own: FinLoRA's rows of FPB in FLARE's wording.",
    ),
    Benchmark(
        key="flare_fiqa",
        title="FLARE FiQA-SA",
        group="flare",
        test_file="flare_fiqa_test",
        train_files=("flare_fiqa_train",),
        reworded_from="fiqa",
        labels=("negative", "positive", "neutral"),
        budget_tokens=10,
        parser="flare_label",
        scorer="flare_label",
        hub_id="TheFinAI/flare-fiqasa",
        source="FiQA 2018, task 1 (Maia et al. 2018)",
        licence="public",
        notes="Without files of its own: FinLoRA's rows of FiQA in FLARE's wording.",
    ),
    Benchmark(
        key="flare_ner",
        title="FLARE NER",
        group="flare",
        test_file="flare_ner_test",
        train_files=("flare_ner_train",),
        budget_tokens=128,
        parser="entities",
        scorer="entities",
        hub_id="TheFinAI/flare-ner",
        source="Financial agreements with named entities (Salinas Alvarado et al. 2015)",
        licence="CC BY-SA 3.0",
        notes="Ten prompts for each sentence, so rows are not independent and intervals are too narrow.",
    ),
    Benchmark(
        key="finqa",
        title="FinQA",
        group="flare",
        test_file="finqa_test",
        train_files=("finqa_train",),
        budget_tokens=20,
        parser="flare_number",
        scorer="flare_number",
        hub_id="TheFinAI/flare-finqa",
        source="FinQA (Chen et al. 2021)",
        licence="MIT",
    ),
    Benchmark(
        key="convfinqa",
        title="ConvFinQA",
        group="flare",
        test_file="convfinqa_test",
        train_files=("convfinqa_train",),
        budget_tokens=20,
        parser="flare_number",
        scorer="flare_number",
        hub_id="TheFinAI/flare-convfinqa",
        source="ConvFinQA (Chen et al. 2022)",
        licence="MIT",
        notes="A row a turn; earlier turns stand in the prompt with their right answers (FLARE: with the model's own).",
    ),
    Benchmark(
        key="acl18",
        title="ACL18",
        group="flare",
        test_file="acl18_test",
        train_files=("acl18_train",),
        labels=_MOVEMENT,
        budget_tokens=10,
        parser="flare_label",
        scorer="flare_label",
        hub_id="TheFinAI/flare-sm-acl",
        source="StockNet (Xu and Cohen 2018)",
        licence="MIT",
        notes=_STOCKS,
    ),
    Benchmark(
        key="bigdata22",
        title="BigData22",
        group="flare",
        test_file="bigdata22_test",
        train_files=("bigdata22_train",),
        labels=_MOVEMENT,
        budget_tokens=10,
        parser="flare_label",
        scorer="flare_label",
        hub_id="TheFinAI/flare-sm-bigdata",
        source="BigData22 (Soun et al. 2022)",
        licence="public",
        notes=_STOCKS,
    ),
    Benchmark(
        key="cikm18",
        title="CIKM18",
        group="flare",
        test_file="cikm18_test",
        train_files=("cikm18_train",),
        labels=_MOVEMENT,
        budget_tokens=10,
        parser="flare_label",
        scorer="flare_label",
        hub_id="TheFinAI/flare-sm-cikm",
        source="CIKM18 (Wu et al. 2018)",
        licence="public",
        notes=_STOCKS,
    ),
)
"""Natural language first, then numbers, then stock movement, as in FLARE's table. The hub's organisation was called
ChanceFocus before.
"""

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
