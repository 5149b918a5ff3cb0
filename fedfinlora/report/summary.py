"""The first page, for whoever has to decide: verdict, what was tested, what is missing, and what to be careful about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedfinlora.report.charts import Interval, IntervalRow, interval_chart
from fedfinlora.report.drawing import Chart, figure
from fedfinlora.report.markup import count, listed, percent, plural, points, seconds, text
from fedfinlora.report.reading import Run
from fedfinlora.report.scores import (
    MODES,
    BenchmarkInfo,
    System,
    base_of,
    by_group,
    change,
    common_accuracy_keys,
    intervals_apart,
    labels_systems,
    mean,
    mean_accuracy,
    mean_accuracy_bounds,
    score_of,
    system_slots,
)
from fedfinlora.run.evaluation import BenchmarkMetrics

SAME_ANSWER_SHARE = 0.95
FEWEST_ANSWERS = 20
"""Of fewer rows the same answer to all may be chance."""
FEW_ROWS = 100
"""Below this a 95 % interval is wider than about 20 points."""


def verdict(runs: Sequence[Run], systems: Sequence[System]) -> str:
    """One or two sentences with what the runs show, computed from their figures."""
    failures = [failure(run, alone=len(runs) == 1) for run in runs if run.status != "completed"]
    keys = common_accuracy_keys(systems, systems[0].scores if systems else ())
    setting = _setting(runs[0]) if len(runs) == 1 else ", ".join(dict.fromkeys(run.model for run in runs))
    if not keys:
        return " ".join([*failures, f"{setting}: {_label_scores(systems) or 'no accuracy to compare'}."])
    means = [(system, mean_accuracy(system, keys) or 0.0) for system in systems]
    over = f"over {plural(len(keys), 'benchmark')}"
    if len(systems) == 2 and systems[0].kind == "base":
        figures = f"mean accuracy {percent(means[0][1], 0)} % → {percent(means[1][1], 0)} % {over}"
    else:
        figures = f"mean accuracy {over}: " + ", ".join(
            f"{system.heading.lower()} {percent(value, 0)} %" for system, value in means
        )
    return " ".join([*failures, f"{setting}: {figures}.", *_gap(means)])


def _label_scores(systems: Sequence[System]) -> str:
    """The mean accuracies of the most probable label, where nothing was generated; "" without any."""
    ranked = labels_systems(systems)
    keys = [
        key
        for key in (ranked[0].scores if ranked else ())
        if all(_labels_accuracy(system, key) is not None for system in ranked)
    ]
    if not keys:
        return ""
    means = [
        f"{system.heading.lower()} {percent(mean(_labels_accuracy(system, key) for key in keys), 0)} %" for system in ranked
    ]
    return f"mean accuracy of the most probable label over {plural(len(keys), 'benchmark')}: {', '.join(means)}"


def _labels_accuracy(system: System, key: str) -> float | None:
    score = system.scores.get(key)
    return None if score is None else score.labels_accuracy


def _gap(means: Sequence[tuple[System, float]]) -> list[str]:
    """How far the federated adapter is from the one trained on all rows pooled."""
    by_kind: dict[str, float] = {}
    for system, value in means:
        by_kind.setdefault(system.kind, value)
    if "federated" not in by_kind or "centralized" not in by_kind:
        return []
    gap = by_kind["federated"] - by_kind["centralized"]
    side = "ahead of" if gap > 0 else "behind"
    return [f"Federated is {abs(100 * gap):.1f} points {side} centralized."]


def _setting(run: Run) -> str:
    rounds = run.result.rounds or len(run.rounds)
    banks = run.result.banks or len(run.banks)
    peft = "" if run.mode == "evaluate" else run.result.peft
    model = " ".join(filter(None, (run.model, peft)))
    counts = f"{plural(banks, 'bank')}, {plural(rounds, 'round')}, " if run.mode == "federated" else ""
    return counts + model


def failure(run: Run, alone: bool) -> str:
    """How a run that did not complete ended, in a sentence."""
    after = f" after {plural(len(run.rounds), 'round')}" if run.rounds else ""
    reason = f": {run.reason.rstrip('.')}" if run.reason else ""
    name = "The run" if alone else f"Run {run.name}"
    ended = {"failed": "failed", "stopped": "was stopped"}.get(run.status, "has not finished")
    return f"{name} {ended}{after}{reason}."


def warnings(runs: Sequence[Run]) -> str:
    """What has to be known before any figure is read."""
    banners = []
    synthetic = [run for run in runs if is_synthetic(run)]
    if synthetic:
        which = "Scores" if len(synthetic) == len(runs) else f"Scores of {listed([run.name for run in synthetic])}"
        said = f"{which} come from the bundled synthetic sample: they show that the machinery works, not quality."
        banners.append(_banner("Synthetic data", said, "warning"))
    for run in runs:
        if run.status != "completed":
            left = "What follows is what it left behind, and may be partial."
            banners.append(_banner("Not completed", f"{failure(run, alone=len(runs) == 1)} {left}", "failure"))
    trained = {run.mode: run.result.rows_trained for run in runs if run.mode in ("federated", "centralized")}
    if len(set(trained.values())) > 1:
        amounts = ", ".join(f"{MODES[mode].lower()} {count(rows)}" for mode, rows in trained.items())
        said = f"The runs did not train on the same number of rows: {amounts}."
        banners.append(_banner("Unequal budgets", said, "warning"))
    return "".join(banners)


def is_synthetic(run: Run) -> bool:
    """Whether the scores come from rows that were made up."""
    return run.result.synthetic or any(item.synthetic for item in run.evaluations.values())


def _banner(title: str, sentence: str, css_class: str) -> str:
    return f'<aside class="banner {css_class}" role="note"><b>{text(title)}</b><p>{text(sentence)}</p></aside>'


def summary_section(
    runs: Sequence[Run], systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], skipped: Mapping[str, str]
) -> str:
    """The overview figure beside what was tested, what is missing and what to read with care."""
    chart = overview_chart(systems, catalogue)
    cards = [
        _card("What was tested", _tested(runs, systems, catalogue)),
        _card("What the figures say", _findings(systems)),
        _card("What is missing", _missing(runs, systems, catalogue, skipped)),
        _card("Read with care", _cautions(systems)),
    ]
    drawn = figure(chart) if chart is not None else ""
    return f'<section id="summary"><h2>Summary</h2><div class="summary">{drawn}<div class="cards">{"".join(cards)}</div></div></section>'


def _card(title: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f"<div><h3>{text(title)}</h3><ul>{items}</ul></div>" if items else ""


def overview_chart(systems: Sequence[System], catalogue: Sequence[BenchmarkInfo]) -> Chart | None:
    """Mean accuracy of each system by group, over the sets that all of them have."""
    slots = system_slots(systems)
    named = {"All benchmarks": list(catalogue), **by_group(catalogue)}
    rows = []
    for title, benchmarks in named.items():
        keys = common_accuracy_keys(systems, [benchmark.key for benchmark in benchmarks])
        intervals = []
        for system, slot in zip(systems, slots, strict=True):
            value = mean_accuracy(system, keys)
            if value is not None:
                intervals.append(Interval(system.heading, value, *mean_accuracy_bounds(system, keys), slot))
        rows.append(IntervalRow(f"{title} ({plural(len(keys), 'set')})", intervals))
    return interval_chart("overview", "Mean accuracy by group", "with 95 % intervals", rows)


def _tested(runs: Sequence[Run], systems: Sequence[System], catalogue: Sequence[BenchmarkInfo]) -> list[str]:
    scored = [item.key for item in catalogue if any(item.key in system.scores for system in systems)]
    ns = [score.n for system in systems for score in system.scores.values() if score.n]
    facts = [f"{plural(len(systems), 'system')}: {listed([system.heading for system in systems])}."] if systems else []
    if scored:
        span = f"{count(min(ns))} to {count(max(ns))}" if ns and min(ns) != max(ns) else count(ns[0] if ns else None)
        facts.append(f"{len(scored)} of {len(catalogue)} benchmarks, {span} answers each.")
    facts.append(f"Model: {listed(list(dict.fromkeys(run.model for run in runs)))}.")
    for run in runs:
        if run.mode == "federated" and run.result.rows_trained:
            facts.append(
                f"{_setting(run)}: {count(run.result.rows_trained)} rows trained in {seconds(run.result.wall_s.total)}."
            )
        kept, early = run.result.final_round, run.result.stopped_early_after_round
        if early is not None:
            facts.append(f"{run.name} stopped early after round {early}: the validation score no longer rose.")
        if kept is not None and kept != len(run.rounds):
            facts.append(f"The final adapter of {run.name} is that of round {kept}, the best on the public validation rows.")
        epsilon = run.privacy.epsilon if run.privacy else None
        if epsilon is not None:
            delta = run.privacy.delta if run.privacy else None
            facts.append(f"Differential privacy in {run.name}: ε = {epsilon:.3g}" + (f", δ = {delta:.1g}." if delta else "."))
    shots = {item.shots for run in runs for item in run.evaluations.values()}
    if shots - {0}:
        facts.append(f"Solved examples in front of each prompt: {listed([str(shot) for shot in sorted(shots)])}.")
    return facts


def _findings(systems: Sequence[System]) -> list[str]:
    """For each system its gain on base, and on how many benchmarks the two intervals lie apart."""
    found = []
    for system in systems:
        base = base_of(system, systems)
        if system.kind == "base" or base is None:
            continue
        keys = common_accuracy_keys([base, system], base.scores)
        if not keys:
            continue
        gain = (mean_accuracy(system, keys) or 0.0) - (mean_accuracy(base, keys) or 0.0)
        sentence = f"{system.heading}: {points(gain)} points over base on the mean of {plural(len(keys), 'benchmark')}"
        if any(system.scores[key].spread_of_banks for key in keys):
            found.append(f"{sentence} (mean of the banks).")
            continue
        clear = Counter(
            "better" if (change(system.scores[key], base.scores[key]) or 0) > 0 else "worse"
            for key in keys
            if intervals_apart(system.scores[key], base.scores[key])
        )
        unsettled = len(keys) - clear.total()
        found.append(
            f"{sentence}; clearly better on {clear['better']}, clearly worse on {clear['worse']}, not settled on {unsettled}."
        )
    return found


def _missing(
    runs: Sequence[Run], systems: Sequence[System], catalogue: Sequence[BenchmarkInfo], skipped: Mapping[str, str]
) -> list[str]:
    titles = {item.key: item.title for item in catalogue}
    scored = {key for system in systems for key in system.scores}
    reasons: dict[str, list[str]] = {}
    for item in catalogue:
        if item.key not in scored:
            reasons.setdefault(skipped.get(item.key, "not asked for"), []).append(titles[item.key])
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
            word for kind, word in (("centralized", "all rows pooled"), ("local", "each bank alone")) if kind not in kinds
        ]
        if absent:
            found.append(f"No run of {listed(absent)} is here: what federating costs or gains cannot be told.")
    found += _other_bases(runs, systems)
    prefix = len(runs) > 1
    found += [f"{run.name}: {sentence}" if prefix else sentence for run in runs for sentence in run.missing]
    return found or ["Nothing that a complete report has."]


def _other_bases(runs: Sequence[Run], systems: Sequence[System]) -> list[str]:
    """One sentence for each run whose scores of the base model differ from those shown, which are the first found."""
    found = []
    for run in runs:
        base = next((system for system in systems if system.kind == "base" and system.model == run.model), None)
        own = {key: score_of(metrics) for key, metrics in run.scores.get("base", {}).items()}
        shown = {key: replace(base.scores[key], parts=()) for key in own if key in base.scores} if base is not None else {}
        if any(own[key] != score for key, score in shown.items()):
            found.append(f"{run.name} scored the base model otherwise than shown; report on it alone to see how.")
    return found


def _cautions(systems: Sequence[System]) -> list[str]:
    """Where the figures need care, the mildest included; what was checked and is in order is said too."""
    named = [(system, key, score) for system in systems for key, score in system.scores.items()]
    if not named:
        return []
    found = []
    few = sorted({score.n for _, _, score in named if 0 < score.n < FEW_ROWS})
    if few:
        sets = len({key for _, key, score in named if 0 < score.n < FEW_ROWS})
        found.append(
            f"Few rows: {plural(sets, 'benchmark')} with less than {FEW_ROWS} answers (as few as {few[0]}), so intervals are wide."
        )
    found += _unparsed(systems)
    found += _one_answer(systems)
    ambiguous = sum(score.ambiguous for _, _, score in named)
    if ambiguous:
        found.append(f"{plural(ambiguous, 'answer')} ambiguous by FinLoRA’s rules: its own verdict on them is left to chance.")
    metrics = [part for _, _, score in named for _, part in score.parts]
    known = [item.too_long for item in metrics if item.too_long is not None]
    if known:
        long = sum(known)
        found.append(
            f"{plural(long, 'prompt')} longer than the model’s context window."
            if long
            else "No prompt was cut: all fit the context window."
        )
    encoders = {score.encoder for _, _, score in named if score.bertscore and "finbert" not in score.encoder.lower()}
    if encoders:
        found.append(
            f"BERTScore by {listed(sorted(encoders))}: not comparable with published BERTScores, which used ProsusAI/finbert."
        )
    checks = [item.decoding for item in metrics if item.decoding and item.decoding.rows_checked]
    if checks:
        checked, differ = sum(one.rows_checked for one in checks), sum(one.rows_differ for one in checks)
        found.append(f"Of {count(checked)} answers decoded again one by one, {count(differ)} differ.")
    found.append("Published figures come from another model and other rows: orientation, not comparison.")
    return found


def _one_answer(systems: Sequence[System]) -> list[str]:
    """One sentence for each system that gives the same label to nearly every row of a benchmark whose right answers differ."""
    found = []
    for system in systems:
        stuck = [key for key, score in system.scores.items() if any(says_one_label(part) for _, part in score.parts)]
        if stuck:
            found.append(
                f"{system.heading} gives one and the same label to at least {100 * SAME_ANSWER_SHARE:.0f} % of the rows of {listed(stuck)}: accuracy is "
                "then that label’s share of the rows and tells nothing of what was learned; see Matthews correlation and the confusion matrix."
            )
    return found


def says_one_label(metrics: BenchmarkMetrics) -> bool:
    """Whether one label has SAME_ANSWER_SHARE of all answers, unparsed ones among them, while the right answers are more mixed."""
    counts = metrics.confusion.counts if metrics.confusion else ()
    total = sum(map(sum, counts))
    if total < FEWEST_ANSWERS:
        return False
    answered = max(sum(column) for column in list(zip(*counts, strict=True))[: len(counts)])
    commonest = max(map(sum, counts))
    return bool(answered >= SAME_ANSWER_SHARE * total > commonest)


def _unparsed(systems: Sequence[System]) -> list[str]:
    """How many answers could not be read, in one sentence; none where all could."""
    shares = {
        system.heading: known
        for system in systems
        if (known := [score.unparsed_share for score in system.scores.values() if score.unparsed_share is not None])
    }
    if not shares:
        return []
    if not any(map(max, shares.values())):
        return ["Every generated answer could be read."]
    means = listed([f"{heading} {percent(sum(known) / len(known))} %" for heading, known in shares.items()])
    worst = max(shares, key=lambda heading: max(shares[heading]))
    return [
        f"Answers that could not be read count as wrong. Mean over the sets: {means}; at worst {percent(max(shares[worst]), 0)} % of one set ({worst})."
    ]
