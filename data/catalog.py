"""The 19 FinLoRA benchmarks as data, the only home of their files and labels. Those of FLARE, in the same form, are in
`data.flare_catalog`.

Keys, file names, budgets and published scores are those of FinLoRA (Wang et al. 2025, arXiv 2505.19819, repository at
commit 7e1cf82). Adding a benchmark is one more `Benchmark(...)` below; `parser` and `scorer` are names that
`eval.scoring.parsers.PARSERS` and `eval.scoring.scorers.SCORERS` know. One without published scores is evaluated and
reported, and stays out of FinLoRA's overall average.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from data.benchmark import GROUPS, ON_REQUEST, PUBLISHED_COLUMNS, Benchmark, PublishedScore
from data.flare_catalog import FLARE
from fedfinlora.errors import ConfigError, choose

__all__ = [
    "BENCHMARKS",
    "GROUPS",
    "ON_REQUEST",
    "PUBLISHED_COLUMNS",
    "PUBLISHED_FEDERATED",
    "PUBLISHED_FEDERATED_TASKS",
    "PUBLISHED_OVERALL",
    "Benchmark",
    "PublishedScore",
    "merged_files",
    "select",
]


def _table(*cells: tuple[float | None, float | None]) -> dict[str, PublishedScore]:
    """Cells in the order of PUBLISHED_COLUMNS."""
    return {column: PublishedScore(*cell) for column, cell in zip(PUBLISHED_COLUMNS, cells, strict=True)}


_SENTIMENT = ("negative", "neutral", "positive")
_SENTIMENT_7 = (
    "strong negative",
    "moderately negative",
    "mildly negative",
    "neutral",
    "mildly positive",
    "moderately positive",
    "strong positive",
)
_SENTIMENT_TRAIN = "finlora_sentiment_train"
_GEMINI = "Gemini 2.0 FL, tuned"

_General = partial(
    Benchmark, group="general", budget_tokens=10, parser="label", scorer="exact", best_other_name=_GEMINI
)
_Exam = partial(
    Benchmark,
    group="certificate",
    budget_tokens=30,
    parser="choice",
    scorer="exact",
    licence="not released (copyright): bring your own",
)
_Tags = partial(
    Benchmark,
    group="reporting",
    budget_tokens=100,
    parser="tag_list",
    scorer="tag_list",
    best_other_name=_GEMINI,
)
_Filing = partial(
    Benchmark,
    group="analysis",
    merged_train_file="xbrl_extract_train",
    hub_id="wangd12/XBRL_analysis",
    source="XBRL Analysis (Wang et al. 2025): 10-K filings of Dow Jones 30 companies",
    licence="MIT",
)

_ENTRIES = (
    _General(
        key="fpb",
        title="FPB",
        merged_train_file=_SENTIMENT_TRAIN,
        labels=_SENTIMENT,
        published=_table(
            (68.73, 0.677), (85.64, 0.922), (84.16, 0.909), (81.93, 0.901), (82.84, 0.853), (87.62, 0.878)
        ),
        hub_id="takala/financial_phrasebank",
        source="Financial PhraseBank (Malo et al. 2014)",
        licence="CC BY-SA 3.0 (treat as non-commercial)",
    ),
    _General(
        key="fiqa",
        title="FiQA SA",
        merged_train_file=_SENTIMENT_TRAIN,
        labels=_SENTIMENT,
        published=_table(
            (46.55, 0.557), (81.28, 0.884), (78.30, 0.874), (78.72, 0.874), (73.19, 0.806), (88.09, 0.879)
        ),
        hub_id="pauri32/fiqa-2018",
        source="FiQA 2018, task 1 (Maia et al. 2018)",
        licence="MIT / public",
        notes="16 texts occur in both the train and the test part.",
    ),
    _General(
        key="tfns",
        title="TFNS",
        merged_train_file=_SENTIMENT_TRAIN,
        labels=_SENTIMENT,
        published=_table(
            (69.97, 0.683), (88.02, 0.932), (83.84, 0.910), (59.09, 0.702), (59.51, 0.655), (89.49, 0.896)
        ),
        hub_id="zeroshot/twitter-financial-news-sentiment",
        source="Twitter Financial News Sentiment",
        licence="MIT",
        notes=(
            'FinLoRA\'s labels are swapped: "positive" is really neutral and "neutral" is really bullish, in both '
            "parts."
        ),
    ),
    Benchmark(
        key="nwgi",
        title="NWGI",
        group="general",
        merged_train_file=_SENTIMENT_TRAIN,
        labels=_SENTIMENT_7,
        budget_tokens=10,
        parser="collapsed_sentiment",
        scorer="exact",
        published=_table(
            (43.86, 0.583), (54.16, 0.690), (49.96, 0.645), (19.57, 0.281), (35.80, 0.464), (66.61, 0.656)
        ),
        best_other_name="GPT-4o",
        hub_id="oliverwang15/news_with_gpt_instructions",
        source="News with GPT instructions (FinGPT)",
        licence="MIT",
        notes="Seven levels in the rows, scored collapsed to negative, neutral and positive.",
    ),
    _General(
        key="headline",
        title="Headline",
        labels=("Yes", "No"),
        published=_table(
            (45.34, 0.558), (84.66, 0.852), (88.03, 0.886), (64.93, 0.781), (71.75, 0.828), (97.32, 0.973)
        ),
        hub_id="FinGPT/fingpt-headline",
        source="Gold news headlines (Sinha and Khandait 2021)",
        licence="CC BY-SA 3.0",
    ),
    _General(
        key="ner",
        title="NER",
        labels=("person", "location", "organization"),
        published=_table(
            (48.89, 0.569), (98.05, 0.981), (96.63, 0.966), (71.59, 0.834), (95.92, 0.963), (97.29, 0.973)
        ),
        hub_id="FinGPT/fingpt-ner-cls",
        source="Financial agreements with named entities (Salinas Alvarado et al. 2015)",
        licence="CC BY 3.0",
        notes=(
            "About 100 distinct (sentence, entity) pairs stand behind the 3502 test rows: 17 prompt forms repeat each."
        ),
    ),
    _Exam(
        key="cfa_level1",
        title="CFA Level 1",
        labels=("A", "B", "C", "D"),
        published=_table(
            (13.33, 0.133), (86.67, 0.867), (87.78, 0.878), (87.78, 0.878), (87.78, 0.878), (63.33, 0.631)
        ),
        best_other_name="GPT-4o",
        source="CFA Level I mock questions",
    ),
    _Exam(
        key="cfa_level2",
        title="CFA Level 2",
        labels=("A", "B", "C"),
        published=_table(
            (19.48, 0.199), (88.31, 0.883), (83.12, 0.835), (90.91, 0.909), (92.21, 0.922), (56.67, 0.567)
        ),
        best_other_name="Gemini 2.0 FL",
        source="CFA Level II mock questions",
    ),
    _Exam(
        key="cfa_level3",
        title="CFA Level 3",
        labels=("A", "B", "C"),
        published=_table(
            (16.67, 0.179), (70.51, 0.705), (66.67, 0.675), (69.23, 0.697), (79.49, 0.795), (52.56, 0.538)
        ),
        best_other_name="Gemini 2.0 FL",
        source="CFA Level III mock questions",
    ),
    _Exam(
        key="cpa_reg",
        title="CPA REG",
        train_files=("regulations_train", "cpa_reg_train"),
        labels=("A", "B", "C", "D"),
        published=_table(
            (31.68, 0.317), (80.20, 0.802), (88.12, 0.885), (90.10, 0.901), (90.10, 0.901), (67.33, 0.667)
        ),
        best_other_name="GPT-4o",
        source="CPA REG practice questions",
    ),
    _Tags(
        key="xbrl_finer",
        title="FiNER",
        test_file="finer_test_batched",
        train_files=("finer_train_batched",),
        published=_table(
            (21.28, 0.232), (74.10, 0.759), (74.32, 0.760), (70.92, 0.732), (70.72, 0.724), (80.32, 0.802)
        ),
        hub_id="nlpaueb/finer-139",
        source="FiNER-139 (Loukas et al. 2022)",
        licence="CC BY-SA 4.0",
        notes="Four entities a row; scores are per tag.",
    ),
    _Tags(
        key="xbrl_fnxl",
        title="FNXL",
        test_file="fnxl_test_batched",
        train_files=("fnxl_train_batched",),
        published=_table((3.64, 0.045), (23.57, 0.250), (23.05, 0.253), (33.50, 0.311), (35.68, 0.348), (47.98, 0.438)),
        source="FNXL (Sharma et al. 2023)",
        licence="public, no licence file",
        notes="Four entities a row; scores are per tag. FinLoRA has no train part.",
    ),
    Benchmark(
        key="xbrl_term",
        title="XBRL Term",
        group="reporting",
        budget_tokens=50,
        parser="text",
        scorer="bertscore",
        published=_table((None, 0.574), (None, 0.599), (None, 0.606), (None, 0.606), (None, 0.630), (None, 0.666)),
        best_other_name=_GEMINI,
        source="XBRL terminology of XBRL International (Han et al. 2024)",
        licence="MIT",
        notes='6 train targets are the string "nan".',
    ),
    _Filing(
        key="xbrl_tags_extract",
        title="Tag Extraction",
        test_file="xbrl_extract_tags_test",
        train_files=("xbrl_extract_tags_train",),
        budget_tokens=20,
        parser="tag",
        scorer="exact",
        published=_table(
            (69.16, 0.739), (89.13, 0.886), (86.89, 0.872), (80.44, 0.896), (85.26, 0.879), (85.03, 0.907)
        ),
        best_other_name=_GEMINI,
        notes="A few targets are values instead of tags.",
    ),
    _Filing(
        key="xbrl_value_extract",
        title="Value Extraction",
        test_file="xbrl_extract_value_test",
        train_files=("xbrl_extract_value_train",),
        budget_tokens=20,
        parser="number",
        scorer="number",
        published=_table(
            (52.46, 0.565), (98.49, 0.986), (97.14, 0.974), (98.57, 0.988), (99.13, 0.992), (99.20, 0.992)
        ),
        best_other_name=_GEMINI,
    ),
    _Filing(
        key="xbrl_formula_extract",
        title="Formula Construction",
        test_file="xbrl_extract_formula_test",
        train_files=("xbrl_extract_formula_train",),
        budget_tokens=30,
        parser="formula",
        scorer="exact",
        published=_table(
            (12.92, 0.201), (77.61, 0.876), (89.34, 0.898), (88.02, 0.882), (89.46, 0.893), (79.76, 0.820)
        ),
        best_other_name="GPT-4o",
    ),
    _Filing(
        key="xbrl_formula_calc_extract",
        title="Formula Calculation",
        test_file="xbrl_extract_formula_calculations_test",
        train_files=("xbrl_extract_formula_calculations_train",),
        budget_tokens=30,
        parser="formula",
        scorer="formula_value",
        published=_table(
            (27.27, 0.317), (98.68, 0.990), (92.81, 0.947), (98.92, 0.993), (98.80, 0.988), (85.99, 0.868)
        ),
        best_other_name="DeepSeek V3",
    ),
    Benchmark(
        key="financebench",
        title="FinanceBench",
        group="analysis",
        budget_tokens=50,
        parser="text",
        scorer="bertscore",
        published=_table((None, 0.443), (None, 0.511), (None, 0.542), (None, 0.477), (None, 0.575), (None, 0.573)),
        best_other_name="DeepSeek V3",
        hub_id="PatronusAI/financebench",
        source="FinanceBench (Islam et al. 2023)",
        licence="CC BY-NC 4.0",
    ),
    Benchmark(
        key="formula",
        title="Financial Math",
        group="analysis",
        budget_tokens=50,
        parser="number",
        scorer="number",
        published=_table(
            (11.00, 0.136), (30.00, 0.332), (26.50, 0.307), (28.50, 0.317), (34.50, 0.370), (66.00, 0.785)
        ),
        best_other_name=_GEMINI,
        source="Financial Math (Han et al. 2024)",
        licence="MIT",
        notes="Some of FinLoRA's answers are wrong.",
    ),
)

BENCHMARKS: dict[str, Benchmark] = {entry.key: entry for entry in (*_ENTRIES, *FLARE)}
"""Key -> entry, in the order of the published table, FLARE's after it."""

PUBLISHED_OVERALL: dict[str, float] = {
    "base": 37.05,
    "lora_r8_8bit": 74.74,
    "qlora_r4_4bit": 74.29,
    "dora_r8_8bit": 69.53,
    "rslora_r8_8bit": 73.82,
    "best_other": 71.08,
}
"""Percent: the mean over the 19 of accuracy and of 100 x BERTScore F1. The best single other model is Gemini 2.0 FL,
tuned.
"""

PUBLISHED_FEDERATED_TASKS = (
    "xbrl_tags_extract",
    "xbrl_value_extract",
    "xbrl_formula_extract",
    "xbrl_formula_calc_extract",
)
PUBLISHED_FEDERATED: dict[str, dict[str, float]] = {
    "base": {"mean": 42.20},
    "centralized": {"mean": 90.98},
    "federated": {
        "mean": 47.62,
        "xbrl_tags_extract": 69.04,
        "xbrl_value_extract": 79.76,
        "xbrl_formula_extract": 13.10,
        "xbrl_formula_calc_extract": 28.57,
    },
}
"""Percent: FinLoRA's own federated run (4 nodes, FedAvg, the four XBRL analysis tasks), mean and by task where
published.
"""


def select(names: Sequence[str]) -> tuple[Benchmark, ...]:
    """The benchmarks that `names` stand for, in table order, each once.

    A name is a benchmark key, a key of GROUPS, `all` (without the groups of ON_REQUEST), or (alone) `none`. Raises
    ConfigError listing the valid names.
    """
    wanted: set[str] = set()
    for name in names:
        choose(name, ["all", "none", *GROUPS, *BENCHMARKS], "benchmark")
        if name == "none" and len(names) > 1:
            raise ConfigError("evaluation.benchmarks: `none` cannot be combined. Drop it or name nothing else.")
        wanted |= {
            key
            for key, entry in BENCHMARKS.items()
            if name in (key, entry.group) or (name == "all" and entry.group not in ON_REQUEST)
        }
    return tuple(entry for key, entry in BENCHMARKS.items() if key in wanted)


def merged_files() -> dict[str, tuple[str, ...]]:
    """Stem of each merged train file -> the keys of the benchmarks in it."""
    stems = dict.fromkeys(entry.merged_train_file for entry in BENCHMARKS.values() if entry.merged_train_file)
    return {stem: tuple(key for key, entry in BENCHMARKS.items() if entry.merged_train_file == stem) for stem in stems}
