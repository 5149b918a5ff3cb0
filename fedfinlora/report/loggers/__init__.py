"""A run's scalars in experiment trackers too: `loggers=[mlflow]`, with wandb and trackio.

All three write into the run's folder, `<run>/state/loggers/NAME/`, and send nothing: what an address or a key in the
environment would ask for is left aside. They get the scalars that TensorBoard gets and a few settings by name (FACTS),
no row, no path, no other setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.report.tensorboard import TensorBoardWriter

FOLDER = Path("state") / "loggers"
"""Below `state/`, which a run's chain of records leaves aside: `wandb sync` and the like write there later."""
PROJECT = "fedfinlora"
PACKAGES = {"mlflow": "mlflow", "trackio": "trackio", "wandb": "wandb"}
"""Logger -> the module that it needs; also the name of its extra."""
FACTS: Mapping[str, Callable[[Config], str | int | float]] = {
    "model": lambda config: config.model.name,
    "quantization": lambda config: config.model.quantization,
    "peft": lambda config: config.peft.method,
    "rank": lambda config: config.peft.rank,
    "strategy": lambda config: config.strategy.name,
    "privacy": lambda config: config.privacy.mode,
    "rounds": lambda config: config.num_server_rounds,
    "banks": lambda config: config.banks,
    "seed": lambda config: config.seed,
}
"""Name -> setting. The only settings that leave for a logger."""


class Logger(Protocol):
    """One tracker, opened for one run."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Write tag -> value at a step (the round, 0 for the base model)."""
        ...

    def close(self) -> None: ...


def require_loggers(names: Sequence[str]) -> None:
    """Raise UserError, which names what to install, for a logger whose package is missing. Loads nothing."""
    for name in names:
        try:
            found = find_spec(PACKAGES[name]) is not None
        except ValueError:
            found = False
        if not found:
            raise UserError(f"loggers={name} needs a package. Install it with: pip install 'fedfinlora[{name}]'")


class Board(TensorBoardWriter):
    """TensorBoard and the loggers of a run. A logger that fails is named once and dropped; the run goes on."""

    def __init__(self, run_dir: Path, config: Config, notify: Callable[[str], None] = print) -> None:
        super().__init__(run_dir, notify)
        self._notify = notify
        self._loggers: dict[str, Logger] = {}
        facts = {name: of(config) for name, of in FACTS.items()}
        for name in config.loggers:
            self._guarded(name, partial(self._begin, name, run_dir, facts))

    def close(self) -> None:
        super().close()
        for name, logger in list(self._loggers.items()):
            self._guarded(name, logger.close)
        self._loggers.clear()

    def _add(self, scalars: Iterator[tuple[str, float]], step: int) -> None:
        found = dict(scalars)
        super()._add(iter(found.items()), step)
        for name, logger in list(self._loggers.items()) if found else ():
            self._guarded(name, partial(logger.log, found, step))

    def _begin(self, name: str, run_dir: Path, facts: Mapping[str, Any]) -> None:
        folder = run_dir / FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        self._loggers[name] = import_module(f"{__name__}.{name}_logger").open_logger(folder, run_dir.name, facts)

    def _guarded(self, name: str, call: Callable[[], object]) -> None:
        """Call it; an error of the tracker's, of any kind, ends the tracker and not the run."""
        try:
            call()
        except Exception as error:
            self._loggers.pop(name, None)
            self._notify(
                f"{name} is off for the rest of this run ({type(error).__name__}); the run continues without it"
            )
