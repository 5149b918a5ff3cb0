"""The settings of the rows and of how simulated banks divide them: `dataset.*` and `partition.*`."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedfinlora.config.checks import require
from fedfinlora.errors import choose

SOURCES = ("sample", "finlora", "jsonl", "hub")
PARTITIONERS = ("iid", "dirichlet", "by_task", "by_issuer", "by_path")


@dataclass(frozen=True)
class ColumnsConfig:
    """How the keys of JSON objects, or the columns of tables, are called. A deployed bank's own names win over those
    that a server sends.
    """

    context: str = "context"
    """Of the whole prompt."""
    target: str = "target"
    """Of the answer."""
    task: str = "task"
    """Of the benchmark's key, where the file's name does not say it; rows need not have it."""
    issuer: str = "issuer"
    """Of whose filing, or whose customer's, a row is; rows need not have it."""
    messages: str = "messages"
    """Of a conversation, a list of {role, content}, which takes the place of context and target in rows that have
    neither.
    """

    def __post_init__(self) -> None:
        names = (self.context, self.target, self.task, self.issuer, self.messages)
        require(all(name.strip() for name in names), "dataset.columns: a column's name is empty.")
        twice = sorted({name for name in names if names.count(name) > 1})
        require(
            not twice, f"dataset.columns: {', '.join(twice)} is named for two things. Each needs a column of its own."
        )


@dataclass(frozen=True)
class DatasetConfig:
    """Which rows there are. Each bank trains on its part of the train rows; the evaluator alone reads the test rows."""

    source: str = "sample"
    """sample (bundled, synthetic), finlora (a folder in FinLoRA's layout), jsonl (a bank's own folder), hub (public
    sets on Hugging Face).
    """
    root: str = ""
    """The folder of `finlora` and `jsonl`, or of local copies ROOT/HUB_ID for `hub`. Relative to where the command is
    typed.
    """
    tasks: tuple[str, ...] = ()
    """Benchmark keys to train on; empty = every one that has train rows, FLARE's only where they are named."""
    max_rows_per_task: int = 0
    """A seeded sample of at most this many train rows of each task; 0 = all."""
    equalize_tasks: bool = False
    """Repeat the rows of small tasks up to max_rows_per_task (or the largest task), as FinLoRA repeats FPB, FiQA and
    TFNS.
    """
    on_bad_row: str = "skip"
    """skip (count it and continue) or stop (end with file:line and the reason). A bank with files of its own always
    skips: a refusal would reveal something of its rows.
    """
    chat_template: bool = False
    """Wrap prompts in the model's chat template. Off, as in FinLoRA: the row's context is the whole prompt."""
    answer_space: bool = False
    """Where a prompt ends in one space ("Answer: "), cut in front of it, so that the answer begins with the token
    " positive", as in running text, and not "positive". The text stays the same; off, as in FinLoRA. Not with
    chat_template.
    """
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def __post_init__(self) -> None:
        choose(self.source, SOURCES, "dataset.source")
        choose(self.on_bad_row, ("skip", "stop"), "dataset.on_bad_row")
        require(
            self.max_rows_per_task >= 0,
            f"dataset.max_rows_per_task must be 0 (all) or more, not {self.max_rows_per_task}.",
        )
        if self.source in ("finlora", "jsonl"):
            require(self.root != "", f"dataset.source={self.source} needs dataset.root=FOLDER.")


@dataclass(frozen=True)
class PartitionConfig:
    """How simulated banks divide the train rows. Deployed banks have their own rows and use none of this."""

    name: str = "iid"
    """iid; dirichlet (label skew; Hsu et al. 2019); by_task (each bank its own desks); by_issuer (a filer's rows stay
    together); by_path (a folder a bank).
    """
    alpha: float = 0.5
    """Concentration of dirichlet: small is unequal, large is even."""

    def __post_init__(self) -> None:
        choose(self.name, PARTITIONERS, "partition")
        require(self.alpha > 0, f"partition.alpha must be above 0, not {self.alpha}.")
