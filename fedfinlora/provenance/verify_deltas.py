"""Compute a run's rounds again from the deltas of strategy.keep_deltas: the same bytes must come out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError, plural
from fedfinlora.files import sha256_of
from fedfinlora.provenance.deltas import delta_file, start_file
from fedfinlora.provenance.evidence import NO_DELTA
from fedfinlora.provenance.findings import MOST_NAMED, Findings, Round
from fedfinlora.provenance.folder import file_bytes
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.provenance.rules import Rules, State
from fedfinlora.provenance.verify_rounds import Norms, reply_of
from fedfinlora.run.checkpoint import adapter_checksum
from fedfinlora.train.own_columns import foreign_rank


@dataclass(frozen=True)
class Computed:
    """What came of computing the rounds again."""

    norms: Mapping[int, Norms]
    """Round -> its norms, as far as there are all deltas."""
    state: State | None
    """After the last round; None unless every round was computed."""


def compute_again(
    run: Path,
    rounds: Mapping[int, Round],
    started: str | None,
    rules: Rules,
    found: Findings,
    on_step: Callable[[str], None],
) -> Computed:
    """Each round, as far as there are all deltas. `started` is the SHA-256 of the first adapter."""
    config = next((one.config for one in rounds.values()), None)
    kept = bool(config and config.strategy.keep_deltas)
    state = _first(run, config, rounds, started, rules, found) if kept else None
    norms: dict[int, Norms] = {}
    said: list[tuple[str, str]] = []
    for number, one in rounds.items():
        on_step(f"round {number:,} from its deltas")
        words = f"{plural(len(one.banks), 'bank')} asked"
        if one.asked or one.answered:
            words += f", {plural(one.asked, 'request')} and {plural(one.answered, 'reply', 'replies')} signed"
        if state is not None and config is not None:
            state = _again(run, number, one, config, state, rules, norms, found)
            done = f"aggregate and step computed again from {plural(len(one.accepted), 'delta')}"
            words += f", {done if state is not None else 'NOT computed again'}"
        else:
            words += ", NOT computed again" if kept else ", hashes only: its deltas were not kept"
            if one.config is not None and any(one.config.rank_of(bank) != one.config.peft.rank for bank in one.banks):
                words += ", so which ranks they moved is not checked"
        said.append((words, one.adapter_sha256))
    found.checked += _folded(said, next(iter(rounds), 1))
    return Computed(norms, state)


def _folded(said: Sequence[tuple[str, str]], first: int) -> Iterator[str]:
    """(words on a round, its adapter) -> a line a round, or one for many of which the same is said."""
    number = first
    for words, group in itertools.groupby(said, key=lambda one: one[0]):
        adapters = [adapter for _, adapter in group]
        if len(adapters) > MOST_NAMED:
            yield (
                f"rounds {number} to {number + len(adapters) - 1}: each {words}; the last adapter is "
                f"{adapters[-1][:16]}"
            )
        else:
            yield from (
                f"round {number + place}: {words}, adapter {adapter[:16]}" for place, adapter in enumerate(adapters)
            )
        number += len(adapters)


def _first(
    run: Path, config: Config | None, rounds: Mapping[int, Round], started: str | None, rules: Rules, found: Findings
) -> State | None:
    vector = _vector(start_file(run), started, found)
    if vector is None or config is None:
        return None
    try:
        return rules.first_state(config, vector, next(iter(rounds.values())).line.request.get("layout-id", ""))
    except UserError as error:
        found.checked.append(f"not computed again: {error}")
        return None


def _again(
    run: Path,
    number: int,
    one: Round,
    config: Config,
    state: State,
    rules: Rules,
    norms: dict[int, Norms],
    found: Findings,
) -> State | None:
    replies, line = [], one.line
    layout_id = str(line.request.get("layout-id", ""))
    part = rules.part(config, number, layout_id)
    for bank in one.accepted:
        delta = _vector(delta_file(run, number, bank), line.banks[bank].delta_sha256, found)
        if delta is None or (part and delta.size != part.size):
            return None
        if part is None and config.rank_of(bank) != config.peft.rank:
            layout = rules.layout(layout_id)
            if layout is None or layout.size != delta.size:
                found.not_proven(one.where, f"which ranks {bank} moved: no saved adapter shows the layers")
            elif fault := foreign_rank(delta, state.adapter, layout, config, bank):
                found.add(one.where, f"round {number} averaged what its server had to refuse of {bank}: {fault}")
        delta = part.whole(delta) if part else delta
        try:
            replies.append(reply_of(bank, line.banks[bank], config, delta))
        except (LookupError, TypeError, ValueError, OverflowError):
            return None  # `check_rounds` names it
    if not replies:  # `check_attempt` names it
        return None
    try:
        following = rules.step(config, state, replies)
    except (UserError, ValueError, KeyError, TypeError) as error:
        found.add(one.where, f"round {number} cannot be computed again: {str(error) or type(error).__name__}")
        return None
    sha256 = adapter_checksum(following.adapter)
    if sha256 != one.adapter_sha256:
        found.add(one.where, f"round {number}: the kept deltas give another adapter, {sha256[:16]}")
        return None
    lengths = {reply.bank: reply.delta_norm for reply in replies}
    norms[number] = Norms(
        following.step_norm,
        deltas=lengths,
        average=rules.average(config, state, following, replies),
        factors=rules.factors(config, state, layout_id, replies),
        layers_known=rules.layout(layout_id) is not None,
    )
    return following


def _vector(file: Path, sha256: str | None, found: Findings) -> Any:
    """(size,) float32; None where it is not what the chain says."""
    try:
        content = file_bytes(file)
    except OSError as error:
        found.add(file, f"cannot be read ({error.strerror})")
        return None
    if sha256_of(content) != (sha256 or NO_DELTA):
        found.add(file, f"it is not what {CHAIN_FILE} says")
        return None
    return np.frombuffer(content, "<f4").astype(np.float32)
