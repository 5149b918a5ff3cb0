"""The forgetting check in the report: what the base model and the adapter know apart from finance."""

from __future__ import annotations

from fedfinlora.report.formats import percent, plural, points
from fedfinlora.report.reading import Run, of_a_round
from fedfinlora.run.general_knowledge import GeneralKnowledge, read_general_knowledge


def knowledge_sentences(run: Run) -> list[str]:
    """A sentence for each evaluation that asked the questions: its share, and the change from base where both did."""
    found = {label: read_general_knowledge(run.folder, label) for label in run.evaluations if not of_a_round(label)}
    known = {label: one for label, one in found.items() if one is not None and one.questions}
    base = known.pop("base", None)
    sentences = [_sentence(run, "base", base)] if base and not known else []
    return sentences + [_sentence(run, label, one, base) for label, one in known.items()]


def _sentence(run: Run, label: str, found: GeneralKnowledge, base: GeneralKnowledge | None = None) -> str:
    low, high = found.accuracy_ci95 or (None, None)
    said = (
        f"General knowledge, {run.name} {label}: {percent(found.accuracy)} % of {plural(found.questions, 'question')} "
        f"outside finance right (95 % interval {percent(low)} to {percent(high)})"
    )
    if base is None or len(base.correct) != len(found.correct):
        return f"{said}."
    lost = sum(before and not after for before, after in zip(base.correct, found.correct, strict=True))
    gained = sum(after and not before for before, after in zip(base.correct, found.correct, strict=True))
    change = points((found.accuracy or 0.0) - (base.accuracy or 0.0))
    return f"{said}; {change} points against base: {lost} forgotten, {gained} gained."
