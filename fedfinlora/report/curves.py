"""Charts of one run by round: losses, scores, validation, traffic and time of the banks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedfinlora.report.charts import Format, Series, bar_chart, line_chart
from fedfinlora.report.drawing import Chart
from fedfinlora.report.markup import file_name, percent, seconds, size
from fedfinlora.report.reading import Run, best_round
from fedfinlora.report.scores import BenchmarkInfo, System, by_group, common_accuracy_keys, mean_accuracy, score_of
from fedfinlora.run.evaluation import Scores
from fedfinlora.run.records import BankEntry, RoundLine

NAMED_LINES = 7
"""More banks or benchmarks than this are not drawn one by one: eight colours are as many as can be told apart."""
MOST_BARS = 150
"""Above this, bars are means over the rounds, one for each bank."""

ValueOf = Callable[[RoundLine, BankEntry], float | None]
"""A figure of one bank in one round."""
LossOf = Callable[[RoundLine | BankEntry], float | None]


def run_charts(run: Run, catalogue: Sequence[BenchmarkInfo]) -> list[Chart]:
    """The charts of one run, without those that would be empty."""
    if not run.rounds:
        return []
    rounds = [line.round for line in run.rounds]
    start = f"{file_name(run.name)}-"
    best = best_round(run)
    charts = [
        *_score_charts(run, rounds, catalogue, start, best),
        _loss_chart(run, rounds, start, "Train loss", _train_loss, best),
        _loss_chart(run, rounds, start, "Held-out loss", _holdout_loss, best),
        _bank_bars(run, rounds, start, "Training time", "seconds", _train_s, seconds),
        _bank_bars(run, rounds, start, "Bytes sent by each bank", "bytes", _bytes_up, size),
        _bank_bars(run, rounds, start, "Bytes received by each bank", "bytes", _bytes_down, size),
    ]
    return [chart for chart in charts if chart is not None]


def loss_comparison(runs: Sequence[Run]) -> list[Chart]:
    """The global loss curves of all runs on one axis."""
    with_rounds = [run for run in runs if run.rounds]
    places = sorted({line.round for run in with_rounds for line in run.rounds})
    charts = []
    for title, loss_of in (("Train loss", _train_loss), ("Held-out loss", _holdout_loss)):
        lines = []
        for index, run in enumerate(with_rounds):
            by_round = {line.round: loss_of(line) for line in run.rounds}
            lines.append(Series(run.name, tuple(by_round.get(place) for place in places), slot=index % 8))
        if places:
            charts.append(line_chart(f"runs-{file_name(title)}", title, places, lines, "mean over answer tokens", _loss))
    return [chart for chart in charts if chart is not None]


def _loss(value: float) -> str:
    return f"{value:.2f}"


def _train_loss(part: RoundLine | BankEntry) -> float | None:
    return part.train_loss


def _holdout_loss(part: RoundLine | BankEntry) -> float | None:
    return part.holdout_loss


def _loss_chart(run: Run, rounds: Sequence[int], start: str, title: str, loss_of: LossOf, best: int | None) -> Chart | None:
    lines = [_global_line(run, loss_of), *_bank_lines(run, loss_of)]
    return line_chart(f"{start}{file_name(title)}", title, rounds, lines, "mean over answer tokens", _loss, best)


def _global_line(run: Run, loss_of: LossOf) -> Series:
    label = "all banks" if len(run.banks) > 1 else (run.banks or ["run"])[0]
    return Series(label, tuple(map(loss_of, run.rounds)), slot=0, thick=True)


def _bank_lines(run: Run, loss_of: LossOf) -> list[Series]:
    banks = run.banks
    if len(banks) < 2:
        return []
    return [
        Series(
            bank,
            tuple(loss_of(entry) if (entry := line.bank(bank)) else None for line in run.rounds),
            slot=_bank_slot(index, len(banks)),
            legend="" if len(banks) <= NAMED_LINES else f"each of {len(banks)} banks",
        )
        for index, bank in enumerate(banks)
    ]


def _bank_slot(index: int, banks: int) -> int:
    """Slot 0 belongs to the global line."""
    return index + 1 if banks <= NAMED_LINES else 4


def _score_charts(
    run: Run, rounds: Sequence[int], catalogue: Sequence[BenchmarkInfo], start: str, best: int | None
) -> list[Chart | None]:
    """Accuracy by round on test rows and on validation rows, where they were scored."""
    by_test = _with_ends(run, {line.round: line.scores for line in run.rounds if line.scores})
    validated = {line.round: line.validation.scores for line in run.rounds if line.validation}
    charts = [_accuracy_chart(f"{start}scores", "Accuracy on test rows", by_test, catalogue, best)]
    known = {
        line.round: line.validation.score
        for line in run.rounds
        if line.validation is not None and line.validation.score is not None
    }
    if known:
        lines = [Series("mean score", tuple(known.values()), slot=0, thick=True)]
        lines += _benchmark_lines({place: validated[place] for place in known}, catalogue)
        charts.append(
            line_chart(
                f"{start}validation", "Score on validation rows", list(known), lines, "public rows set aside", _share, best
            )
        )
    return charts


def _with_ends(run: Run, by_round: Mapping[int, Scores]) -> dict[int, Scores]:
    """The scores by round with base as round 0 and final at the round it was taken from, if they were scored on as many rows."""
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
    return [System("", "", "", "", {key: score_of(metrics) for key, metrics in scores.items()}) for scores in by_round.values()]


def _accuracy_chart(
    name: str, title: str, by_round: Mapping[int, Scores], catalogue: Sequence[BenchmarkInfo], best: int | None
) -> Chart | None:
    """The mean over the benchmarks that every scored round has, and each benchmark if they are few, else each group."""
    systems = _systems(by_round)
    keys = common_accuracy_keys(systems, systems[0].scores if systems else ())
    if not keys:
        return None
    lines = [Series(f"mean of {len(keys)}", tuple(mean_accuracy(system, keys) for system in systems), slot=0, thick=True)]
    lines += _benchmark_lines(by_round, catalogue)
    return line_chart(name, title, list(by_round), lines, "share of right answers", _share, best)


def _share(value: float) -> str:
    return f"{percent(value, 0)} %"


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
        Series(title, tuple(mean_accuracy(system, chosen) for system in systems), slot=index + 1)
        for index, (title, chosen) in enumerate(item for item in named if item[1])
    ]


def _bank_bars(
    run: Run, rounds: Sequence[int], start: str, title: str, y_label: str, value_of: ValueOf, y_format: Format
) -> Chart | None:
    """One bar for each bank in each round, or the banks' means where that would be too many to see."""
    banks = run.banks
    name = f"{start}{file_name(title)}"
    by_bank = {
        bank: tuple(value_of(line, entry) if (entry := line.bank(bank)) else None for line in run.rounds) for bank in banks
    }
    if not any(value for values in by_bank.values() for value in values):
        return None
    if len(banks) * len(rounds) > MOST_BARS:
        means = []
        for values in by_bank.values():
            known = [value for value in values if value is not None]
            means.append(sum(known) / len(known) if known else None)
        one = [Series("", tuple(means), slot=0)]
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
    return bar_chart(name, title, [str(place) for place in rounds], series, y_label, y_format)


def note_of(entry: BankEntry | None) -> str:
    """Why a bank's reply was not accepted; "" where it was, or where there is none."""
    if entry is None or entry.is_ok:
        return ""
    return f"{entry.status}: {entry.reason or entry.code or 'no reason given'}"


def _bytes_up(line: RoundLine, entry: BankEntry) -> float | None:
    return entry.bytes_up


def _bytes_down(line: RoundLine, entry: BankEntry) -> float | None:
    return entry.bytes_down


def _train_s(line: RoundLine, entry: BankEntry) -> float | None:
    return line.timings.of(entry.bank).train_s
