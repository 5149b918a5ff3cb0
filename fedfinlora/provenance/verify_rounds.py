"""Compute rounds.jsonl and the weights of each round again from the replies in the chain."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError, plural
from fedfinlora.model.adapter import Vector, norm
from fedfinlora.model.block_means import from_text
from fedfinlora.privacy.head import Head
from fedfinlora.provenance.compared import CLOSE, Difference, same
from fedfinlora.provenance.evidence import NO_DELTA
from fedfinlora.provenance.findings import Findings, Round, lines_of
from fedfinlora.provenance.lines import CHAIN_FILE, Attempt, BankPart
from fedfinlora.provenance.rules import Rules
from fedfinlora.provenance.signatures import digest
from fedfinlora.provenance.verify_chain import ChainCheck
from fedfinlora.run.records import (
    ROUNDS_FILE,
    AverageLoss,
    BankEntry,
    FactorLength,
    RoundLine,
    RoundPrivacy,
    round_line,
)
from fedfinlora.run.typed import plain
from fedfinlora.wire.messages import Reply, read_figures
from fedfinlora.wire.reasons import SAFE_REASONS, reason_of

MOST_BANKS = 1_000_000
"""Of which a sample is computed again."""
REPLIES = f"its reply in {CHAIN_FILE}"
STATUS = {"late": ("late",), "crashed": ("error",), "away": ("error",)}
"""Code of an answer that the chain has nothing of -> what its status may be; any other may be an error of the bank's or
a rejected reply.
"""
AVERAGE_CLOSE = {"rel_tol": 1e-4, "abs_tol": 1e-9}
"""It has six digits, and is made of differences of products."""
FROM_REPLIES = ("status", "noise_alone", "train_loss", "holdout_loss", "bytes_up", "bytes_down")
"""Keys of a line of rounds.jsonl that follow from the entries of its banks."""


@dataclass(frozen=True)
class Norms:
    """The Euclidean norms of a round that could be computed again."""

    update: float
    """Of the server's step."""
    rounding: float = 0.0
    """By how much a right one may differ, beyond CLOSE."""
    deltas: Mapping[str, float] = field(default_factory=dict)
    """Of each bank's delta; empty where none was kept."""
    average: AverageLoss | None = None
    """What the average lost, by the kept deltas; None where that could not be computed."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Bank -> how far it moved its factors, likewise."""
    layers_known: bool = False


def read_rounds_file(run: Path, found: Findings) -> tuple[list[RoundLine], dict[int, str]]:
    """(the lines of rounds.jsonl up to one that cannot be read; round -> hash of its line). OSError."""
    file, lines, hashes = run / ROUNDS_FILE, list[RoundLine](), dict[int, str]()
    for number, text in enumerate(lines_of(file, found) if file.is_file() else (), 1):
        where = f"{file}, line {number}"
        try:
            values = json.loads(text)
            lines.append(round_line(values, where))
            hashes[lines[-1].round] = digest(values)
        except UserError as error:
            found.add(where, str(error).removeprefix(f"{where} "))
            break
        except (ValueError, TypeError, RecursionError) as error:
            found.add(where, f"it cannot be read ({type(error).__name__})")
            break
    return lines, hashes


def reply_of(bank: str, part: BankPart, config: Config, delta: Vector) -> Reply:
    """An accepted reply as the server has read it. LookupError, TypeError or ValueError for any other."""
    reported = {
        name: float(value) if isinstance(value, str) else value for name, value in part.figures.items()
    }  # nan and inf
    figures, withheld = read_figures(reported, config.privacy.in_the_bank)
    head = part.head
    ledger = Head(head["ledger-number"], head["ledger-hash"]) if "ledger-number" in head else None
    length = norm(delta) if delta.strides != (0,) else math.nan
    return Reply(bank, delta, figures, length, str(head.get("policy-sha256", "")), withheld, ledger,
                 second_moments=from_text(str(head.get("second-moments", ""))))  # fmt: skip


def not_kept(size: int) -> Vector:
    """In the place of a delta of `size` numbers that is not there."""
    return np.broadcast_to(np.float32(0), (size,))


@dataclass
class RoundsCheck:
    """rounds.jsonl, and how its figures follow from the replies in the chain."""

    run: Path
    lines: Sequence[RoundLine]
    size: int
    """How many numbers an adapter has; 0 = not known."""
    rules: Rules

    def __post_init__(self) -> None:
        self._delta = not_kept(self.size)

    def compare(self, one: Round, attempt: Attempt) -> list[Difference]:
        """What in a round's weights and its line of rounds.jsonl does not follow from its replies; but for norms."""
        if (config := one.config) is None:
            return []
        replies = []
        for bank in one.accepted:
            try:
                replies.append(reply_of(bank, attempt.banks[bank], config, self._delta))
            except (LookupError, TypeError, ValueError, OverflowError) as error:
                what = f"none that a server accepts ({error})"
                return [Difference(one.where, f"round {one.number}: the reply of {bank}", what, "accepted", CHAIN_FILE)]
        wrong = self._weights(one, attempt, config, replies)
        if one.number <= len(self.lines):
            where = f"{self.run / ROUNDS_FILE}, line {one.number}"
            wrong += self._line(where, self.lines[one.number - 1], attempt, config, replies)
        return wrong

    def _weights(self, one: Round, attempt: Attempt, config: Config, replies: Sequence[Reply]) -> list[Difference]:
        if not attempt.weights or sorted(attempt.weights) != list(one.accepted):  # `check_attempt` names it
            return []
        expected = dict(zip(one.accepted, self.rules.weights(config, replies), strict=True))
        return [
            Difference(one.where, f"round {one.number}: the weight of {bank}", attempt.weights[bank], weight,
                "configuration and replies")
            for bank, weight in expected.items()
            if not same(weight, attempt.weights[bank])
        ]  # fmt: skip

    def _line(
        self, where: str, line: RoundLine, attempt: Attempt, config: Config, replies: Sequence[Reply]
    ) -> list[Difference]:
        if line.adapter_sha256 != attempt.adapter_sha256:
            return [Difference(where, "adapter_sha256", line.adapter_sha256, attempt.adapter_sha256, CHAIN_FILE)]
        entries = {entry.bank: entry for entry in line.banks}
        if sorted(entries) != sorted(attempt.banks) or len(entries) != len(line.banks):
            return [
                Difference(
                    where, "the names of banks", ", ".join(entries), ", ".join(sorted(attempt.banks)), CHAIN_FILE
                )
            ]
        own = {reply.bank: reply for reply in replies}
        part = self.rules.part(config, line.round, str(attempt.request.get("layout-id", "")))
        sent = 4 * (1 if attempt.request.get("silent") else part.size if part else self.size)
        wrong, expected = [], []
        for bank in sorted(entries):
            entry = entries[bank]
            made = self._entry(attempt.banks[bank], entry, own.get(bank), sent)
            asked = {**attempt.request, **attempt.banks[bank].request}
            if asked.get("adapter-sha256") == NO_DELTA:  # strategy.sync=drift: the bank resumes from its own
                made = replace(made, bytes_down=0)
            expected.append(made)
            if entry != made:
                wrong += _values(where, bank, made, entry)
            if bank in own:
                reported, shown = self.rules.timing(own[bank].figures), line.timings.of(bank)
                if (reported.train_s, reported.load_s, reported.tokens_per_s) != (
                    shown.train_s,
                    shown.load_s,
                    shown.tokens_per_s,
                ):
                    wrong += _values(where, bank, replace(reported, reply_s=shown.reply_s), shown)
        made_line = self.rules.line(config, line.round, expected, replies)
        for name in FROM_REPLIES:
            values = getattr(made_line, name), getattr(line, name)
            if values[0] != values[1] and not same(*values):
                wrong.append(Difference(where, name, values[1], values[0], "its entries and replies"))
        if line.average is not None and not (config.strategy.measure_average and attempt.weights is not None):
            wrong.append(Difference(where, "average", "there", "absent", "strategy and privacy of the configuration"))
        if (line.privacy is None) == (config.privacy.mode == "bank"):
            wrong.append(
                Difference(
                    where, "privacy", plain(line.privacy), config.privacy.mode, "privacy.mode of the configuration"
                )
            )
        elif line.privacy is not None:
            wrong += self._spent(where, line.privacy, line.round, config)
        return wrong

    def _spent(self, where: str, privacy: RoundPrivacy, number: int, config: Config) -> list[Difference]:
        """Under privacy=bank: what this run plans and has spent at least, by its configuration."""
        planned, least, delta = self.rules.least_spent(config, number)
        why = "privacy.* and num_server_rounds of the configuration"
        wrong = [
            Difference(where, name, has, should, why)
            for name, has, should in (
                ("epsilon_planned", privacy.epsilon_planned, planned),
                ("delta of privacy", privacy.delta, delta),
            )
            if has is None or not same(should, has, 1e-6)
        ]
        if privacy.epsilon_spent is not None and privacy.epsilon_spent < least * (1 - 1e-6):
            wrong.append(Difference(where, "epsilon_spent", privacy.epsilon_spent, f"{least:.6g} or more", why))
        return wrong

    def _entry(self, part: BankPart, entry: BankEntry, reply: Reply | None, sent: int) -> BankEntry:
        """What the entry should be, of a bank that sends so many bytes. The norm of a delta is compared where the delta
        was kept.
        """
        bytes_down = 4 * self.size or entry.bytes_down
        if reply is None:
            return replace(_not_accepted(part, entry), bytes_down=bytes_down)
        made, bytes_up = self.rules.entry(reply), sent or entry.bytes_up
        return replace(made, bytes_down=bytes_down, bytes_up=bytes_up, delta_norm=entry.delta_norm)

    def check(self, chain: ChainCheck, norms: Mapping[int, Norms], found: Findings) -> None:
        """rounds.jsonl has the chain's rounds, nothing in it was found to differ, the norms are right, and so are the
        banks that were asked.
        """
        file, rounds, lines = self.run / ROUNDS_FILE, chain.rounds, self.lines
        for place, line in enumerate(lines, 1):
            if line.round != place:
                found.add(file, f"its line {place} is of round {line.round}")
                return
        known = sorted({*range(1, len(lines) + 1), *rounds})
        if known and known[-1] != len(known):  # said once: the number of a round is what its line says
            found.add(chain.file.path, f"of {known[-1]:,} rounds, {known[-1] - len(known):,} are missing")
        for number in known:
            if number > len(lines) and number == chain.open_round == max(rounds):
                found.not_proven(
                    file,
                    f"round {number} is missing: the run was broken off before it was closed, or its line was cut off",
                )
            elif number > len(lines):
                found.add(file, f"round {number} is missing")
            elif number not in rounds:
                found.add(chain.file.path, f"round {number} of {ROUNDS_FILE} is missing")
        for wrong in chain.differences.values():
            found.differs(wrong)
        for number in sorted(norms.keys() & rounds.keys()):
            if number <= len(lines):
                found.differs(_norm_differences(f"{file}, line {number}", lines[number - 1], norms[number]))
        check_samples(rounds, self.rules, found)
        if rounds:
            deltas = sum(bool(norms[number].deltas) for number in norms)
            averages = sum(one.average is not None for one in norms.values())
            found.checked.append(
                f"{ROUNDS_FILE}: every figure but wall times, reasons and what is said of the server's own ledger was "
                "computed again from the "
                f"replies; norms of the step in {len(norms):,} of {len(rounds):,} rounds, of the deltas in {deltas:,}"
                + (f", what averaging lost in {averages:,}" if averages else "")
            )


def _norm_differences(where: str, line: RoundLine, norms: Norms) -> Iterator[Difference]:
    step = line.update_norm
    if step is None or not math.isclose(norms.update, step, rel_tol=CLOSE, abs_tol=norms.rounding):
        yield Difference(where, "update_norm", line.update_norm, norms.update, "the adapters of the rounds")
    if line.average is not None and norms.average is not None:
        for item in fields(AverageLoss):
            should, has = (getattr(one, item.name) for one in (norms.average, line.average))
            if should != has and (should is None or has is None or not math.isclose(should, has, **AVERAGE_CLOSE)):
                yield Difference(where, f"{item.name} of average", has, should, "the deltas of the round")
    if norms.deltas and norms.layers_known:
        if (line.average is None) != (norms.average is None):
            yield Difference(where, "average", plain(line.average), plain(norms.average), "the deltas of the round")
        if not _is_furthest(line.factors, norms.factors):
            ratios = {bank: round(ratio, 6) for bank, ratio in norms.factors.items()}
            yield Difference(where, "factors", plain(line.factors), ratios or None, "the deltas of the round")
    for entry in line.banks:
        if entry.bank in norms.deltas and not same(norms.deltas[entry.bank], entry.delta_norm):
            yield Difference(
                where, f"delta_norm of {entry.bank}", entry.delta_norm, norms.deltas[entry.bank], "its delta"
            )


def _is_furthest(said: FactorLength | None, ratios: Mapping[str, float]) -> bool:
    """Whether the named bank is the furthest but for a rounding, in which two equal banks may change places."""
    if said is None or not ratios:
        return said is None and not ratios
    own, most = ratios.get(said.bank, math.nan), max(ratios.values())
    return all(math.isclose(ratio, said.ratio, **AVERAGE_CLOSE) for ratio in (own, most))


def check_samples(rounds: Mapping[int, Round], rules: Rules, found: Findings) -> None:
    """Who is asked follows from the seed. privacy=bank samples with the operating system's entropy."""
    rosters: dict[int, set[str]] = {}
    for one in rounds.values():
        rosters.setdefault(one.begin, set()).update(one.banks)
    for one in rounds.values():
        config, roster = one.config, rosters[one.begin]
        if config is None or config.privacy.mode == "bank":
            continue
        is_whole, count = config.strategy.fraction_train == 1, config.banks
        if config.dataset.source == "jsonl" and one.begin > 1:  # a deployed run may be resumed with other banks
            count = len(roster) if is_whole else 0
        if count and len(roster) > count:
            found.add(one.where, f"{len(roster)} banks were asked in all, and the run began with {count}")
            return
        if not count or (is_whole and len(one.banks) == count):
            continue
        if count > MOST_BANKS:
            found.add(one.where, f"its configuration has {plural(count, 'bank')}")
            return
        names = sorted(roster) if len(roster) == count else [str(number) for number in range(count)]
        sampled = rules.sampled(config, names, one.number)
        if len(sampled) != len(one.banks):
            found.add(
                one.where,
                f"round {one.number} asked {plural(len(one.banks), 'bank')}, and its configuration asks {len(sampled)} of {count}",  # noqa: E501
            )
        elif len(roster) == count and tuple(sampled) != one.banks:
            found.add(one.where, f"the banks of round {one.number} are not those that the run's seed samples")


def _values(where: str, bank: str, expected: Any, found: Any) -> list[Difference]:
    """The fields of two records of one kind that differ."""
    pairs = (
        (item.name, plain(getattr(expected, item.name)), plain(getattr(found, item.name))) for item in fields(expected)
    )
    return [
        Difference(where, f"{name} of {bank}", has, should, REPLIES)
        for name, should, has in pairs
        if not same(should, has)
    ]


def _not_accepted(part: BankPart, entry: BankEntry) -> BankEntry:
    """The entry of a bank whose reply was not accepted. A reason with figures of the reply is the aggregator's word."""
    head, reason, code = part.head, entry.reason, part.code
    if head.get("status") == "ok" or code == "signature":
        may: tuple[str, ...] = ("rejected",)
    elif head.get("status") == "error":
        may, reason = ("error",), reason_of(code)
    else:
        may = STATUS.get(code, ("error", "rejected"))
        reason = SAFE_REASONS[code] if code in SAFE_REASONS and entry.status == "error" else reason
    return BankEntry(entry.bank, entry.status if entry.status in may else may[0], code, reason)
