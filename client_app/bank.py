"""One bank's part of a round: its rows, its optimiser's memory, the local training, the delta.

Flower may start a new process for each message or serve several banks from one, so nothing of a bank lives in the process but
caches: Adam's moments are kept on the bank's own disk, by round, and a repeated round starts from the same moments again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from client_app.facts import BankFacts
from client_app.held_out import drawn, once, published_count, whole_tasks
from client_app.kept_state import load_moments, save_moments
from client_app.privacy_plan import CUSTOMERS, NAMES, PrivacyPlan, book_round, declared_size, delta_of, make_plan
from data.catalog import select
from data.encode import encode_rows
from data.partition import hold_out, partition
from data.rows import Row
from data.sources import layout_of, load_rows, state_of_files
from data.validation import set_aside
from fedfinlora.adapter import Vector, read_adapter, write_adapter
from fedfinlora.base_checks import context_tokens
from fedfinlora.bounded_cache import BoundedCache
from fedfinlora.config import Config, DatasetConfig, PartitionConfig, PrivacyConfig
from fedfinlora.deployment.history import Event, record, rounds_today
from fedfinlora.deployment.policy import Work, broken_rule, declared_sizes, rounded_rows
from fedfinlora.errors import UserError
from fedfinlora.logs import about
from fedfinlora.memory import give_back_heap
from fedfinlora.model_files import model_sha256
from fedfinlora.models import Session, get_session
from fedfinlora.packing import Example
from fedfinlora.privacy.accounting import Steps
from fedfinlora.privacy.cohorts import customer_of
from fedfinlora.privacy.ledger import Booked, Head, Rows, Version1, fingerprint
from fedfinlora.privacy.mechanism import Mechanism
from fedfinlora.runfolder import source_fingerprint
from fedfinlora.seeds import derive_seed, generator
from fedfinlora.training import Stretch, TrainResult, mean_loss, stretch_of_round, total_steps, train
from fedfinlora.wire import ALWAYS_TOLD, BankError, Figures, TrainRequest

log = logging.getLogger("fedfinlora.bank")

_SetAside = tuple[tuple[str, ...], int]
"""(Benchmarks, rows of each) of the public validation rows."""
SAMPLE_KEY = "sample.key"
"""In a deployed bank's state folder."""


LONGEST_DETAIL = 500
"""Letters of a request's fault in the history: the server decides how long a request is."""


@dataclass(frozen=True)
class BankRows:
    """A bank's rows, ready to train on."""

    train: tuple[Example, ...]
    holdout: tuple[Example, ...]
    skipped: int
    """Bad rows in the files (in a simulation, those of all banks) and rows too long for the context window."""
    units: tuple[tuple[int, ...], ...] = ()
    """Places in `train` of each privacy unit's examples; () without privacy."""
    in_ledger: Rows = field(default_factory=lambda: Rows(()))
    """What the ledger knows the rows by: those of `train`, then those of `holdout`."""
    declared: Mapping[str, int] = field(default_factory=dict)
    """Task -> declared rows, of the bank's whole data set; under "customers" how many customers."""
    version_1: Version1 | None = None
    """Where ledgers of the first version may be."""


class RoundReply(NamedTuple):
    """What leaves a bank after a round."""

    delta: Vector
    """(layout.size,) float32: local adapter minus global one."""
    layout_id: str
    figures: Figures
    ledger: Head | None
    """Of the bank's ledger with this round's line; None where the round was not booked."""


def bank_dataset(dataset: DatasetConfig, facts: BankFacts) -> DatasetConfig:
    """The data set that this bank reads: its own folder if it has one, whatever the server named."""
    if not facts.data_path:
        return dataset
    path = Path(facts.data_path).expanduser()
    return replace(dataset, source=layout_of(path), root=str(path.absolute()), on_bad_row="skip", columns=facts.columns)


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
    if config.privacy.in_the_bank:  # `sampled_rows` takes its part
        dataset = replace(dataset, max_rows_per_task=0)
    loaded = load_rows(dataset, "train", dataset.tasks, config.seed)
    return list(loaded.rows), len(loaded.bad_rows)


def sampled_rows(rows: Sequence[Row], config: Config, facts: BankFacts, declared: Mapping[str, int]) -> list[Row]:
    """The part of a bank's rows that dataset.max_rows_per_task and train.max_rows leave to a private round.

    Each row is in or out by its own prompt and a key, whatever other rows there are: in a sample of a fixed size one row more would
    change which others are in it, and so the sum by far more than its own clipped gradient. A deployed bank's key is secret, so that no server can choose
    a seed that singles rows out. The limits hold of the declared sizes, so the sample has about so many rows.
    """
    per_task = 0 if facts.banks else config.dataset.max_rows_per_task
    whole = declared_size(config, declared, is_sample=bool(facts.banks), max_rows=0)
    overall = config.train.max_rows / whole if config.train.max_rows and whole else 1.0
    if not per_task and overall >= 1.0:
        return list(rows)
    key = _sample_key(facts) if facts.deployed else config.seed

    def takes_part(row: Row) -> bool:
        of_task = per_task / declared[row.task] if per_task and declared.get(row.task) else 1.0
        rate = min(of_task, 1.0) * min(overall, 1.0)
        return rate >= 1.0 or derive_seed(key, "private sample", facts.name, row.prompt) < rate * 2**63

    return [row for row in rows if takes_part(row)]


def _sample_key(facts: BankFacts) -> int:
    """The bank's secret key for samples of its rows, made once, in its state folder. UserError where it cannot be kept."""
    file = facts.state_folder / SAMPLE_KEY
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.suppress(FileExistsError),
            open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream,
        ):
            stream.write(os.urandom(32))
        key = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read or made ({error.strerror}).") from error
    if len(key) != 32:
        raise UserError(f"{file} is damaged: remove it, another one is made.")
    return int.from_bytes(key, "big")


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


def own_split(rows: Sequence[Row], config: Config, facts: BankFacts) -> tuple[list[Row], list[Row]]:
    """(train rows, held-out rows) of a deployed bank, which draws the latter from all of its rows by its own key (`client_app.held_out`)."""
    limited, _ = split_rows(list(rows), replace(config, train=replace(config.train, holdout_max_rows=0)), facts.name)
    if not config.train.holdout_max_rows or not config.train.holdout_fraction:
        return limited, []
    whole = _whole_data_set(config, facts, rows)
    names = drawn(whole, _sample_key(facts), facts.min_rows)
    kept = [row for row in limited if (row.task, row.prompt) not in names]
    return kept, once(whole, names, config.dataset.tasks)


ROWS_BYTES = 2**30
"""Of tokenized rows in memory: 30 million tokens. One of many simulated banks reads and tokenizes its rows again where they are more."""
TOKEN_BYTES, ROW_BYTES = 36, 600
"""Of a token id (an object and a pointer to it), and of what comes with a row beside its texts."""
_rows: BoundedCache[BankRows] = BoundedCache(ROWS_BYTES)


def size_of(rows: BankRows) -> int:
    """About how many bytes the rows take in memory."""
    tokens = sum(len(row.prompt_ids) + len(row.answer_ids) for row in (*rows.train, *rows.holdout))
    texts = sum(map(len, (*rows.in_ledger.prompts, *rows.in_ledger.customers)))
    return TOKEN_BYTES * tokens + texts + ROW_BYTES * (len(rows.train) + len(rows.holdout))


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
        _state_of_files(facts),
    )
    found = _rows.get(key)
    if found is None:
        if facts.deployed:
            _rows.clear()  # what was changed or deleted is not kept
        try:
            rows, bad = _own_rows(config, facts)
            declared = _declared(config, facts, rows) if config.privacy.in_the_bank or facts.deployed else {}
            if config.privacy.in_the_bank:
                kept, held_out = sampled_rows(rows, config, facts, declared), list[Row]()
            elif facts.deployed:
                kept, held_out = own_split(rows, config, facts)
            else:
                kept, held_out = split_rows(rows, config, facts.name)
            # Whether one bad row ends a round is not for a server to ask.
            on_bad_row = "skip" if facts.deployed else config.dataset.on_bad_row
            how = (context_tokens(config.model), on_bad_row, config.dataset.chat_template)
            if config.privacy.in_the_bank and config.privacy.unit == "customer":
                kept = with_customers(kept, facts.name)
            train_rows, holdout_rows = encode_rows(tokenizer, kept, *how), encode_rows(tokenizer, held_out, *how)
            if facts.deployed and holdout_rows.too_long:
                whole = whole_tasks(held_out, holdout_rows.rows)
                held_out = [row for row in held_out if row.task in whole]
                holdout_rows = encode_rows(tokenizer, held_out, *how)
                log.warning(
                    "%s: the held-out rows of some tasks are longer than the window: these tasks are not scored", facts.name
                )
        except UserError as error:
            raise BankError("data", str(error)) from error
        if rows and not kept and config.privacy.in_the_bank:  # the row limits have left none, by chance
            _check_least_rows(0, facts, "train.max_rows and dataset.max_rows_per_task leave")
        if not train_rows.examples:
            raise BankError("data", f"{facts.name} has no usable train rows")
        skipped = bad + len(train_rows.too_long) + len(holdout_rows.too_long)
        if skipped:
            log.warning("%s: %d rows skipped; `python -m fedfinlora data check` names them", facts.name, skipped)
        found = BankRows(train_rows.examples, holdout_rows.examples, skipped)
        if config.privacy.in_the_bank:
            found = replace(found, units=units_of(train_rows.rows, config.privacy))
        if config.privacy.in_the_bank or facts.deployed:
            in_use = [*train_rows.rows, *holdout_rows.rows]
            has_customers = any(row.issuer for row in in_use)
            found = replace(
                found,
                in_ledger=Rows(
                    tuple(row.prompt for row in in_use), tuple(row.issuer for row in in_use) if has_customers else ()
                ),
                declared=declared,
                version_1=Version1(_old_ledgers(facts), lambda: data_sets_of(config, facts, rows)),
            )
        _rows.put(key, found, size_of(found))
    return found


def _state_of_files(facts: BankFacts) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file of a bank's own rows: a resident process notices that they were changed."""
    return state_of_files(Path(facts.data_path).expanduser()) if facts.data_path else ()


def with_customers(rows: Sequence[Row], bank: str) -> list[Row]:
    """The rows that say whose they are. BankError where none does."""
    found = [row for row in rows if customer_of(row.issuer)]
    if not found:
        raise BankError(
            "privacy", f"privacy.unit=customer: {len(rows)} of {len(rows)} rows have no `issuer` to tell customers by"
        )
    if len(found) < len(rows):
        log.warning("%s: %d rows have no `issuer` and are left out under privacy.unit=customer", bank, len(rows) - len(found))
    return found


def units_of(rows: Sequence[Row], privacy: PrivacyConfig) -> tuple[tuple[int, ...], ...]:
    """Places of each unit's rows: every row its own, or those of one customer together, as the ledger tells customers apart."""
    if privacy.unit == "example":
        return tuple((place,) for place in range(len(rows)))
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(customer_of(row.issuer), []).append(place)
    return tuple(map(tuple, places.values()))


def _whole_data_set(config: Config, facts: BankFacts, rows: Sequence[Row]) -> Sequence[Row]:
    """All train rows of the bank: those of a simulated bank as they are, a bank's own files whole, whatever part of them a run samples."""
    if facts.banks:
        return rows
    dataset = replace(bank_dataset(config.dataset, facts), max_rows_per_task=0, tasks=())
    return load_rows(dataset, "train", (), config.seed).rows


def _declared(config: Config, facts: BankFacts, rows: Sequence[Row]) -> dict[str, int]:
    """Task -> declared rows, and the customers; what nobody declared is the bank's own count, rounded."""
    if facts.declared_rows:
        return declared_sizes(facts.declared_rows)
    whole = _whole_data_set(config, facts, rows)
    found = {task: rounded_rows(count) for task, count in sorted(Counter(row.task for row in whole).items())}
    customers = {customer_of(row.issuer) for row in whole} - {""}
    return found | ({CUSTOMERS: rounded_rows(len(customers))} if customers else {})


def _old_ledgers(facts: BankFacts) -> tuple[Path, ...]:
    """Folders of the first ledger version: a simulated bank's own, and every one where a bank has its machine for itself, whatever it was called."""
    if not facts.deployed:
        return (facts.ledger_folder / facts.name,)
    try:
        return tuple(sorted(path for path in facts.ledger_folder.iterdir() if path.is_dir() and path.name != "server"))
    except OSError:
        return ()


def data_sets_of(config: Config, facts: BankFacts, rows: Sequence[Row]) -> dict[str, Rows]:
    """Account of the first ledger version -> its rows of today, a task each."""
    by_task: dict[str, list[Row]] = {}
    for row in _whole_data_set(config, facts, rows):
        by_task.setdefault(row.task, []).append(row)
    return {
        fingerprint([(row.prompt, row.target) for row in own]): Rows(
            tuple(row.prompt for row in own), tuple(row.issuer for row in own) if any(row.issuer for row in own) else ()
        )
        for own in by_task.values()
    }


def train_round(request: TrainRequest, facts: BankFacts) -> RoundReply:
    """Train the received global adapter on this bank's rows.

    A bank with a policy writes each request and what became of it into its history. In a private round everything that goes wrong once the request was
    accepted is the same BankError: which it was may depend on the rows.
    """
    with about(run=request.run, round=request.round, bank=facts.name):
        try:
            return _noted_round(request, facts)
        finally:
            give_back_heap()


def _noted_round(request: TrainRequest, facts: BankFacts) -> RoundReply:
    """The round and its history."""
    common: dict[str, Any] = {
        "privacy": request.config.privacy.mode,
        "policy_sha256": facts.policy_sha256,
        "bytes_received": request.adapter.nbytes,
    }

    def note(outcome: str, **values: Any) -> None:
        if facts.policy is None:
            return
        try:
            record(facts.history_file, Event(request.run, request.round, outcome, **common, **values))
        except UserError as error:
            raise BankError("disk", str(error)) from error

    try:
        admit(request, facts)
        note("begun")
        done = _train_round(request, facts, lambda spending: note("booked", **spending))
    except BankError as error:
        refused = error.code.startswith("policy-") or error.code == "privacy"
        note("refused" if refused else "failed", code=error.code, detail=str(error))
        raise
    except BaseException as error:
        note("failed", code="internal", detail=type(error).__name__)
        raise
    leave = (*ALWAYS_TOLD, *facts.reveal)
    figures = done.reply.figures
    told = tuple(name for name, value in asdict(figures).items() if name in leave and value and not math.isnan(value))
    note(
        "sent", rows=done.rows, steps=figures.steps, bytes_sent=done.reply.delta.nbytes, figures=told, **done.spending
    )  # fmt: skip
    return done.reply


def note_unusable(facts: BankFacts, run: str, error: BankError) -> None:
    """Write a request that is none, refused before it could be read, into the history of a bank with a policy; `run` is Flower's number."""
    if facts.policy is None:
        return
    event = Event(run, 0, "refused", code=error.code, detail=str(error)[:LONGEST_DETAIL], policy_sha256=facts.policy_sha256)
    try:
        record(facts.history_file, event)
    except UserError as unwritable:  # it stays refused
        log.error("%s", unwritable)


def admit(request: TrainRequest, facts: BankFacts) -> None:
    """What can be said of a request before a row is read. BankError where the bank does not do it.

    A deployed bank that has a budget sends nothing that is not accounted for; and it does not make up the sizes that it declares, which would
    tell its own row counts.
    """
    check_policy(request, facts)
    if facts.deployed and request.config.privacy.in_the_bank and not facts.declared_rows:
        raise BankError(
            "privacy",
            f"{facts.name} has no declared_rows, and a private round would round its secret row counts instead. Add declared_rows: [TASK:ROWS, …] to "
            "bank.yaml, as `bank init` writes it",
            "declared_rows",
        )
    if facts.deployed and facts.budget_epsilon and not request.config.privacy.in_the_bank:
        raise BankError(
            "policy-privacy",
            f"{facts.name} has budget_epsilon={facts.budget_epsilon:g}, and privacy={request.config.privacy.mode} would spend without limit",
            "budget_epsilon",
        )


def work_of(request: TrainRequest, facts: BankFacts, steps: int = 0, rows: int = 0) -> Work:
    """What the request asks for, as the rules of a policy see it now."""
    now, today = datetime.now(), rounds_today(facts.history_file)
    # Once begun, this round is among those of today.
    begun_before = max(0, today - 1) if steps else today
    config = request.config
    return Work(config, steps, rows, begun_before, now, lambda: model_sha256(config.model), facts.min_rows)


def check_policy(request: TrainRequest, facts: BankFacts, steps: int = 0, rows: int = 0) -> None:
    """BankError with the rule's name where the bank's policy does not allow the request. Steps and rows are 0 as long as they are not known."""
    if facts.policy is None:
        return
    try:
        rule = broken_rule(facts.policy, work_of(request, facts, steps, rows))
    except UserError as error:
        raise BankError("model", str(error)) from error
    if rule:
        raise BankError(
            f"policy-{rule}", f"{facts.name}: round {request.round} of {request.run} is against the policy's rule {rule}"
        )


def check_source(request: TrainRequest) -> None:
    """BankError where the server runs other code than the bank."""
    if request.source_sha256 != source_fingerprint():
        raise BankError("source", "the server's source hash differs from this bank's")


class Settled(NamedTuple):
    """What a round is trained on and for how long, allowed by all rules that depend on rows."""

    rows: BankRows
    stretch: Stretch


def settle(request: TrainRequest, facts: BankFacts, tokenizer: Any) -> Settled:
    """Read the bank's rows and see what a round would do with them. BankError where there are too few, or a rule forbids it.

    The steps of a private round follow from the declared sizes alone.
    """
    config = request.config
    rows = bank_rows(config, facts, tokenizer)
    # Under privacy the rows that do not fit the window count too: the server sets it, and could find a row's length by the refusals.
    beyond = rows.skipped if config.privacy.in_the_bank else 0
    _check_least_rows(len(rows.train) + len(rows.holdout) + beyond, facts, "there are")
    size = declared_size(config, rows.declared, is_sample=not facts.deployed) if config.privacy.in_the_bank else len(rows.train)
    if not size:
        raise BankError("privacy", f"the declared_rows of {facts.name} name none of the tasks asked for", "declared_rows")
    steps = total_steps(size, config.num_server_rounds, config.train)
    stretch = stretch_of_round(request.round, config.num_server_rounds, steps, size, config.train)
    wanted = math.ceil(stretch.steps * stretch.rows_per_step)
    check_policy(request, facts, stretch.steps, wanted)
    if not config.privacy.in_the_bank:
        _check_least_rows(min(wanted, len(rows.train)), facts, "the round's steps take")
    return Settled(rows, stretch)


class _Done(NamedTuple):
    """A round that was trained."""

    reply: RoundReply
    rows: int
    """Rows trained on, whatever the figures say."""
    spending: Mapping[str, Any]
    """What was booked, as fields of an Event."""


def _train_round(request: TrainRequest, facts: BankFacts, on_booked: Callable[[Mapping[str, Any]], None]) -> _Done:
    """The round itself."""
    check_source(request)
    config = request.config
    started = time.monotonic()
    try:
        session = get_session(config)
    except UserError as error:
        raise BankError("model", str(error)) from error
    if request.layout_id != session.layout.id or request.adapter.shape != (session.layout.size,):
        raise BankError("layout", f"layout {request.layout_id} received, {session.layout.id} here")
    load_s = time.monotonic() - started
    with one_code(config):
        round_here = _private_round if config.privacy.in_the_bank else _open_round
        return round_here(request, facts, session, load_s, on_booked)


@contextlib.contextmanager
def one_code(config: Config) -> Iterator[None]:
    """What goes wrong in a private round is the same BankError, whatever it is: which it was may depend on the rows. Rules of the policy alone keep
    their names."""
    try:
        yield
    except BankError as error:
        if not config.privacy.in_the_bank or error.code.startswith("policy-"):
            raise
        raise BankError("privacy", f"{error.code}: {error}", error.rule) from error
    except Exception as error:
        if not config.privacy.in_the_bank:
            raise
        log.exception("unexpected error")
        raise BankError("privacy", f"internal: {type(error).__name__}") from error


def book_open(request: TrainRequest, facts: BankFacts, settled: Settled) -> tuple[Steps, Booked]:
    """Book a round whose delta leaves without noise of the bank's own, as infinite: (its steps, what was booked)."""
    steps = Steps(1.0, 0.0, settled.stretch.steps)
    try:
        return steps, book_round(request, facts, settled.rows, steps, delta_of(request.config, facts, settled.rows.declared))
    except UserError as error:
        raise BankError("privacy", str(error)) from error


def _open_round(
    request: TrainRequest, facts: BankFacts, session: Session, load_s: float, on_booked: Callable[[Mapping[str, Any]], None]
) -> _Done:
    """A round whose delta leaves without noise of the bank's own; a deployed bank books it as infinite."""
    config = request.config
    rows, stretch = settled = settle(request, facts, session.tokenizer)
    spending: dict[str, Any] = {}
    head = None
    if facts.deployed:
        without_noise, booked = book_open(request, facts, settled)
        head, spending = booked.head, _spending(config, without_noise, "example", booked)
        on_booked(spending)
    holdout_loss = _holdout_loss(request, rows, session)
    delta, result = _trained(request, facts, session, rows.train, stretch, None)
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
        bank_rows=published_count(len(rows.train), facts.min_rows) if facts.deployed else len(rows.train),
        skipped_rows=published_count(rows.skipped, facts.min_rows) if facts.deployed else rows.skipped,
    )
    return _Done(RoundReply(delta, session.layout.id, figures, head), result.rows, spending)


def _private_round(
    request: TrainRequest, facts: BankFacts, session: Session, load_s: float, on_booked: Callable[[Mapping[str, Any]], None]
) -> _Done:
    """A round under privacy=example or dp_lora: planned with declared sizes, booked, then trained."""
    config = request.config
    rows, stretch = settle(request, facts, session.tokenizer)
    plan = make_plan(request, facts, rows, stretch, session)
    spending = _spending(config, plan.steps, config.privacy.unit, plan.booked)
    if facts.reproducible_noise:
        spending["noise_multiplier"] = 0.0
    on_booked(spending)
    examples = rows.train if isinstance(plan.mechanism, Mechanism) else _taking_part(rows, plan)
    delta, result = _trained(request, facts, session, examples, stretch, plan)
    if not delta.any():
        raise BankError("privacy", "the private steps did not move the adapter")
    figures = Figures.withheld(result.steps, load_s, plan.epsilon_planned, plan.booked.epsilon_reported, plan.delta)
    return _Done(RoundReply(delta, session.layout.id, figures, plan.booked.head), result.rows, spending)


def _taking_part(rows: BankRows, plan: PrivacyPlan) -> tuple[Example, ...]:
    return tuple(row for row, takes_part in zip(rows.train, plan.booked.taking_part, strict=True) if takes_part)


def _spending(config: Config, steps: Steps, unit: str, booked: Booked) -> dict[str, Any]:
    """What was booked, as the history has it."""
    return {
        "unit": unit, "mechanism": NAMES[config.privacy.mode], "sampling_rate": steps.sampling_rate, "noise_multiplier": steps.noise_multiplier, "noise_steps": steps.count,
        "ledger_number": booked.head.number, "ledger_hash": booked.head.hash, "left_out": booked.left_out,
        "epsilon_spent": booked.epsilon if math.isfinite(booked.epsilon) else None,
    }  # fmt: skip


def _check_least_rows(count: int, facts: BankFacts, what: str) -> None:
    if count < facts.min_rows:
        raise BankError("privacy", f"{what} {count} rows, fewer than min_rows={facts.min_rows} of {facts.name}", "min_rows")


def _trained(
    request: TrainRequest,
    facts: BankFacts,
    session: Session,
    examples: Sequence[Example],
    stretch: Stretch,
    plan: PrivacyPlan | None,
) -> tuple[Vector, TrainResult]:
    """(delta, what the training was) of the received adapter on `examples`. BankError where either is not finite."""
    config = request.config
    write_adapter(session.model, request.adapter)
    folder = facts.state_folder / request.run / facts.name
    keeps_moments = config.train.optimizer_state == "keep" and config.train.optimizer == "adamw"
    try:
        result = train(
            session.model,
            examples,
            stretch,
            config.train,
            seed=config.seed,
            bank=facts.name,
            optimizer=load_moments(folder, request.round) if keeps_moments else None,
            privately=plan.mechanism if plan else None,
        )
    except UserError as error:
        raise BankError("diverged", str(error)) from error
    delta = read_adapter(session.model) - request.adapter
    if not np.isfinite(delta).all():
        raise BankError("diverged", "the trained adapter is not finite")
    if keeps_moments:
        save_moments(folder, request.round, result.optimizer)
    log.info("%s: round %d, %d rows, loss %.4f, %.1f s", facts.name, request.round, result.rows, result.loss, result.wall_s)
    return delta, result


def _holdout_loss(request: TrainRequest, rows: BankRows, session: Session) -> float:
    """Loss of the received global adapter on the held-out rows, inside the train message: no second down-link."""
    if not rows.holdout or (request.round - 1) % request.config.train.holdout_every:
        return float("nan")
    write_adapter(session.model, request.adapter)
    return mean_loss(session.model, rows.holdout, request.config.train)
