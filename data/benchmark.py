"""What a benchmark is: the form of an entry of `data.catalog`, and the columns of FinLoRA's published table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

GROUPS: dict[str, str] = {
    "general": "General financial tasks",
    "certificate": "Financial certificates",
    "reporting": "Financial reporting",
    "analysis": "Financial statement analysis",
    "flare": "FLARE",
}
"""Group key -> title, in the order of the published table, FLARE after it."""

ON_REQUEST = ("flare",)
"""Groups that `all` and an empty dataset.tasks leave out: their benchmarks are scored and trained on where they, or
the group, are named.
"""

PUBLISHED_COLUMNS: dict[str, str] = {
    "base": "Llama 3.1 8B Instruct, untouched",
    "lora_r8_8bit": "LoRA, rank 8, 8-bit",
    "qlora_r4_4bit": "QLoRA, rank 4, 4-bit",
    "dora_r8_8bit": "DoRA, rank 8, 8-bit",
    "rslora_r8_8bit": "rsLoRA, rank 8, 8-bit",
    "best_other": "Best other model",
}
"""Column key -> title of the published table."""


class PublishedScore(NamedTuple):
    """One cell of the published table."""

    accuracy: float | None
    """Percent, 0 to 100; None where FinLoRA reports BERTScore only, or nothing."""
    f1: float | None
    """Fraction, 0 to 1: weighted F1 by FinLoRA's rule, or BERTScore F1."""


def _not_published() -> dict[str, PublishedScore]:
    return {column: PublishedScore(None, None) for column in PUBLISHED_COLUMNS}


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: which rows, how a model answers them, how the answer is read and scored."""

    key: str
    """FinLoRA's data set key, or FLARE's; also the task name of training rows."""
    title: str
    group: str
    """A key of GROUPS."""
    budget_tokens: int
    """Most new tokens of an answer (FinLoRA's max_new_tokens)."""
    parser: str
    """How an answer is read: a name in eval.scoring.parsers.PARSERS."""
    scorer: str
    """How it is judged: a name in eval.scoring.scorers.SCORERS."""
    source: str
    """Where the rows come from."""
    licence: str
    """As stated by the source."""
    test_file: str = ""
    """File under `test/` in FinLoRA's layout, without `.jsonl`; "" becomes KEY_test."""
    train_files: tuple[str, ...] = ()
    """Files under `train/` that hold only this benchmark's rows, without `.jsonl`; every one that exists is read. ()
    becomes (KEY_train,).
    """
    labels: tuple[str, ...] = ()
    """The closed set of targets; empty for open answers."""
    published: Mapping[str, PublishedScore] = field(default_factory=_not_published)
    """Column of PUBLISHED_COLUMNS -> score of Llama 3.1 8B Instruct (or of the best other model)."""
    best_other_name: str = ""
    """Which model the column best_other has."""
    merged_train_file: str = ""
    """File under `train/` that holds the rows of several benchmarks (`data.merged` separates them)."""
    hub_id: str = ""
    """Public data set on the Hugging Face hub; empty where there is none."""
    reworded_from: str = ""
    """Key of the benchmark whose rows this one asks in FLARE's wording, where it has no file of its own
    (`data.sources.flare.reworded`).
    """
    notes: str = ""
    """Known flaws of the data, shown next to its scores."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "test_file", self.test_file or f"{self.key}_test")
        object.__setattr__(self, "train_files", self.train_files or (f"{self.key}_train",))

    @property
    def is_published(self) -> bool:
        """Whether it is one of those that FinLoRA's overall average is made of."""
        return any(score.f1 is not None for score in self.published.values())
