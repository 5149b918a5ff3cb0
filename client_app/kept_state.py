"""What a bank keeps of a run on its own disk, `STATE/RUN/BANK/round_NNNN.safetensors`: Adam's moments, SCAFFOLD's
control variate or fedadamw_local's last global adapter, after each of the last rounds; in `local_NNNN.safetensors` the
adapter that it trains on between two averages (strategy.sync=drift).

A repeated round starts from the same moments. A bank does not learn that a run has ended, so when it begins another it
forgets those not asked about for longest (`forget_old_runs`). Ledger and history are elsewhere and are never forgotten.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from client_app.control import Control
from client_app.global_step import LastGlobal
from client_app.local_rounds import LocalAdapter
from fedfinlora.errors import UserError
from fedfinlora.files import write_bytes
from fedfinlora.system.numbered import by_number, number_of
from fedfinlora.train.optimizers import OptimizerState
from fedfinlora.wire.messages import BankError

log = logging.getLogger("fedfinlora.bank")
Kept = TypeVar("Kept")
FILES, LOCAL_FILES = "round_*.safetensors", "local_*.safetensors"
KEPT_STATES = 4
"""The server keeps two checkpoints, so it may ask for the round after the older of them again."""
KEPT_RUNS = 8
"""Runs whose moments a bank keeps. For Llama 3.1 8B at rank 8 a run has 4 files of 38 MB."""
KEPT_DAYS = 30.0
"""Moments of a run that the bank was not asked about for so long go too."""
ALWAYS_KEPT_DAYS = 1.0
"""A run that the bank was asked about within a day is always kept: it may still be running."""


def load_moments(folder: Path, round_number: int) -> OptimizerState | None:
    """The newest moments from before this round; None at the start of a run."""
    return _load(
        folder,
        round_number,
        "the optimiser begins",
        lambda _, kept: OptimizerState(kept["first_moment"], kept["second_moment"], int(kept["steps"][0])),
    )


def save_moments(folder: Path, round_number: int, state: OptimizerState) -> None:
    """Keep the moments after a round, and of a run's others the last ones. BankError where the disk does not take
    them.
    """
    values = {
        "first_moment": state.first_moment,
        "second_moment": state.second_moment,
        "steps": np.array([state.steps]),
    }
    _save(folder, round_number, values)


def load_control(folder: Path, round_number: int) -> Control | None:
    """What SCAFFOLD keeps, from the newest round before this one; None in a bank's first round."""
    return _load(
        folder,
        round_number,
        "its control variate is zero in",
        lambda number, kept: Control(number, kept["control"], kept["adapter"], int(kept["steps"][0])),
    )


def save_control(folder: Path, control: Control) -> None:
    """Keep it after its round. BankError where the disk does not take it."""
    values = {"control": control.own, "adapter": control.adapter, "steps": np.array([control.steps])}
    _save(folder, control.round, values)


def load_global(folder: Path, round_number: int) -> LastGlobal | None:
    """What fedadamw_local keeps, from the newest round before this one; None in a bank's first round."""
    return _load(
        folder,
        round_number,
        "no global step pulls in",
        lambda number, kept: LastGlobal(number, kept["adapter"], float(kept["rates"][0])),
    )


def save_global(folder: Path, last: LastGlobal) -> None:
    """Keep it after its round. BankError where the disk does not take it."""
    _save(folder, last.round, {"adapter": last.adapter, "rates": np.array([last.rates])})


def load_local(folder: Path, round_number: int) -> LocalAdapter | None:
    """The bank's own adapter after the round before this one, and no older: None where it is not there or damaged."""
    file = folder / LOCAL_FILES.replace("*", f"{round_number - 1:04d}")
    try:
        kept = load_file(file)
        return LocalAdapter(kept["adapter"], kept["reference"])
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, OSError) as error:
        log.warning("%s is damaged (%s)", file, error)
        return None


def save_local(folder: Path, round_number: int, local: LocalAdapter) -> None:
    """Keep it after its round. BankError where the disk does not take it."""
    _save(folder, round_number, {"adapter": local.adapter, "reference": local.reference}, LOCAL_FILES)


def _load(
    folder: Path, round_number: int, otherwise: str, made: Callable[[int, Mapping[str, NDArray[Any]]], Kept]
) -> Kept | None:
    """What `made` makes of the newest state from before this round; `otherwise` says what its absence means."""
    for file in by_number(folder, FILES)[::-1]:
        if number_of(file) >= round_number:
            continue
        try:
            return made(number_of(file), load_file(file))
        except (SafetensorError, KeyError, OSError) as error:
            log.warning("%s is damaged (%s); trying an older one", file, error)
    if round_number > 1:
        log.warning("no state in %s: %s round %d again", folder, otherwise, round_number)
    return None


def _save(folder: Path, round_number: int, values: Mapping[str, NDArray[Any]], files: str = FILES) -> None:
    try:
        new = not folder.exists()
        write_bytes(folder / files.replace("*", f"{round_number:04d}"), save(dict(values)))
        for old in by_number(folder, files)[:-KEPT_STATES]:
            old.unlink(missing_ok=True)
        if new:
            forget_old_runs(folder.parents[1], folder.name)
    except (UserError, OSError) as error:
        raise BankError("disk", str(error)) from error


def forget_old_runs(
    state_folder: Path,
    bank: str,
    kept_runs: int = KEPT_RUNS,
    kept_days: float = KEPT_DAYS,
    always_kept_days: float = ALWAYS_KEPT_DAYS,
) -> list[Path]:
    """Remove the moments of runs beyond the limits, those first that were not used for longest. Returns the folders
    that went.
    """
    now = time.time()
    used: dict[Path, float] = {}
    for folder in state_folder.glob(f"*/{bank}"):
        files = [*by_number(folder, FILES), *by_number(folder, LOCAL_FILES)]
        if files and {path.name for path in folder.iterdir()} <= {
            path.name for path in files
        }:  # a folder of ours, and nothing else in it
            used[folder] = max(file.stat().st_mtime for file in files)
    gone = []
    for place, folder in enumerate(sorted(used, key=lambda folder: used[folder], reverse=True)):
        days = (now - used[folder]) / 86400
        if days > kept_days or (place >= kept_runs and days > always_kept_days):
            shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
            log.info("%s: the moments of %s are forgotten, last used %.0f days ago", bank, folder.parent.name, days)
            gone.append(folder)
    return gone
