"""Charts of one run by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedfinlora.report.benchmarks import BenchmarkInfo, by_group
from fedfinlora.report.charts import Format, Series, bar_chart, line_chart
from fedfinlora.report.drawing import Chart
from fedfinlora.report.formats import file_name, percent, seconds, size
from fedfinlora.report.reading import Run, best_round
from fedfinlora.report.score import Score, mean
from fedfinlora.report.scores import common_accuracy_keys
from fedfinlora.report.systems import System
from fedfinlora.run.evaluation import Scores
from fedfinlora.run.records import BankEntry, RoundLine

NAMED_LINES = 7
"""More banks or benchmarks than this are not drawn one by one: eight colours are as many as can be distinguished."""
MOST_BARS = 150
"""Above this, bars are means over the rounds, one for each bank."""

ValueOf = Callable[[RoundLine, BankEntry], float | None]
"""A figure of one bank in one round."""


def run_charts(run: Run, catalogue: Sequence[BenchmarkInfo]) -> list[Chart]:
    """The charts of one run, without those that would be empty."""
    if not run.rounds:
        return []
    charts = [
        *_score_charts(run, catalogue),
        _loss_chart(run, "Train loss", "train_loss"),
        _loss_chart(run, "Held-out loss", "holdout_loss"),
        _average_chart(run),
        _bank_bars(run, "Training time", "seconds", lambda line, entry: line.timings.of(entry.bank).train_s, seconds),
        _bank_bars(run, "Bytes sent by each bank", "bytes", lambda _, entry: entry.bytes_up, size),
        _bank_bars(run, "Bytes received by each bank", "bytes", lambda _, entry: entry.bytes_down, size),
    ]
    return [chart for chart in charts if chart is not None]


def loss_comparison(runs: Sequence[Run]) -> list[Chart]:
    """The loss curves of all runs on one axis."""
    with_rounds = [run for run in runs if run.rounds]
    places = sorted({line.round for run in with_rounds for line in run.rounds})
    charts = []
    for title, name in (("Train loss", "train_loss"), ("Held-out loss", "holdout_loss")):
        lines = []
        for index, run in enumerate(with_rounds):
            by_round = {line.round: getattr(line, name) for line in run.rounds}
            lines.append(Series(run.name, tuple(map(by_round.get, places)), slot=index % 8))
        if places:
            charts.append(
                line_chart(f"runs-{file_name(title)}", title, places, lines, "mean over answer tokens", _loss)
            )
    return [chart for chart in charts if chart is not None]


def _loss(value: float) -> str:
    return f"{value:.2f}"


def _share(value: float) -> str:
    return f"{percent(value, 0)} %"


def _rounds(run: Run) -> list[int]:
    return [line.round for line in run.rounds]


def _name(run: Run, words: str) -> str:
    return f"{file_name(run.name)}-{file_name(words)}"


def _loss_chart(run: Run, title: str, name: str) -> Chart | None:
    """The mean of all banks, and each bank. `name` is a field of both records."""
    banks = run.banks
    label = "all banks" if len(banks) > 1 else (banks or ["run"])[0]
    lines = [Series(label, tuple(getattr(line, name) for line in run.rounds), slot=0, thick=True)]
    for index, bank in enumerate(banks if len(banks) > 1 else ()):
        values = tuple(getattr(line.bank(bank), name, None) for line in run.rounds)
        legend = "" if len(banks) <= NAMED_LINES else f"each of {len(banks)} banks"
        lines.append(Series(bank, values, _bank_slot(index, len(banks)), legend=legend))
    return line_chart(_name(run, title), title, _rounds(run), lines, "mean over answer tokens", _loss, best_round(run))


AVERAGE_LINES = {
    "bias": "bias of averaging A and B",
    "truncation": "lost at the adapter's rank",
    "cosine_mean": "cosine between banks",
    "path": "step over the banks' steps",
}
"""Field of `AverageLoss` -> what its line is called."""


def _average_chart(run: Run) -> Chart | None:
    lines = [
        Series(words, tuple(getattr(line.average, name, None) for line in run.rounds), slot=slot)
        for slot, (name, words) in enumerate(AVERAGE_LINES.items())
    ]
    title = "What the average lost"
    return line_chart(_name(run, title), title, _rounds(run), lines, "share; cosine", _loss, best_round(run))


def _bank_slot(index: int, banks: int) -> int:
    """Slot 0 belongs to the global line."""
    return index + 1 if banks <= NAMED_LINES else 4


def _score_charts(run: Run, catalogue: Sequence[BenchmarkInfo]) -> list[Chart | None]:
    by_test = _with_ends(run, {line.round: line.scores for line in run.rounds if line.scores})
    systems = _systems(by_test)
    keys = common_accuracy_keys(systems, systems[0].scores if systems else ())
    best = best_round(run)
    charts = []
    if keys:
        lines = [Series(f"mean of {len(keys)}", tuple(system.accuracy(keys) for system in systems), slot=0, thick=True)]
        lines += _benchmark_lines(by_test, catalogue)
        name, title = _name(run, "scores"), "Accuracy on test rows"
        charts.append(line_chart(name, title, list(by_test), lines, "share of right answers", _share, best))
    validated = {
        line.round: line.validation for line in run.rounds if line.validation and line.validation.score is not None
    }
    if validated:
        lines = [Series("mean score", tuple(one.score for one in validated.values()), slot=0, thick=True)]
        lines += _benchmark_lines({place: one.scores for place, one in validated.items()}, catalogue)
        name, title = _name(run, "validation"), "Score on validation rows"
        charts.append(line_chart(name, title, list(validated), lines, "public rows set aside", _share, best))
    return charts


def score_points(run: Run) -> dict[int, float]:
    """Round -> mean accuracy on test rows. Where no round was scored: the base model (0) and the final adapter."""
    by_round = _with_ends(run, {line.round: line.scores for line in run.rounds if line.scores})
    last = run.result.final_round or max((line.round for line in run.rounds), default=0)
    ends = {0: run.scores.get("base", {}), last: run.scores.get("final", {})}
    by_round = by_round or {place: scores for place, scores in ends.items() if scores}
    systems = _systems(by_round)
    keys = common_accuracy_keys(systems, systems[0].scores if systems else ())
    points = {place: system.accuracy(keys) for place, system in zip(by_round, systems, strict=True)}
    return {place: value for place, value in points.items() if value is not None}


def _with_ends(run: Run, by_round: Mapping[int, Scores]) -> dict[int, Scores]:
    """The scores by round with base as round 0 and final at its own round, if they were scored on as many rows."""
    if not by_round:
        return {}
    first = next(iter(by_round.values()))
    found = dict(by_round)

    def same_rows(scores: Scores) -> bool:
        return all(key in scores and scores[key].n == metrics.n for key, metrics in first.items())

    base, final = run.scores.get("base", {}), run.scores.get("final", {})
    kept = run.result.final_round or max(line.round for line in run.rounds)
    if same_rows(base):
        found[0] = base
    if same_rows(final):
        found.setdefault(kept, final)
    return {place: found[place] for place in sorted(found)}


def _systems(by_round: Mapping[int, Scores]) -> list[System]:
    return [
        System("", "", "", "", {key: Score((metrics,)) for key, metrics in scores.items()})
        for scores in by_round.values()
    ]


def _benchmark_lines(by_round: Mapping[int, Scores], catalogue: Sequence[BenchmarkInfo]) -> list[Series]:
    systems = _systems(by_round)
    keys = common_accuracy_keys(systems, systems[0].scores if systems else ())
    if len(keys) < 2:
        return []
    if len(keys) <= NAMED_LINES:
        titles = {benchmark.key: benchmark.title for benchmark in catalogue}
        named = [(titles.get(key, key), [key]) for key in keys]
    else:
        named = [
            (title, [benchmark.key for benchmark in benchmarks if benchmark.key in keys])
            for title, benchmarks in by_group(catalogue).items()
        ]
    return [
        Series(title, tuple(system.accuracy(chosen) for system in systems), slot=index + 1)
        for index, (title, chosen) in enumerate(item for item in named if item[1])
    ]


def _bank_bars(run: Run, title: str, y_label: str, value_of: ValueOf, y_format: Format) -> Chart | None:
    """One bar for each bank in each round, or the banks' means where there are too many."""
    banks, rounds, name = run.banks, _rounds(run), _name(run, title)
    by_bank = {
        bank: tuple(value_of(line, entry) if (entry := line.bank(bank)) else None for line in run.rounds)
        for bank in banks
    }
    if not any(value for values in by_bank.values() for value in values):
        return None
    if len(banks) * len(rounds) > MOST_BARS:
        one = [Series("", tuple(map(mean, by_bank.values())), slot=0)]
        return bar_chart(name, title, banks, one, f"{y_label}, mean of {len(rounds)} rounds", y_format, "bank")
    series = [
        Series(
            bank,
            by_bank[bank],
            _bank_slot(index, len(banks)),
            notes=tuple(note_of(line.bank(bank)) for line in run.rounds),
        )
        for index, bank in enumerate(banks)
    ]
    return bar_chart(name, title, list(map(str, rounds)), series, y_label, y_format)


def note_of(entry: BankEntry | None) -> str:
    """Why a bank's reply was not accepted; "" where it was, or where there is none."""
    if entry is None or entry.is_ok:
        return ""
    return f"{entry.status}: {entry.reason or entry.code or 'no reason given'}"
