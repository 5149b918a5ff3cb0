"""A bank's rows, ready to train on: tokenized, with their privacy units and with what the ledger knows them by. Kept in
memory within ROWS_BYTES.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from client_app.facts import BankFacts
from client_app.held_out import whole_tasks
from client_app.own_rows import own_rows, own_split, sampled_rows, set_aside_by, train_and_held_out, whole_data_set
from client_app.privacy_plan import CUSTOMERS
from data.encode import encode_rows
from data.rows import Row
from data.sources import state_of_files
from fedfinlora.config.privacy import PrivacyConfig
from fedfinlora.config.schema import Config
from fedfinlora.deployment.bank_settings import declared_sizes, rounded_rows
from fedfinlora.errors import UserError
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.packing import Example
from fedfinlora.privacy.cohorts import customer_of
from fedfinlora.privacy.ledger import Rows, Version1, fingerprint
from fedfinlora.system.bounded_cache import BoundedCache
from fedfinlora.wire.messages import BankError

log = logging.getLogger("fedfinlora.bank")


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


ROWS_BYTES = 2**30
"""Of tokenized rows in memory: 30 million tokens. Beyond it a simulated bank reads and tokenizes its rows again."""
TOKEN_BYTES, ROW_BYTES = 36, 600
"""Of a token id (an object and a pointer to it), and of what comes with a row besides its texts."""
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
        set_aside_by(config),
        facts,
        _state_of_files(facts),
    )
    found = _rows.get(key)
    if found is None:
        if facts.deployed:
            _rows.clear()  # what was changed or deleted is not kept
        try:
            rows, bad = own_rows(config, facts)
            declared = _declared(config, facts, rows) if config.privacy.in_the_bank or facts.deployed else {}
            if config.privacy.in_the_bank:
                kept, held_out = sampled_rows(rows, config, facts, declared), list[Row]()
            elif facts.deployed:
                kept, held_out = own_split(rows, config, facts)
            else:
                kept, held_out = train_and_held_out(rows, config, facts.name)
            # Whether one bad row ends a round is not for a server to ask.
            on_bad_row = "skip" if facts.deployed else config.dataset.on_bad_row
            dataset = config.dataset
            how = (context_tokens(config.model), on_bad_row, dataset.chat_template, dataset.answer_space)
            if config.privacy.in_the_bank and config.privacy.unit == "customer":
                kept = with_customers(kept, facts.name)
            train_rows, holdout_rows = encode_rows(tokenizer, kept, *how), encode_rows(tokenizer, held_out, *how)
            if facts.deployed and holdout_rows.too_long:
                whole = whole_tasks(held_out, holdout_rows.rows)
                held_out = [row for row in held_out if row.task in whole]
                holdout_rows = encode_rows(tokenizer, held_out, *how)
                log.warning(
                    "%s: the held-out rows of some tasks are longer than the window: these tasks are not scored",
                    facts.name,
                )
        except UserError as error:
            raise BankError("data", str(error)) from error
        if rows and not kept and config.privacy.in_the_bank:  # the row limits have left none, by chance
            check_least_rows(0, facts, "train.max_rows and dataset.max_rows_per_task leave")
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
        raise BankError("privacy", f"privacy.unit=customer: {len(rows)} of {len(rows)} rows have no `issuer`")
    if len(found) < len(rows):
        log.warning(
            "%s: %d rows have no `issuer` and are excluded under privacy.unit=customer", bank, len(rows) - len(found)
        )
    return found


def units_of(rows: Sequence[Row], privacy: PrivacyConfig) -> tuple[tuple[int, ...], ...]:
    """Places of each unit's rows: every row its own, or those of one customer together, as the ledger distinguishes
    customers apart.
    """
    if privacy.unit == "example":
        return tuple((place,) for place in range(len(rows)))
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(customer_of(row.issuer), []).append(place)
    return tuple(map(tuple, places.values()))


def _declared(config: Config, facts: BankFacts, rows: Sequence[Row]) -> dict[str, int]:
    """Task -> declared rows, and the customers; a task without a declared size has the bank's own count, rounded."""
    if facts.declared_rows:
        return declared_sizes(facts.declared_rows)
    whole = whole_data_set(config, facts, rows)
    found = {task: rounded_rows(count) for task, count in sorted(Counter(row.task for row in whole).items())}
    customers = {customer_of(row.issuer) for row in whole} - {""}
    return found | ({CUSTOMERS: rounded_rows(len(customers))} if customers else {})


def _old_ledgers(facts: BankFacts) -> tuple[Path, ...]:
    """Folders of the first ledger version: a simulated bank's own, and every one where a bank has its machine for
    itself, under any name.
    """
    if not facts.deployed:
        return (facts.ledger_folder / facts.name,)
    try:
        return tuple(sorted(path for path in facts.ledger_folder.iterdir() if path.is_dir() and path.name != "server"))
    except OSError:
        return ()


def data_sets_of(config: Config, facts: BankFacts, rows: Sequence[Row]) -> dict[str, Rows]:
    """Account of the first ledger version -> its rows of today, a task each."""
    by_task: dict[str, list[Row]] = {}
    for row in whole_data_set(config, facts, rows):
        by_task.setdefault(row.task, []).append(row)
    return {
        fingerprint([(row.prompt, row.target) for row in own]): Rows(
            tuple(row.prompt for row in own), tuple(row.issuer for row in own) if any(row.issuer for row in own) else ()
        )
        for own in by_task.values()
    }


def check_least_rows(count: int, facts: BankFacts, what: str) -> None:
    if count < facts.min_rows:
        raise BankError(
            "privacy", f"{what} {count} rows, fewer than min_rows={facts.min_rows} of {facts.name}", "min_rows"
        )
