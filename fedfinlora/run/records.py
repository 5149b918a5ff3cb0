"""The records of a run folder: one frozen dataclass for each kind of line or file, the only home of their form.

The order of the fields is the order of the keys. An `omitted` field has no key while it has its default.
docs/run-folder.md is made from this file (`python -m benchmarks.run_reference`). Older files lack newer keys, whose
fields then have their defaults; newer keys are left aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfinlora.files import read_json, read_lines, write_json
from fedfinlora.privacy.head import Head
from fedfinlora.run.evaluation import Scores
from fedfinlora.run.typed import Problems, from_json, omitted, readable, to_json

SCHEMA_VERSION = 1
"""Of all records together. It grows when a reader of the last version would misread a file, not when a key is added."""
ROUNDS_FILE, RESULT_FILE, CARD_FILE = "rounds.jsonl", "result.json", "privacy.json"


# --- rounds.jsonl ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BankPrivacy:
    """What one bank's privacy ledger says after its round. None is infinite: no guarantee."""

    epsilon_planned: float | None
    """Of this run, at its end."""
    epsilon_spent: float | None
    """Over all runs in the bank's ledger."""
    delta: float | None = None


@dataclass(frozen=True, slots=True)
class RoundPrivacy:
    """What the server's own ledger says under privacy=bank, the same for every bank. None is infinite: no guarantee."""

    epsilon_planned: float | None
    epsilon_spent: float | None
    delta: float | None = None
    left_out: int = omitted(0)
    """Banks whose budget is spent."""
    clip_norm: float = 0.0
    """Of the deltas of this round."""


@dataclass(frozen=True, slots=True)
class BankEntry:
    """What became of the request to one bank. Under a privacy mode of the bank's own, counts and losses do not leave it
    and are 0 or None.
    """

    bank: str
    status: str = "error"
    """ok, late, rejected (by the server's checks), or error."""
    code: str = ""
    """Why it is not ok, in a word (`fedfinlora.wire.messages`)."""
    reason: str = ""
    """The same as a sentence."""
    rows: int = 0
    """Rows trained on, counted once for each time."""
    skipped_rows: int = 0
    """Bad rows, and rows longer than the context window."""
    steps: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    """Tokens that carry loss."""
    train_loss: float | None = None
    """Mean over answer tokens, nats."""
    holdout_loss: float | None = None
    """Of the global adapter before training, on the bank's held-out rows."""
    holdout_rows: int = 0
    delta_norm: float | None = None
    """Euclidean length of the adapter delta."""
    bytes_up: int = 0
    bytes_down: int = 0
    privacy: BankPrivacy | None = omitted()
    ledger: Head | None = omitted()
    """Where the bank's privacy ledger ended: its number of lines and the hash of the last."""
    policy_sha256: str = omitted("")
    """Of the policy that the bank applied."""
    withheld: tuple[str, ...] = omitted(())
    """Names of figures that the bank's policy keeps at home."""

    @property
    def is_ok(self) -> bool:
        """Whether its delta is in the aggregate."""
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class BankTimings:
    """Wall-clock figures of one bank in one round. None: not measured."""

    reply_s: float | None = omitted()
    """From the start of the round until the reply was checked."""
    train_s: float | None = omitted()
    load_s: float | None = omitted()
    """Loading of model and rows."""
    tokens_per_s: float | None = omitted()


@dataclass(frozen=True, slots=True)
class RoundTimings:
    """Wall-clock figures of one round. Two runs of the same bytes differ in these alone."""

    total_s: float = 0.0
    """Without scoring."""
    train_s: float = 0.0
    aggregate_s: float = 0.0
    average_s: float = omitted(0.0)
    """Of `aggregate_s`: measuring what the average has lost."""
    banks: Mapping[str, BankTimings] = field(default_factory=dict)
    evaluate_s: float = omitted(0.0)
    validate_s: float = omitted(0.0)

    def of(self, bank: str) -> BankTimings:
        """Those of one bank; nothing measured where it took no part."""
        return self.banks.get(bank, BankTimings())


@dataclass(frozen=True, slots=True)
class Validation:
    """The scores of a round's adapter on public rows that no bank trains on."""

    score: float | None
    """Mean over the benchmarks."""
    scores: Scores = field(default_factory=dict)
    best: bool = False
    """Better than all rounds before."""


@dataclass(frozen=True, slots=True)
class Synchronisation:
    """strategy.sync=drift: whether a round ended with an average, and what it saved."""

    averaged: bool
    rounds: int
    """Since the last average, this one counted."""
    drift: float | None
    """Root mean square distance of the banks' adapters from the last global one, over its norm; None where no bank
    replied, or the global one is zero.
    """
    bytes_saved: int = 0
    """Of adapters and updates that were not sent, in both directions."""


@dataclass(frozen=True, slots=True)
class AverageLoss:
    """What averaging A and B apart has lost in a round, measured on the products B A (`server_app.average_loss`). None:
    nothing has moved, or one bank has no other to compare with.
    """

    banks: int
    """That were measured."""
    of: int
    """Banks whose updates were averaged."""
    bias: float | None = None
    """Norm of sum p_k (B_k - B̄)(A_k - Ā), over the norm of the exact change of B A, sum p_k B_k A_k - B A."""
    truncation: float | None = None
    """Distance of sum p_k B_k A_k from the nearest product of the adapter's rank, over the same norm."""
    cosine_mean: float | None = None
    """Between the banks' changes of B A on the ranks that both train, over all pairs."""
    cosine_min: float | None = None
    cosine_max: float | None = None
    path: float | None = None
    """Norm of the server's step over the sum of the norms of all banks' updates: 1/N where N equal banks agree."""


@dataclass(frozen=True, slots=True)
class FactorLength:
    """The bank that moved A and B furthest for what it changed of the product B A (`server_app.factor_length`)."""

    bank: str
    ratio: float
    """Length of its update over that of its product, over the round's median; far above 1: its factors can spoil a mean
    of factors.
    """


@dataclass(frozen=True, slots=True)
class RoundLine:
    """One round of training: a line of rounds.jsonl."""

    round: int
    """From 1."""
    status: str = "ok"
    noise_alone: bool = omitted(False)
    """privacy=bank, and no reply came: the server's step is noise."""
    banks: tuple[BankEntry, ...] = ()
    """By name."""
    train_loss: float | None = None
    """Mean over the banks, weighted by answer tokens."""
    holdout_loss: float | None = None
    """Mean over the banks, weighted by held-out rows."""
    update_norm: float | None = None
    """Euclidean length of the server's step."""
    average: AverageLoss | None = omitted()
    factors: FactorLength | None = omitted()
    """Of the banks whose updates were averaged; never under privacy=bank."""
    sync: Synchronisation | None = omitted()
    bytes_up: int = 0
    bytes_down: int = 0
    privacy: RoundPrivacy | None = omitted()
    adapter_sha256: str = omitted("")
    """Of the float32 vector of the global adapter after the round."""
    scores: Scores = field(default_factory=dict)
    """On test rows; empty where the round was not scored."""
    validation: Validation | None = None
    timings: RoundTimings = RoundTimings()

    def bank(self, name: str) -> BankEntry | None:
        """A bank's entry; None where it was not asked."""
        return next((entry for entry in self.banks if entry.bank == name), None)


def round_line(values: Any, where: str) -> RoundLine:
    """A line of rounds.jsonl, or of a checkpoint. UserError that names `where` and the field."""
    return from_json(RoundLine, values, where)


def read_rounds(run: Path) -> list[RoundLine]:
    """The closed rounds of a run folder, in order. UserError names the line that is damaged."""
    file = run / ROUNDS_FILE
    return [round_line(values, f"{file}, line {number}") for number, values in enumerate(read_lines(file), 1)]


def readable_rounds(run: Path, problems: Problems) -> list[RoundLine]:
    """The same for a report: what cannot be read is named in `problems` and skipped."""
    return list(readable(RoundLine, run / ROUNDS_FILE, problems))


# --- result.json ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WallTimes:
    """Seconds of a whole run."""

    total: float | None = None
    train: float = 0.0
    evaluate: float = 0.0
    aggregate: float = 0.0


@dataclass(frozen=True, slots=True)
class PrivacySummary:
    """The first lines of the run's privacy card."""

    mode: str
    unit: str = ""
    epsilon: float | None = None
    delta: float | None = None
    void: str = ""
    """Why there is no guarantee."""


@dataclass(frozen=True, slots=True)
class BankCard:
    """What one bank's privacy ledger says after a run. None is infinite, or that it has not trained privately."""

    rounds: int = 0
    """Private rounds in the aggregate."""
    refused: int = 0
    """Rounds that the bank refused for its rows, ledger or budget."""
    epsilon_planned: float | None = None
    epsilon_spent: float | None = None
    """Over all runs in the ledger."""
    delta: float | None = None


@dataclass(frozen=True, slots=True)
class PrivacyCard:
    """What a run guarantees, to whom, and what it has spent: privacy.json. The texts are those of
    `fedfinlora.run.privacy_card`.
    """

    schema_version: int = SCHEMA_VERSION
    mode: str = ""
    """example, dp_lora or bank; privacy.unit says of whom."""
    epsilon: float | None = None
    """The largest that any bank has spent over all runs; None where nothing is guaranteed, or nothing spent yet."""
    delta: float | None = None
    void: str = ""
    """Why there is no guarantee."""
    unit: str = ""
    adjacency: str = ""
    trusted: str = ""
    """Who must be."""
    mechanism: str = ""
    formula: str = ""
    sampling: str = ""
    clip_norm: float | None = None
    noise_multiplier: Any = None
    """The number, or that it follows from epsilon."""
    accountant: str = ""
    composition: str = ""
    banks: Mapping[str, BankCard] = field(default_factory=dict)
    leaves: Mapping[str, str] = field(default_factory=dict)
    """What leaves a bank -> what it reveals."""
    withheld: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    audit: str = ""
    """The sentence of the last audit in the run's chain."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: result.json."""

    schema_version: int = SCHEMA_VERSION
    mode: str = ""
    """federated, centralized, local or evaluate."""
    status: str = ""
    """completed, failed or stopped."""
    reason: str = ""
    run: str = ""
    """Name of the folder."""
    run_dir: str = ""
    model: str = ""
    quantization: str = ""
    peft: str = ""
    strategy: str = ""
    rounds: int | None = None
    """Done."""
    best_round: int | None = None
    """By the validation score."""
    validation_score: float | None = None
    final_round: int | None = None
    """The round whose adapter is adapters/final."""
    stopped_early_after_round: int | None = None
    banks: int | None = None
    seed: int | None = None
    config_sha256: str = ""
    rows_trained: int | None = None
    """None where banks keep their counts."""
    steps_trained: int | None = None
    tokens_trained: int | None = None
    wall_s: WallTimes = WallTimes()
    bytes_up: int | None = None
    bytes_down: int | None = None
    bytes_saved: int = omitted(0)
    """By rounds without an average (strategy.sync=drift), in both directions."""
    privacy: PrivacySummary | None = None
    synthetic: bool = False
    """The scores come from the bundled sample."""
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Label (base, final, …) -> benchmark key -> metrics."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Benchmark key -> why it was not scored."""
    finished_at: str = ""
    """Local time with its offset, ISO 8601."""


def write_result(run: Path, result: RunResult) -> None:
    """result.json. The time is that of the call where the result has none."""
    import time
    from dataclasses import replace

    write_json(
        run / RESULT_FILE,
        to_json(replace(result, finished_at=result.finished_at or time.strftime("%Y-%m-%dT%H:%M:%S%z"))),
    )


def read_result(run: Path, problems: Problems | None = None) -> RunResult:
    """result.json of a run folder (`fedfinlora.run.typed.from_json`)."""
    return from_json(
        RunResult, read_json(run / RESULT_FILE), str(run / RESULT_FILE) if problems is None else RESULT_FILE, problems
    )
