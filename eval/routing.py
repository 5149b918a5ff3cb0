"""Several adapters scored as one model that sends each benchmark to one of them: no row is asked twice.

`task` sends a benchmark to the adapter that was trained on it. `oracle` sends it to the adapter that scored best on
these very test rows: an upper bound for every router by benchmark, and no result to report as a model's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from eval.metrics.averages import finlora_overall, group_means, headline_score
from fedfinlora.files import write_bytes, write_json
from fedfinlora.run.evaluation import METRICS_FILE, BenchmarkMetrics, Evaluation, TokenCounts, Work
from fedfinlora.run.events import EvaluateDone, Event, Message
from fedfinlora.run.typed import to_json

LABELS = {"task": "task", "oracle": "oracle_on_test_rows", "arrow": "arrow", "xlora": "xlora"}
"""Route -> label of its scores. The oracle's says in each table how it was chosen."""


def routed(
    run: Path,
    routes: Collection[str],
    found: Mapping[str, Evaluation],
    tasks: Mapping[str, Collection[str]],
    on_event: Callable[[Event], None],
) -> None:
    """Write the scores of the routes that choose by benchmark. `found` is label -> scores of each adapter, `tasks`
    label -> what it was trained on, for `task`.
    """
    benchmarks = list(dict.fromkeys(key for one in found.values() for key in one.scores))
    for route in dict.fromkeys(routes):
        if route in ("task", "oracle"):
            choice = by_task(tasks, benchmarks) if route == "task" else by_score(found, benchmarks)
            label, summary = write_routed(run, route, choice, found)
            chosen = ", ".join(f"{key} by {adapter}" for key, adapter in choice.items()) or "no benchmark"
            on_event(Message(level="info", text=f"{label}: {chosen}"))
            shown = {key: headline_score(metrics, "strict") for key, metrics in summary.scores.items()}
            on_event(EvaluateDone(label=label, scores=shown))


def by_task(tasks: Mapping[str, Collection[str]], benchmarks: Collection[str]) -> dict[str, str]:
    """Benchmark key -> label of the adapter for it, of label -> the tasks that it was trained on.

    Of several adapters that know a benchmark, the one with the fewest tasks; of equal ones the first. A benchmark that
    none knows is absent.

    >>> by_task({"all": ["fpb", "tfns", "finer"], "mood": ["fpb", "tfns"]}, ["fpb", "finer", "headline"])
    {'fpb': 'mood', 'finer': 'all'}
    """
    knowing = {key: [label for label in tasks if key in tasks[label]] for key in benchmarks}
    return {key: min(labels, key=lambda label: len(tasks[label])) for key, labels in knowing.items() if labels}


def by_score(found: Mapping[str, Evaluation], benchmarks: Collection[str]) -> dict[str, str]:
    """Benchmark key -> label of the adapter with the best strict headline score; of equal ones the first."""
    choice: dict[str, str] = {}
    for key in benchmarks:
        scores = {label: _score(one.scores[key]) for label, one in found.items() if key in one.scores}
        if scores:
            choice[key] = max(scores, key=lambda label: scores[label])
    return choice


def write_routed(
    run: Path, route: str, choice: Mapping[str, str], found: Mapping[str, Evaluation]
) -> tuple[str, Evaluation]:
    """Write eval/<label>/ of a router from its adapters' records and metrics; returns the label and its metrics.json.

    `choice` is benchmark key -> label in `found`. Benchmarks without one are skipped with the reason.
    """
    label, first = LABELS[route], next(iter(found.values()))
    scores = {key: found[chosen].scores[key] for key, chosen in choice.items()}
    for key, chosen in choice.items():
        write_bytes(run / "eval" / label / f"{key}.jsonl", (run / "eval" / chosen / f"{key}.jsonl").read_bytes())
    missing = {key: "no adapter was trained on it" for key in first.scores if key not in choice}
    rows = {key: found[chosen].work[key].rows for key, chosen in choice.items()}
    base = {name: first.model[name] for name in ("model", "revision", "weights", "quantization") if name in first.model}
    summary = replace(
        first,
        scores=scores,
        seconds=dict.fromkeys(scores, 0.0),
        work={key: Work(count, count) for key, count in rows.items()},
        label=label,
        skipped={**first.skipped, **missing},
        groups=group_means(scores),
        finlora_overall=finlora_overall(scores),
        model={**base, "adapter": label, "chosen_on": "test rows" if route == "oracle" else "tasks", "choice": choice},
        reused=sum(rows.values()),
        rows_per_s=None,
        peak_cache_gib=None,
        tokens=TokenCounts(),
    )
    write_json(run / "eval" / label / METRICS_FILE, to_json(summary))
    return label, summary


def _score(metrics: BenchmarkMetrics) -> float:
    """A benchmark's strict headline score, of label log-probabilities where nothing else was measured."""
    score = headline_score(metrics, "strict")
    score = metrics.value("labels_accuracy") if score is None else score
    return float("-inf") if score is None else score
