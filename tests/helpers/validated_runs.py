"""Runs of both kinds with both apps in this process, as the tests of public validation start them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fake_grid import FakeGrid, simulated_banks

from fedfinlora.commands.baselines import centralized
from fedfinlora.compose import compose
from server_app.federated import run_federated


def federated(words: Sequence[str], states: Path) -> Path:
    config = compose(words)
    return run_federated(FakeGrid(simulated_banks(config.banks, states)), config)


def start(mode: str, words: Sequence[str], states: Path) -> Path:
    """A run of one of the two modes; its folder."""
    if mode == "federated":
        return federated(words, states)
    assert centralized(words) == 0
    config = compose(words)
    return Path(config.output_dir) / config.run_name
