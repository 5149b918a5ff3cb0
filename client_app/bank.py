"""One bank's part of a round: its rows, its optimiser's memory, the local training, the delta.

Flower may start a new process for each message or serve several banks from one, so nothing of a bank lives in the process but
caches: Adam's moments are kept on the bank's own disk, by round, and a repeated round starts from the same moments again.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from client_app.promise import make_promise
from data.catalog import select
from data.encode import encode_rows
from data.partition import hold_out, partition
from data.rows import Row
from data.sources import load_rows
from data.validation import set_aside
from fedfinlora.adapter import Vector, read_adapter, write_adapter
from fedfinlora.config import Config, DatasetConfig, PartitionConfig, PrivacyConfig
from fedfinlora.deployment.history import Event, history_file, record, rounds_today
from fedfinlora.deployment.policy import Policy, Work, broken_rule, read_settings
from fedfinlora.errors import UserError
from fedfinlora.logs import about
from fedfinlora.model_files import model_sha256
from fedfinlora.models import Session, get_session
from fedfinlora.packing import Example
from fedfinlora.privacy.ledger import fingerprint, ledger_root
from fedfinlora.runfolder import source_fingerprint, write_bytes
from fedfinlora.seeds import generator
from fedfinlora.training import OptimizerState, mean_loss, stretch_of_round, total_steps, train
from fedfinlora.wire import ALWAYS_TOLD, REVEALABLE, BankError, Figures, TrainRequest

log = logging.getLogger("fedfinlora.bank")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SetAside = tuple[tuple[str, ...], int]
"""(Benchmarks, rows of each) of the public validation rows."""
KEPT_STATES = 4
"""The server keeps two checkpoints, so it may ask for the round after the older of them again."""


@dataclass(frozen=True)
class BankFacts:
    """What the bank itself decides, from its Flower node config; it wins over what the server asks for."""

    name: str
    index: int
    """Which part of a simulated data set is this bank's."""
    banks: int
    """In how many parts a simulated data set is divided; 0 = the bank has its own rows under `data_path`."""
    data_path: str
    state_folder: Path
    ledger_folder: Path = field(default_factory=ledger_root)
    """Where what was spent on the bank's rows is written, for all runs together."""
    budget_epsilon: float = 0.0
    """The bank's own limit over all runs; 0 = that of the run, if it has one."""
    policy: Policy | None = None
    """What may run here; None = anything."""
    policy_sha256: str = ""

    @property
    def reveal(self) -> tuple[str, ...]:
        """The figures that may leave with a delta, besides those that always do."""
        return self.policy.reveal if self.policy else REVEALABLE

    @property
    def history_file(self) -> Path:
        """Where a bank with a policy writes down what ran."""
        return history_file(self.state_folder, self.name)


@dataclass(frozen=True)
class BankRows:
    """A bank's rows, ready to train on."""

    train: tuple[Example, ...]
    holdout: tuple[Example, ...]
    skipped: int
    """Bad rows in the files (in a simulation, those of all banks) and rows too long for the context window."""
    units: tuple[tuple[int, ...], ...] = ()
    """Places in `train` of each privacy unit's examples; () without privacy."""
    data_sets: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint -> task of the data sets whose ledgers a private round is written to."""


def bank_facts(node_config: Mapping[str, Any]) -> BankFacts:
    """Read the node config: partition-id and num-partitions (Flower's simulation), or bank, data-path, state-dir, ledger-dir and
    budget-epsilon. `settings`, a bank.yaml, takes the place of bank, data-path and budget-epsilon and brings the policy.
    """
    policy, policy_sha256 = None, ""
    if "settings" in node_config:
        try:
            own, policy_sha256 = read_settings(Path(str(node_config["settings"])))
        except UserError as error:
            raise BankError("config", str(error)) from error
        policy = own.policy
        node_config = {**node_config, "bank": own.name, "data-path": own.data, "budget-epsilon": own.budget_epsilon}
    try:
        index, parts = int(node_config.get("partition-id", 0)), int(node_config.get("num-partitions", 1))
    except (TypeError, ValueError) as error:
        raise BankError("config", "the node config's partition-id and num-partitions must be whole numbers") from error
    data_path = str(node_config.get("data-path", ""))
    name = str(node_config.get("bank", f"bank-{index}"))
    if not NAME.fullmatch(name):
        raise BankError("config", f"the node config's bank={name!r} is not a plain name of letters, digits, '.', '_' and '-'")
    banks = 0 if data_path else parts
    home = Path.home() / ".fedfinlora"
    state = node_config.get("state-dir", os.environ.get("FEDFINLORA_BANK_STATE") or home / "banks")
    ledger = node_config.get("ledger-dir", ledger_root())
    try:
        budget = float(node_config.get("budget-epsilon", 0.0))
    except (TypeError, ValueError) as error:
        raise BankError("config", "the node config's budget-epsilon must be a number") from error
    if not budget >= 0:
        raise BankError("config", "the node config's budget-epsilon must be 0 (none) or more")
    state, ledger = Path(str(state)).expanduser(), Path(str(ledger)).expanduser()
    return BankFacts(name, index, banks, data_path, state, ledger, budget, policy, policy_sha256)


def bank_dataset(dataset: DatasetConfig, facts: BankFacts) -> DatasetConfig:
    """The data set that this bank reads: its own folder if it has one, whatever the server named."""
    if not facts.data_path:
        return dataset
    path = Path(facts.data_path).expanduser()
    source = "finlora" if (path / "train").is_dir() else "jsonl"
    return replace(dataset, source=source, root=str(path.absolute()))


def divide(config: Config, banks: int) -> list[list[Row]]:
    """The train rows of each simulated bank, after public validation rows are set aside."""
    return [list(part) for part in _divided_for(config, banks).parts]


def bad_train_rows(config: Config, banks: int) -> int:
    """How many lines of the files that `divide` reads are no rows."""
    return _divided_for(config, banks).bad_rows


class _Divided(NamedTuple):
    parts: tuple[tuple[Row, ...], ...]
    bad_rows: int


def _divided_for(config: Config, banks: int) -> _Divided:
    return _divided(config.dataset, config.partition, banks, config.seed, _set_aside_by(config))


def _set_aside_by(config: Config) -> _SetAside:
    """What decides which rows are set aside; the same for all configurations that set none aside."""
    count = config.evaluation.validation_rows
    return (tuple(benchmark.key for benchmark in select(config.evaluation.benchmarks)), count) if count else ((), 0)


@lru_cache(maxsize=2)
def _divided(dataset: DatasetConfig, how: PartitionConfig, banks: int, seed: int, validation: _SetAside) -> _Divided:
    loaded = load_rows(dataset, "train", dataset.tasks, seed)
    rest, _ = set_aside(loaded.rows, *validation, seed)
    return _Divided(tuple(tuple(part) for part in partition(rest, banks, how, seed)), len(loaded.bad_rows))


def _own_rows(config: Config, facts: BankFacts) -> tuple[list[Row], int]:
    """(rows, bad rows) of one bank: its part of the simulated set, or all of the files in its own folder, which nobody else reads."""
    if facts.banks:
        parts, bad_rows = _divided_for(config, facts.banks)
        return list(parts[facts.index]), bad_rows
    dataset = bank_dataset(config.dataset, facts)
    loaded = load_rows(dataset, "train", dataset.tasks, config.seed)
    return list(loaded.rows), len(loaded.bad_rows)


def split_rows(rows: list[Row], config: Config, bank: str) -> tuple[list[Row], list[Row]]:
    """(train rows, held-out rows) of one bank, after train.max_rows."""
    limit = config.train.max_rows
    if limit and len(rows) > limit:
        chosen = generator(config.seed, "max rows", bank).permutation(len(rows))[:limit]
        rows = [rows[index] for index in sorted(chosen.tolist())]
    if not config.train.holdout_max_rows or not config.train.holdout_fraction:
        return rows, []
    kept, held_out = hold_out(rows, config.train.holdout_fraction, config.train.holdout_max_rows, config.seed, bank)
    return list(kept), list(held_out)


_rows: dict[tuple[Any, ...], BankRows] = {}


def bank_rows(config: Config, facts: BankFacts, tokenizer: Any) -> BankRows:
    """Load, divide, hold out and tokenize; kept in memory by everything that it depends on."""
    key = (
        config.dataset,
        config.partition,
        config.train,
        config.model,
        config.privacy,
        config.seed,
        _set_aside_by(config),
        facts,
    )
    if key not in _rows:
        try:
            rows, bad = _own_rows(config, facts)
            kept, held_out = split_rows(rows, config, facts.name)
            how = (config.model.context_tokens, config.dataset.on_bad_row, config.dataset.chat_template)
            train_rows, holdout_rows = encode_rows(tokenizer, kept, *how), encode_rows(tokenizer, held_out, *how)
        except UserError as error:
            raise BankError("data", str(error)) from error
        if not train_rows.examples:
            raise BankError("data", f"{facts.name} has no usable train rows")
        skipped = bad + len(train_rows.too_long) + len(holdout_rows.too_long)
        if skipped:
            log.warning("%s: %d rows skipped; `python -m fedfinlora data check` names them", facts.name, skipped)
        found = BankRows(train_rows.examples, holdout_rows.examples, skipped)
        if config.privacy.in_the_bank:
            found = replace(found, units=units_of(train_rows.rows, config.privacy), data_sets=data_sets_of(config, facts, rows))
        _rows[key] = found
    return _rows[key]


def units_of(rows: Sequence[Row], privacy: PrivacyConfig) -> tuple[tuple[int, ...], ...]:
    """Places of each unit's rows: every row its own, or those with the same issuer together."""
    if privacy.unit == "example":
        return tuple((place,) for place in range(len(rows)))
    without = sum(not row.issuer for row in rows)
    if without:
        raise BankError(
            "privacy", f"privacy.unit=customer: {without} of {len(rows)} rows have no `issuer` to tell customers by"
        )
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.issuer.casefold(), []).append(place)
    return tuple(map(tuple, places.values()))


def data_sets_of(config: Config, facts: BankFacts, rows: Sequence[Row]) -> dict[str, str]:
    """Fingerprint -> task of every data set that `rows` come from. A bank's own files count whole, whatever part of them a run samples."""
    tasks = {row.task for row in rows}
    if not facts.banks:
        dataset = replace(bank_dataset(config.dataset, facts), max_rows_per_task=0, on_bad_row="skip")
        rows = load_rows(dataset, "train", tuple(sorted(tasks)), config.seed).rows
    return {fingerprint([(row.prompt, row.target) for row in rows if row.task == task]): task for task in sorted(tasks)}


def train_round(request: TrainRequest, facts: BankFacts) -> tuple[Vector, str, Figures]:
    """Train the received global adapter on this bank's rows. Returns the delta, (size,) float32, its layout id and the figures.

    A bank with a policy writes each request and what became of it into its history.
    """
    with about(run=request.run, round=request.round, bank=facts.name):
        return _noted_round(request, facts)


def _noted_round(request: TrainRequest, facts: BankFacts) -> tuple[Vector, str, Figures]:
    """The round and its history."""
    if facts.policy is None:
        return _train_round(request, facts)[:3]

    def note(outcome: str, **values: Any) -> None:
        privacy = request.config.privacy.mode
        common: dict[str, Any] = {
            "privacy": privacy,
            "policy_sha256": facts.policy_sha256,
            "bytes_received": request.adapter.nbytes,
        }
        event = Event(request.run, request.round, outcome, **common, **values)
        try:
            record(facts.history_file, event)
        except UserError as error:
            raise BankError("disk", str(error)) from error

    try:
        check_policy(request, facts)
        note("begun")
        delta, layout_id, figures, rows = _train_round(request, facts)
    except BankError as error:
        note("refused" if error.code.startswith("policy-") or error.code == "budget" else "failed", code=error.code)
        raise
    except BaseException:
        note("failed", code="internal")
        raise
    leave = (*ALWAYS_TOLD, *facts.reveal)
    told = tuple(name for name, value in asdict(figures).items() if name in leave and value and not math.isnan(value))
    spent = figures.epsilon_spent if math.isfinite(figures.epsilon_spent) else None
    note("sent", rows=rows, steps=figures.steps, bytes_sent=delta.nbytes, figures=told, epsilon_spent=spent)
    return delta, layout_id, figures


def check_policy(request: TrainRequest, facts: BankFacts, steps: int = 0, rows: int = 0) -> None:
    """BankError with the rule's name where the bank's policy does not allow the request. Steps and rows are 0 as long as they are not known."""
    if facts.policy is None:
        return
    now, today = datetime.now(), rounds_today(facts.history_file)
    # Once begun, this round is among those of today.
    begun_before = max(0, today - 1) if steps else today
    config = request.config
    work = Work(config, steps, rows, begun_before, now, lambda: model_sha256(config.model))
    try:
        rule = broken_rule(facts.policy, work)
    except UserError as error:
        raise BankError("model", str(error)) from error
    if rule:
        raise BankError(
            f"policy-{rule}", f"{facts.name}: round {request.round} of {request.run} is against the policy's rule {rule}"
        )


def _train_round(request: TrainRequest, facts: BankFacts) -> tuple[Vector, str, Figures, int]:
    """The round itself; the last value is the number of rows trained on, whatever the figures say."""
    if request.source_sha256 != source_fingerprint():
        raise BankError("source", "the server's source hash differs from this bank's")
    config = request.config
    started = time.monotonic()
    try:
        session = get_session(config)
    except UserError as error:
        raise BankError("model", str(error)) from error
    if request.layout_id != session.layout.id or request.adapter.shape != (session.layout.size,):
        raise BankError("layout", f"layout {request.layout_id} received, {session.layout.id} here")
    load_s = time.monotonic() - started
    rows = bank_rows(config, facts, session.tokenizer)
    holdout_loss = _holdout_loss(request, rows, session)
    write_adapter(session.model, request.adapter)
    folder = facts.state_folder / request.run / facts.name
    keeps_moments = config.train.optimizer_state == "keep" and config.train.optimizer == "adamw"
    optimizer = _load_state(folder, request.round) if keeps_moments else None
    steps = total_steps(len(rows.train), config.num_server_rounds, config.train)
    stretch = stretch_of_round(request.round, config.num_server_rounds, steps, len(rows.train), config.train)
    check_policy(request, facts, stretch.steps, math.ceil(stretch.steps * stretch.rows_per_step))
    promise = make_promise(request, facts, rows, stretch, session) if config.privacy.in_the_bank else None
    try:
        result = train(
            session.model,
            rows.train,
            stretch,
            config.train,
            seed=config.seed,
            bank=facts.name,
            optimizer=optimizer,
            privately=promise.mechanism if promise else None,
        )
    except UserError as error:
        raise BankError("diverged", str(error)) from error
    delta = read_adapter(session.model) - request.adapter
    if not np.isfinite(delta).all():
        raise BankError("diverged", "the trained adapter is not finite")
    if keeps_moments:
        _save_state(folder, request.round, result.optimizer)
    log.info("%s: round %d, %d rows, loss %.4f, %.1f s", facts.name, request.round, result.rows, result.loss, result.wall_s)
    if promise:
        if not delta.any():
            raise BankError("privacy", "the private steps did not move the adapter")
        spent = (promise.epsilon_planned, promise.epsilon_spent, promise.delta)
        return delta, session.layout.id, Figures.withheld(result.steps, load_s, *spent), result.rows
    figures = Figures(
        rows=result.rows,
        steps=result.steps,
        tokens=result.tokens,
        answer_tokens=result.answer_tokens,
        train_loss=result.loss,
        holdout_rows=len(rows.holdout),
        holdout_loss=holdout_loss,
        train_s=result.wall_s,
        load_s=load_s,
        bank_rows=len(rows.train),
        skipped_rows=rows.skipped,
    )
    return delta, session.layout.id, figures, result.rows


def _holdout_loss(request: TrainRequest, rows: BankRows, session: Session) -> float:
    """Loss of the received global adapter on the held-out rows, inside the train message: no second down-link."""
    if not rows.holdout or (request.round - 1) % request.config.train.holdout_every:
        return float("nan")
    write_adapter(session.model, request.adapter)
    return mean_loss(session.model, rows.holdout, request.config.train)


def _load_state(folder: Path, round_number: int) -> OptimizerState | None:
    """The newest state from before this round; None at the start of a run."""
    for file in sorted(folder.glob("round_*.safetensors"), reverse=True):
        if int(file.stem.split("_")[1]) >= round_number:
            continue
        try:
            values = load_file(file)
            return OptimizerState(values["first_moment"], values["second_moment"], int(values["steps"][0]))
        except (SafetensorError, KeyError, OSError) as error:
            log.warning("%s is damaged (%s); trying an older one", file, error)
    return None


def _save_state(folder: Path, round_number: int, state: OptimizerState) -> None:
    values = {"first_moment": state.first_moment, "second_moment": state.second_moment, "steps": np.array([state.steps])}
    try:
        write_bytes(folder / f"round_{round_number:04d}.safetensors", save(values))
        for old in sorted(folder.glob("round_*.safetensors"))[:-KEPT_STATES]:
            old.unlink()
    except (UserError, OSError) as error:
        raise BankError("disk", str(error)) from error
