"""eval/<label>/general_knowledge.json: what a model knows apart from finance, before and after it was tuned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfinlora.errors import UserError
from fedfinlora.files import read_json, write_json
from fedfinlora.run.typed import from_json, to_json

FILE = "general_knowledge.json"


@dataclass(frozen=True, slots=True)
class GeneralKnowledge:
    """The questions of `data.general_knowledge`, answered by the option that the model holds most likely."""

    questions: int = 0
    right: int = 0
    accuracy: float | None = None
    accuracy_ci95: tuple[float, ...] | None = None
    """Wilson's interval."""
    right_logprob: float | None = None
    """Mean log-probability of the right option, nats: it falls before answers change."""
    correct: tuple[bool, ...] = ()
    """By question."""


def write_general_knowledge(folder: Path, found: GeneralKnowledge) -> None:
    write_json(folder / FILE, to_json(found))


def read_general_knowledge(run: Path, label: str) -> GeneralKnowledge | None:
    """What was measured under a label; None where nothing was, or where the file cannot be read."""
    file = run / "eval" / label / FILE
    if not file.is_file():
        return None
    try:
        return from_json(GeneralKnowledge, read_json(file), FILE)
    except UserError:
        return None
