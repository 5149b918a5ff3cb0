"""The summary: what was tested, what the figures say, what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedfinlora.report.cautions import cautions
from fedfinlora.report.content import Content
from fedfinlora.report.formats import count, listed, plural, points, seconds
from fedfinlora.report.general_knowledge import knowledge_sentences
from fedfinlora.report.reading import Run, best_round
from fedfinlora.report.scores import common_accuracy_keys
from fedfinlora.report.systems import System
from fedfinlora.report.verdict import setting


def cards(content: Content) -> dict[str, list[str]]:
    """Title -> sentences."""
    found = {
        "What was tested": _tested(content),
        "What the figures say": [
            *_findings(content.systems),
            *(sentence for run in content.runs for sentence in knowledge_sentences(run)),
        ],
        "What is missing": _missing(content),
        "Read with care": cautions(content.systems),
    }
    return {title: sentences for title, sentences in found.items() if sentences}


def _tested(content: Content) -> list[str]:
    runs, systems, catalogue = content.runs, content.systems, content.catalogue
    scored = [item.key for item in catalogue if any(item.key in system.scores for system in systems)]
    ns = [score.n for system in systems for score in system.scores.values() if score.n]
    facts = [f"{plural(len(systems), 'system')}: {listed([system.heading for system in systems])}."] if systems else []
    if scored:
        span = f"{count(min(ns))} to {count(max(ns))}" if ns and min(ns) != max(ns) else count(ns[0] if ns else None)
        facts.append(
            f"{len(scored)} of {len(catalogue)} benchmarks, {span} {'answer' if span == '1' else 'answers'} each."
        )
    facts.append(f"Model: {listed(list(dict.fromkeys(run.model for run in runs)))}.")
    for run in runs:
        if run.mode == "federated" and run.result.rows_trained:
            facts.append(
                f"{setting(run)}: {count(run.result.rows_trained)} rows trained in {seconds(run.result.wall_s.total)}."
            )
        kept, early = run.result.final_round, run.result.stopped_early_after_round
        if early is not None:
            facts.append(f"{run.name} stopped early after round {early}: the validation score no longer rose.")
        if kept is not None and kept == best_round(run) and kept != len(run.rounds):
            facts.append(
                f"The final adapter of {run.name} is that of round {kept}, the best on the public validation rows."
            )
        epsilon = run.privacy.epsilon if run.privacy else None
        if epsilon is not None:
            delta = run.privacy.delta if run.privacy else None
            facts.append(
                f"Differential privacy in {run.name}: ε = {epsilon:.3g}" + (f", δ = {delta:.1g}." if delta else ".")
            )
    shots = {item.shots for run in runs for item in run.evaluations.values()}
    if shots - {0}:
        facts.append(f"Solved examples in front of each prompt: {listed([str(shot) for shot in sorted(shots)])}.")
    return facts


def _findings(systems: Sequence[System]) -> list[str]:
    """For each system its gain on base, and on how many benchmarks the two intervals lie apart."""
    found = []
    for system in systems:
        base = system.base
        keys = common_accuracy_keys([base, system], base.scores) if base else []
        if base is None or not keys:
            continue
        gain = (system.accuracy(keys) or 0.0) - (base.accuracy(keys) or 0.0)
        sentence = f"{system.heading}: {points(gain)} points over base on the mean of {plural(len(keys), 'benchmark')}"
        if any(system.scores[key].of_banks for key in keys):
            found.append(f"{sentence} (mean of the banks).")
            continue
        clear = Counter(
            "better" if (system.gain(key) or 0) > 0 else "worse" for key in keys if system.clearly_differs(key)
        )
        undecided = len(keys) - clear.total()
        found.append(
            f"{sentence}; clearly better on {clear['better']}, clearly worse on {clear['worse']}, undecided on "
            f"{undecided}."
        )
    return found


def _missing(content: Content) -> list[str]:
    runs, systems, titles = content.runs, content.systems, content.titles
    scored = {key for system in systems for key in system.scores}
    reasons: dict[str, list[str]] = {}
    for key, title in titles.items():
        if key not in scored:
            reasons.setdefault(content.skipped.get(key, "not asked for"), []).append(title)
    found = [f"{listed(names)}: {reason.rstrip('.')}." for reason, names in reasons.items()]
    kinds = {system.kind for system in systems}
    for system in systems:
        gaps = [titles.get(key, key) for key in titles if key in scored and key not in system.scores]
        if gaps:
            found.append(f"{system.heading} was not scored on {listed(gaps)}.")
    if systems and "base" not in kinds:
        found.append("The base model was not scored, so no change is shown.")
    if "federated" in kinds:
        absent = [
            word
            for kind, word in (("centralized", "all rows pooled"), ("local", "each bank alone"))
            if kind not in kinds
        ]
        if absent:
            found.append(f"No run of {listed(absent)} is here: what federating costs or gains is unknown.")
    found += _other_bases(runs, systems)
    prefix = len(runs) > 1
    found += [f"{run.name}: {sentence}" if prefix else sentence for run in runs for sentence in run.missing]
    return found or ["Nothing that a complete report has."]


def _other_bases(runs: Sequence[Run], systems: Sequence[System]) -> list[str]:
    """Runs whose scores of the base model differ from those shown, which are the first found."""
    found = []
    for run in runs:
        base = next((system for system in systems if system.kind == "base" and system.model == run.model), None)
        shown = {key: score.metrics[0] for key, score in base.scores.items()} if base else {}
        pairs = [(own, shown[key]) for key, own in run.scores.get("base", {}).items() if key in shown]
        if any((own.n, own.unparsed, own.estimates) != (one.n, one.unparsed, one.estimates) for own, one in pairs):
            found.append(f"{run.name} scored the base model otherwise than shown; report on it alone to see how.")
    return found
