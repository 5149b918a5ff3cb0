"""Why a federated run scores below a pooled one, for the command `explain`."""

from __future__ import annotations

from fedfinlora.report.contributions import points, turned
from fedfinlora.report.tables import Table
from fedfinlora.run.evaluation import Estimate
from fedfinlora.run.explanation import Cause, Explanation


def explanation_table(found: Explanation) -> Table:
    """The causes, then their sum, in percentage points."""
    rows = [[one.name, points(one.effect), one.title] for one in found.causes]
    rows.append(["all together", points(found.difference), f"{found.federated} minus {found.pooled}"])
    rows += [[f"({one.name})", points(one.effect), one.title] for one in found.replays]
    return Table("Causes", ("Cause", "Effect, points", "What changed"), rows, words=("What changed",))


def explanation_lines(found: Explanation) -> list[str]:
    """How to read the table, and what to change."""
    said = [
        f"On {found.rows:,} rows of {', '.join(found.benchmarks)}; 95 % intervals over rows in brackets. Each line "
        "adds one change to those above it, and the lines add up. In brackets: what another mean would have given, "
        "which is not added."
    ]
    said += _advice(found)
    said += [f"not computed: {one}" for one in found.unknown]
    return said


def _advice(found: Explanation) -> list[str]:
    """The largest loss whose interval excludes zero, else that rows do not show any."""
    losses = sorted((one for one in found.causes if _is_loss(one.effect)), key=lambda one: one.effect.value or 0.0)
    gains = [one for one in found.replays if _is_loss(turned(one.effect))]
    if not losses and not gains:
        return ["No cause is a loss beyond its interval: score more rows, or more seeds, before changing anything."]
    return [_sentence(one) for one in (*losses, *gains)]


def _sentence(one: Cause) -> str:
    return f"{one.name}: {points(one.effect)}. To change it: {one.advice}."


def _is_loss(effect: Estimate) -> bool:
    return effect.high is not None and effect.high < 0
