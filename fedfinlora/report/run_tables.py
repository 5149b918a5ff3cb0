"""The tables of one run below the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fedfinlora.report.curves import note_of
from fedfinlora.report.formats import DASH, count, decimal, plural, seconds, significant, size
from fedfinlora.report.reading import Run, best_round
from fedfinlora.report.score import mean
from fedfinlora.report.tables import Table
from fedfinlora.run.evaluation import Evaluation
from fedfinlora.run.records import PrivacyCard

NOTHING_REFUSED = "none"
FURTHEST = "Moved A and B furthest for B A"
"""`FactorLength` of the round."""


def key_figures(run: Run) -> list[tuple[str, str, str]]:
    """(name, figure, detail)."""
    result, wall_s = run.result, run.result.wall_s
    counted = [entry for line in run.rounds for entry in line.banks]
    accepted = sum(entry.is_ok for entry in counted)
    parts = (("train", wall_s.train), ("evaluate", wall_s.evaluate), ("aggregate", wall_s.aggregate))
    shares = [f"{name} {seconds(part_s)}" for name, part_s in parts if part_s >= 0.05]
    figures = [("Wall time", seconds(wall_s.total), ", ".join(shares))]
    if run.mode == "evaluate":
        answers = sum(metrics.n for scores in run.scores.values() for metrics in scores.values())
        benchmarks = len({key for scores in run.scores.values() for key in scores})
        of = f"{plural(len(run.scores), 'evaluation')} of {plural(benchmarks, 'benchmark')}"
        figures.append(("Answers scored", count(answers), of))
    else:
        figures.insert(0, ("Rows trained", count(result.rows_trained), f"{count(result.tokens_trained)} tokens"))
    if result.bytes_up:
        figures.append(("Sent by banks", size(result.bytes_up), f"received {size(result.bytes_down)}"))
    if by_drift := [line.sync for line in run.rounds if line.sync]:
        ended = sum(sync.averaged for sync in by_drift)
        figures.append(
            ("Not sent", size(result.bytes_saved), f"{ended} of {plural(len(by_drift), 'round')} ended with an average")
        )
    if counted and run.mode == "federated":
        replies = f"{accepted} of {len(counted)}"
        figures.append(("Replies of banks", replies, "accepted" if accepted < len(counted) else "all accepted"))
    return figures


def runs_table(runs: Sequence[Run]) -> Table:
    words = ("Mode", "Status", "Model", "Adapter")
    numbers = ("Banks", "Rounds", "Rows trained", "Tokens", "Seed", "Sent by banks", "Wall time")
    rows = []
    for run in runs:
        result = run.result
        counts = (result.banks, result.rounds, result.rows_trained, result.tokens_trained, result.seed)
        figures = [*map(count, counts), size(result.bytes_up), seconds(result.wall_s.total)]
        rows.append([run.name, run.mode, run.status, run.model, result.peft, *figures])
    return Table("Runs", ("Run", *words, *numbers), rows, words)


def banks_table(run: Run) -> Table:
    """What each bank has done over all rounds."""
    numbers = ("Accepted", "Rows", "Steps", "Tokens", "Tokens/s", "Train loss", "Held-out loss", "Sent", "Received")
    rows = [_bank_row(run, name) for name in run.banks]
    return Table("Banks", ("Bank", *numbers, "Not accepted"), rows, reason="Not accepted")


def _bank_row(run: Run, name: str) -> list[str]:
    replies = [(line, entry) for line in run.rounds if (entry := line.bank(name))]
    accepted = [(line, entry) for line, entry in replies if entry.is_ok]
    speed = mean(line.timings.of(name).tokens_per_s for line, _ in accepted)
    reasons = Counter(note_of(entry) for _, entry in replies if note_of(entry))
    refused = "; ".join(f"{note}" if times == 1 else f"{note} ({times} times)" for note, times in reasons.items())
    return [
        name,
        f"{len(accepted)} of {len(replies)}",
        count(sum(entry.rows for _, entry in accepted)),
        count(sum(entry.steps for _, entry in replies)),
        count(sum(entry.tokens for _, entry in replies)),
        count(speed),
        _course(entry.train_loss for _, entry in accepted),
        _course(entry.holdout_loss for _, entry in accepted),
        size(sum(entry.bytes_up for _, entry in replies)),
        size(sum(entry.bytes_down for _, entry in replies)),
        refused or NOTHING_REFUSED,
    ]


def _course(losses: Iterable[float | None]) -> str:
    """The first and the last that were measured: "2.401 → 1.873"."""
    known = [loss for loss in losses if loss is not None]
    return (
        DASH if not known else decimal(known[0]) if len(known) == 1 else f"{decimal(known[0])} → {decimal(known[-1])}"
    )


def rounds_table(run: Run) -> Table:
    numbers = ("Accepted", "Train loss", "Held-out loss", "Validation", "Update norm", "Sent", "Received", "Time")
    best = best_round(run)
    rows = [
        [
            f"{line.round}{' (best)' if line.round == best else ''}",
            line.status,
            f"{sum(entry.is_ok for entry in line.banks)} of {len(line.banks)}",
            decimal(line.train_loss),
            decimal(line.holdout_loss),
            decimal(line.validation.score if line.validation else None),
            decimal(line.update_norm),
            size(line.bytes_up),
            size(line.bytes_down),
            seconds(line.timings.total_s),
        ]
        for line in run.rounds
    ]
    words = ["Status"]
    if any(line.factors for line in run.rounds):
        words.append(FURTHEST)
        for row, line in zip(rows, run.rounds, strict=True):
            row.append(f"{line.factors.bank}, {line.factors.ratio:.3g} × the median" if line.factors else DASH)
    return Table("Figures by round", ("Round", "Status", *numbers, *words[1:]), rows, words)


def evaluations_table(run: Run) -> Table:
    numbers = ("Rows", "Time", "Rows/s", "Peak cache", "Reused", "Decoded again, differ")
    rows = [_evaluation_row(label, evaluation) for label, evaluation in run.evaluations.items()]
    return Table("Evaluations", ("Evaluation", *numbers), rows)


def _evaluation_row(label: str, evaluation: Evaluation) -> list[str]:
    metrics = evaluation.scores.values()
    took_s = sum(evaluation.seconds.values())
    scored = sum(item.n if item.rows is None else item.rows for item in metrics)
    speed = evaluation.rows_per_s or (scored / took_s if took_s else None)
    checks = [item.decoding for item in metrics if item.decoding]
    peak = evaluation.peak_cache_gib
    return [
        label,
        count(scored),
        seconds(took_s),
        decimal(speed, 1),
        DASH if peak is None else f"{peak:.2f} GiB",
        count(evaluation.reused) if evaluation.work else DASH,
        f"{sum(one.rows_differ for one in checks)} of {sum(one.rows_checked for one in checks)}" if checks else DASH,
    ]


def privacy_table(card: PrivacyCard) -> Table:
    """Planned and spent epsilon, bank by bank."""
    head = ("Bank", "ε planned for this run", "ε spent, all runs", "δ", "Private rounds", "Refused rounds")
    rows = [
        [
            name,
            *map(significant, (bank.epsilon_planned, bank.epsilon_spent, bank.delta)),
            count(bank.rounds),
            count(bank.refused),
        ]
        for name, bank in card.banks.items()
    ]
    return Table("Privacy by bank", head, rows)
