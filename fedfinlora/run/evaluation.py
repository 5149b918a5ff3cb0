"""The records of eval/<label>/: one `RowRecord` a line of <benchmark>.jsonl, and `Evaluation`, which is metrics.json.

A record holds all that the metrics need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from fedfinlora.files import read_json, read_lines
from fedfinlora.run.typed import OMITTED, NotOfType, Problems, converter, from_json, omitted, plain, readable

METRICS_FILE = "metrics.json"
INTERVAL = "_ci95"
"""Ends the key of an estimate's 95 % interval."""


@dataclass(frozen=True, slots=True)
class RowRecord:
    """One evaluated row. What was not measured is None: all about the answer where only labels were compared."""

    id: str
    prompt_sha256: str
    target: str
    output: str | None = None
    """The generated text, without the prompt; "" where the prompt does not fit the context window."""
    parsed: Any = None
    """The canonical answer: a text, a number, or a list of tags; None is unparsed."""
    correct: bool | None = None
    """By the strict rules; None for BERTScore sets. Of tag lists: every tag is right."""
    finlora_correct: bool | None = None
    """By FinLoRA's rules, likewise."""
    finlora_ambiguous: bool | None = None
    """FinLoRA's own verdict may depend on the hash seed."""
    exact: bool | None = omitted()
    """Numbers: equal without tolerance."""
    value_correct: bool | None = omitted()
    """Formulas: right, or another formula of the same value."""
    tags: int | None = omitted()
    """Tag lists: how many the target has."""
    tags_correct: int | None = omitted()
    finlora_tags_correct: int | None = omitted()
    bertscore_precision: float | None = omitted()
    bertscore_recall: float | None = omitted()
    bertscore_f1: float | None = omitted()
    bertscore_model: str | None = omitted()
    bertscore_layer: int | None = omitted()
    too_long: bool = omitted(False)
    """The prompt does not fit the context window; the answer counts as empty."""
    stopped: str | None = omitted()
    """Why the text ended: end, settled (early stopping), budget, too_long, or a server's own word."""
    api: str | None = omitted()
    """Of a remote model: chat or completions."""
    served_model: str | None = omitted()
    """The name that the server gave with the answer."""
    label_logprobs: Mapping[str, float] | None = omitted()
    """Label -> log-probability, nats."""
    label_choice: str | None = omitted()
    """The most probable label, as answers are read."""
    measures: Mapping[str, float] | None = omitted()
    """Further values that a scorer averages over rows."""
    reference: str | None = omitted()
    """What the answer is judged by besides the target: of FLARE's NER the words of the text, and their tags."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of a sample of rows with its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of a benchmark. A figure whose denominator is 0 is None."""

    label: str
    support: int = 0
    """Rows of the class."""
    answered: int = 0
    """Answers that name it."""
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """counts[i][j]: rows whose truth is labels[i] and whose answer is answers[j]."""

    labels: tuple[str, ...]
    answers: tuple[str, ...]
    """The labels, then "other" (an answer outside the label set) where there is one, then "unparsed"."""
    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        shape = [len(row) for row in self.counts]
        if shape != [len(self.answers)] * len(self.labels):
            raise ValueError("its shape is not labels x answers")
        if any(number < 0 for row in self.counts for number in row):
            raise ValueError("a count is negative")

    def share(self, row: int, column: int) -> float:
        """The part of a class's rows that got an answer; 0 for a class without rows."""
        total = sum(self.counts[row])
        return self.counts[row][column] / total if total else 0.0


@dataclass(frozen=True, slots=True)
class DecodingCheck:
    """How many rows plain decoding one by one answered again, and how many of them otherwise."""

    rows_checked: int
    rows_differ: int


@dataclass(frozen=True, slots=True)
class BenchmarkMetrics:
    """The metrics of one benchmark. In JSON each estimate is two keys, NAME and NAME_ci95, after `unparsed`.

    A family of estimates that was not measured is absent: `accuracy`, `f1_macro`, … (strict), `finlora_…`, `labels_…`,
    `bertscore_…`.
    """

    n: int = 0
    """Answers scored; of tag lists, tags."""
    unparsed: int | None = omitted()
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """Fractions from 0 to 1, correlations from -1."""
    bertscore_model: str | None = omitted()
    bertscore_layer: int | None = omitted()
    finlora_ambiguous: int | None = omitted()
    classes: tuple[ClassRow, ...] | None = omitted()
    confusion: ConfusionMatrix | None = omitted()
    relative_tolerance: float | None = omitted()
    rows: int | None = omitted()
    """Of tag lists: rows, where `n` counts tags."""
    too_long: int | None = omitted()
    """Prompts longer than the context window."""
    decoding: DecodingCheck | None = omitted()

    def value(self, name: str) -> float | None:
        """An estimate's value; None where it was not measured or is undefined."""
        found = self.estimates.get(name)
        return found.value if found else None

    def bounds(self, name: str) -> tuple[float | None, float | None]:
        """An estimate's 95 % interval; (None, None) where there is none."""
        found = self.estimates.get(name)
        return (found.low, found.high) if found else (None, None)

    @property
    def is_bertscored(self) -> bool:
        """Whether answers were compared with their targets by BERTScore."""
        return "bertscore_f1" in self.estimates

    def as_json(self) -> dict[str, Any]:
        """The object of metrics.json."""
        found: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "estimates":
                for name, estimate in self.estimates.items():
                    known = estimate.low is not None and estimate.high is not None
                    found |= {
                        name: estimate.value,
                        f"{name}{INTERVAL}": [estimate.low, estimate.high] if known else None,
                    }
            elif value is not None:
                found[item.name] = plain(value)
        return found

    @classmethod
    def parse(cls, value: Any, name: str, problems: Problems) -> BenchmarkMetrics:
        """A number under a key that is no field is an estimate."""
        if not isinstance(value, Mapping):
            raise NotOfType(f"{name or 'it'} is no object")
        known: dict[str, Any] = {}
        estimates: dict[str, Estimate] = {}
        for key, item in value.items():
            where = f"{name}.{key}" if name else str(key)
            try:
                if key in _FIELDS:
                    known[key] = _FIELDS[key](item, where, problems)
                elif not str(key).endswith(INTERVAL) and not isinstance(item, list | Mapping | str):
                    number = _NUMBER(item, where, problems)
                    estimates[str(key)] = Estimate(number, *_interval(value.get(f"{key}{INTERVAL}"), where, problems))
            except NotOfType as wrong:
                problems.append(str(wrong))
        return cls(estimates=estimates, **known)


_NUMBER, _NUMBERS = converter(float | None), converter(tuple[float, ...] | None)
_FIELDS = {name: converter(kind) for name, kind in get_type_hints(BenchmarkMetrics).items() if name != "estimates"}


def _interval(value: Any, where: str, problems: Problems) -> tuple[float, ...]:
    """(low, high), or () where there is none."""
    found = _NUMBERS(value, f"{where}{INTERVAL}", problems)
    return found if found and len(found) == 2 else ()


Scores = Mapping[str, BenchmarkMetrics]
"""Benchmark key -> its metrics."""


@dataclass(frozen=True, slots=True)
class GroupMean:
    """The mean of a group of benchmarks, strict and by FinLoRA's rules; None where no benchmark of it was scored."""

    score: float | None = None
    score_ci95: tuple[float, ...] | None = None
    finlora_score: float | None = None
    finlora_score_ci95: tuple[float, ...] | None = None
    benchmarks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Overall:
    """FinLoRA's overall average in percent over its benchmarks that were scored."""

    value: float | None = None
    value_ci95: tuple[float, ...] | None = None
    unit: str = "percent"
    missing: tuple[str, ...] = ()
    comparable: bool = False
    """Equal to the published definition: none is missing, and BERTScore ran on the published encoder."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one benchmark cost."""

    rows: int = 0
    reused: int = 0
    """Answers that were known from earlier."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of the prompts, those that were read (without cached prefixes), and those written."""

    prompts: int = 0
    read: int = 0
    written: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of one model: eval/<label>/metrics.json."""

    scores: Scores = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Benchmark key -> wall time."""
    work: Mapping[str, Work] = field(default_factory=dict)
    label: str = ""
    synthetic: bool = False
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Benchmark key -> why it was not scored."""
    groups: Mapping[str, GroupMean] = field(default_factory=dict)
    finlora_overall: Overall = Overall()
    model: Mapping[str, Any] = field(default_factory=dict)
    """What identifies the model: base, quantization, adapter; or a server's address."""
    mode: str = ""
    """generate, labels or both."""
    shots: int = 0
    """Solved examples in front of each prompt."""
    shortages: Mapping[str, str] = field(default_factory=dict)
    """Benchmark key -> why it has fewer."""
    reused: int = 0
    rows_per_s: float | None = None
    """Of the rows that were asked; None where all were known."""
    peak_cache_gib: float | None = None
    """Of the KV cache."""
    tokens: TokenCounts | None = None
    server: Mapping[str, Any] = field(default_factory=dict, metadata=OMITTED)
    """Of a remote model: how it was asked and how it behaved."""


def read_evaluation(run: Path, label: str, problems: Problems | None = None) -> Evaluation:
    """eval/<label>/metrics.json of a run folder (`fedfinlora.run.typed.from_json`)."""
    file = run / "eval" / label / METRICS_FILE
    return from_json(
        Evaluation, read_json(file), str(file) if problems is None else f"eval/{label}/{METRICS_FILE}", problems
    )


def read_records(file: Path) -> list[RowRecord]:
    """The rows of one evaluated benchmark. UserError names the line that is damaged."""
    return [from_json(RowRecord, values, f"{file}, line {number}") for number, values in enumerate(read_lines(file), 1)]


def readable_records(file: Path) -> Iterator[RowRecord]:
    """The same for a report; lines that are no record are skipped."""
    return readable(RowRecord, file, [])
