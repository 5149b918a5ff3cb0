"""The server's and the evaluator's own functions, which are above this package: the command hands them in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import Layout
from fedfinlora.model.parts import Part
from fedfinlora.provenance.compared import Difference
from fedfinlora.run.records import AverageLoss, BankEntry, BankTimings, RoundLine, Synchronisation
from fedfinlora.wire.messages import Figures, Reply


class State(Protocol):
    """What passes from round to round."""

    @property
    def round(self) -> int:
        """Rounds done."""

    @property
    def adapter(self) -> Any:
        """(size,) float32."""

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """What the server's rule remembers."""

    @property
    def step_norm(self) -> float:
        """Euclidean norm of the last step."""


class Plan(Protocol):
    """How a round of strategy.sync=drift ends, and who needs the global adapter in it."""

    @property
    def averaged(self) -> bool:
        """Whether it ends with an average."""

    @property
    def at_work(self) -> frozenset[str]:
        """Banks that are asked without the global adapter."""

    def said(self, line: RoundLine, size_bytes: int, length: float) -> Synchronisation:
        """What the round's line says, of a global adapter of so many bytes and with this Euclidean norm."""


class Rules(Protocol):
    """The functions that have made a run's folder. Replies are those accepted, by name."""

    def first_state(self, config: Config, adapter: Any, layout_id: str) -> State:
        """Before the first round. UserError where it begins with another run's moments, which is not here."""

    def step(self, config: Config, state: State, replies: Sequence[Reply]) -> State:
        """After one more round."""

    def part(self, config: Config, number: int, layout_id: str) -> Part | None:
        """What banks send in a round; None = whole updates."""

    def layout(self, layout_id: str) -> Layout | None:
        """The layout of this id; None where no saved adapter has it."""

    def plan(self, config: Config, number: int, last: RoundLine | None) -> Plan:
        """Of a round of strategy.sync=drift, after the line of the round before, where no bank has lost its adapter."""

    def lost(self, number: int) -> frozenset[str]:
        """The banks that have lost theirs in a round, as far as the run's folder still says: a repeated round sends
        them the global one.
        """

    def average(self, config: Config, before: State, after: State, replies: Sequence[Reply]) -> AverageLoss | None:
        """What the average of a round has lost; None where the run does not measure it, or cannot."""

    def factors(self, config: Config, before: State, layout_id: str, replies: Sequence[Reply]) -> dict[str, float]:
        """Bank -> how far it moved its factors (`RoundLine.factors`); {} where fewer than two are measured."""

    def weights(self, config: Config, replies: Sequence[Reply]) -> list[float]:
        """In the mean."""

    def sampled(self, config: Config, banks: Sequence[str], number: int) -> list[str]:
        """The banks that a round asks, of all."""

    def entry(self, reply: Reply) -> BankEntry:
        """A bank's part of a line of rounds.jsonl."""

    def timing(self, figures: Figures) -> BankTimings:
        """What a reply says of its own times."""

    def line(self, config: Config, number: int, entries: Sequence[BankEntry], replies: Sequence[Reply]) -> RoundLine:
        """A line of rounds.jsonl but for the norm of the step, times and scores."""

    def least_spent(self, config: Config, rounds: int) -> tuple[float, float, float]:
        """(epsilon planned, least epsilon spent after so many rounds, delta) under privacy=bank. The server's ledger
        also has what came before the run.
        """

    def scores(self, run: Path, lines: Sequence[RoundLine]) -> Iterator[Difference | str]:
        """What in eval/ does not follow from the scored rows, and sentences on what could not be computed."""
