"""The benchmarks of FLARE as data (PIXIU: Xie et al. 2023, arXiv 2306.05443).

Keys are names of their own, so that `fpb` stays FinLoRA's. Rows come in FLARE's form (`data.sources.flare`), answers
are judged by `eval.scoring.flare`. `evaluation.benchmarks=flare` names them all.
"""

from __future__ import annotations

from functools import partial

from data.benchmark import Benchmark

_Label = partial(Benchmark, group="flare", budget_tokens=10, parser="flare_label", scorer="flare_label")
_Stock = partial(
    _Label,
    labels=("Rise", "Fall"),
    notes="Rises or falls, from ten days of prices and the tweets on a stock.",
)
_Question = partial(
    Benchmark, group="flare", budget_tokens=20, parser="flare_number", scorer="flare_number", licence="MIT"
)

FLARE = (
    _Label(
        key="flare_fpb",
        title="FLARE FPB",
        reworded_from="fpb",
        labels=("positive", "neutral", "negative"),
        hub_id="TheFinAI/flare-fpb",
        source="Financial PhraseBank (Malo et al. 2014)",
        licence="CC BY-SA 3.0",
        notes="Without files of its own: FinLoRA's rows of FPB in FLARE's wording.",
    ),
    _Label(
        key="flare_fiqa",
        title="FLARE FiQA-SA",
        reworded_from="fiqa",
        labels=("negative", "positive", "neutral"),
        hub_id="TheFinAI/flare-fiqasa",
        source="FiQA 2018, task 1 (Maia et al. 2018)",
        licence="public",
        notes="Without files of its own: FinLoRA's rows of FiQA in FLARE's wording.",
    ),
    Benchmark(
        key="flare_ner",
        title="FLARE NER",
        group="flare",
        budget_tokens=128,
        parser="entities",
        scorer="entities",
        hub_id="TheFinAI/flare-ner",
        source="Financial agreements with named entities (Salinas Alvarado et al. 2015)",
        licence="CC BY-SA 3.0",
        notes="Ten prompts for each sentence, so rows are not independent and intervals are too narrow.",
    ),
    _Question(
        key="finqa",
        title="FinQA",
        hub_id="TheFinAI/flare-finqa",
        source="FinQA (Chen et al. 2021)",
    ),
    _Question(
        key="convfinqa",
        title="ConvFinQA",
        hub_id="TheFinAI/flare-convfinqa",
        source="ConvFinQA (Chen et al. 2022)",
        notes="A row a turn; earlier turns stand in the prompt with their right answers (FLARE: with the model's own).",
    ),
    _Stock(
        key="acl18",
        title="ACL18",
        hub_id="TheFinAI/flare-sm-acl",
        source="StockNet (Xu and Cohen 2018)",
        licence="MIT",
    ),
    _Stock(
        key="bigdata22",
        title="BigData22",
        hub_id="TheFinAI/flare-sm-bigdata",
        source="BigData22 (Soun et al. 2022)",
        licence="public",
    ),
    _Stock(
        key="cikm18",
        title="CIKM18",
        hub_id="TheFinAI/flare-sm-cikm",
        source="CIKM18 (Wu et al. 2018)",
        licence="public",
    ),
)
"""Natural language first, then numbers, then stock movement, as in FLARE's table. The hub's organisation was called
ChanceFocus before.
"""
