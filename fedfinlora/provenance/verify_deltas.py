"""Compute a run's rounds again from the deltas that strategy.keep_deltas kept: the same bytes must come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.provenance.deltas import delta_file, start_file
from fedfinlora.provenance.evidence import NO_DELTA
from fedfinlora.provenance.findings import Findings, Round
from fedfinlora.provenance.folder import file_bytes
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.runfolder import sha256_of

Step = Callable[[Config, Any, Sequence[tuple[str, Mapping[str, Any], Any]]], tuple[Any, str]]
"""(configuration, state before the round, (bank, figures, delta) of each accepted bank by name) -> (state after it, SHA-256 of its adapter)."""


def compute_again(
    run: Path, rounds: Mapping[int, Round], started: str | None, step: Step | None, first_state: Any, found: Findings
) -> None:
    """Each round, as far as there are all deltas; what could not be computed is said. `started` is the SHA-256 of the first adapter."""
    config = next((one.config for one in rounds.values()), None)
    kept = bool(config and config.strategy.keep_deltas)
    state = _first(run, config, rounds, started, first_state, found) if kept else None
    for number, one in sorted(rounds.items()):
        words = [f"round {number}: {len(one.line.banks)} banks asked"]
        if one.asked or one.answered:
            words.append(f"{one.asked} requests and {one.answered} replies signed")
        if state is not None and config is not None and step is not None:
            state = _again(run, number, one, config, state, step, found)
            words.append(
                "NOT computed again"
                if state is None
                else f"aggregate and step computed again from {len(one.line.accepted)} deltas"
            )
        else:
            words.append("NOT computed again" if kept else "hashes only: its deltas were not kept")
        found.checked.append(f"{', '.join(words)}, adapter {one.line.adapter_sha256[:16]}")


def _first(
    run: Path, config: Config | None, rounds: Mapping[int, Round], started: str | None, first_state: Any, found: Findings
) -> Any:
    vector = _vector(start_file(run), started, found)
    if vector is None or first_state is None:
        return None
    try:
        return first_state(config, vector, next(iter(rounds.values())).line.request.get("layout-id", ""))
    except UserError as error:
        found.checked.append(f"not computed again: {error}")
        return None


def _again(run: Path, number: int, one: Round, config: Config, state: Any, step: Step, found: Findings) -> Any:
    replies = []
    for bank in one.line.accepted:
        part = one.line.banks[bank]
        delta = _vector(delta_file(run, number, bank), part.delta_sha256, found)
        if delta is None:
            return None
        replies.append((bank, part.figures, delta))
    try:
        following, sha256 = step(config, state, replies)
    except (UserError, ValueError, KeyError, TypeError) as error:
        found.add(one.where, f"round {number} cannot be computed again ({type(error).__name__})")
        return None
    if sha256 != one.line.adapter_sha256:
        found.add(one.where, f"round {number}: the kept deltas give another adapter, {sha256[:16]}")
        return None
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
