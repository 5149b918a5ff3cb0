"""What a run says in Flower's own stream (`flwr run . --stream`, `flwr log RUN_ID`), where no command of ours follows
it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfinlora.config.words import typed_keys
from fedfinlora.provenance.enrolled import enrolled_banks
from fedfinlora.run.events import Event
from fedfinlora.run.progress import ShownEvents
from fedfinlora.run.progress_lines import PlainProgress

log = logging.getLogger("fedfinlora.server")
QUICK = "quick"
"""pyproject.toml's evaluation of a run that is started by Flower's command alone; ours ask for conf/'s."""
GROUPS = ("model", "peft", "dataset", "partition", "strategy", "privacy", "evaluation")
OURS = "FEDFINLORA_BANK_STATE"
"""In the environment where `simulate` has started Flower."""


def asked_groups(run_config: Mapping[str, Any], words: Sequence[str]) -> dict[str, str]:
    """Configuration group -> option, where one is asked for. The default evaluation gives way to an experiment, to an
    evaluation among `words`, and to what a resumed run did.
    """
    found = {group: str(run_config[group]) for group in GROUPS if run_config.get(group)}
    named = typed_keys(words)
    if found.get("evaluation") == QUICK and (run_config.get("resume") or named & {"evaluation", "experiment"}):
        del found["evaluation"]
    return found


def logged_events(file: Path) -> ShownEvents:
    """A writer of progress.jsonl that also logs a line a step."""
    plain = PlainProgress()

    def show(event: Event) -> None:
        if line := plain.take(event):
            log.info("%s", line)

    return ShownEvents(file, show)


def say_first(run_id: int, run_config: Mapping[str, Any]) -> None:
    """How to follow and stop a run, and what of it is evaluated, before anything takes time. Nothing where a command of
    ours does that.
    """
    if OURS in os.environ or enrolled_banks() is not None:
        return
    log.info("follow: flwr log %d   stop: flwr stop %d   what runs: flwr ls", run_id, run_id)
    log.info(
        (
            "Ctrl-C here leaves the run running. Flower's local SuperLink stays after it, for later runs; to end it: "
            "kill "
            "%d"
        ),
        _superlink(),
    )
    if str(run_config.get("evaluation", "")) == QUICK and not run_config.get("resume"):
        log.info(
            "evaluation: a few rows of a few benchmarks (evaluation=quick, the default here). Everything: flwr run . "
            "--stream --run-config "
            "\"evaluation='full'\", or later: python -m fedfinlora evaluate evaluation=full --adapter "
            "RUN_FOLDER/adapters/final"
        )


def _superlink() -> int:
    """The process of the SuperLink that this one descends from; 0 if there is none."""
    import psutil

    for process in psutil.Process().parents():
        if any("flower-superlink" in word for word in process.cmdline()):
            return int(process.pid)
    return 0
