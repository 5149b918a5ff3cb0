"""`contributions`: what each bank of a run gains and contributes, from the updates that the run kept.

The server's rule runs on subsets of the banks' recorded updates, and the shared evaluator scores each adapter on the
same rows. From these scores: each bank's Shapley value, what leaving it out costs, and, next to runs of `local`, what
it gains over training alone. In a run of several rounds a subset is a replay (`fedfinlora.commands.replayed`).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.evaluate import evaluate_models
from eval.metrics.row_values import RowValues, contrasts, row_values
from eval.models import LocalModel
from eval.report import write_run_report
from eval.rows import require_rows
from fedfinlora.commands.printed import print_table
from fedfinlora.commands.replayed import KeptRun, read_kept_run, with_words
from fedfinlora.commands.shapley import Coalition, Combination, combination
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import check_writable
from fedfinlora.model.adapter import Vector, load_adapter
from fedfinlora.model.adapter_folder import check_as_written
from fedfinlora.report.contributions import contributions_table, notes
from fedfinlora.run.contributions import BankContribution, Contributions, write_contributions
from fedfinlora.run.evaluation import Estimate, read_records
from fedfinlora.run.folder import read_config

LOCAL = "local-"
"""Begins the label of the adapter of a bank alone."""
NAME_SOME = "Name benchmarks with rows: evaluation.benchmarks=[fpb] evaluation.limit=0."
AT_ONCE = 8
"""Adapters that are scored in one pass over the rows; a pass holds all of them in memory."""


def contributions(folder: Path, local: str, permutations: int, words: Sequence[str]) -> int:
    """Write contributions.json and the report of the run, and print the table."""
    if permutations < 2:
        raise ConfigError(f"--permutations must be at least 2, not {permutations}.")
    config = with_words(read_config(folder), words)
    if config.evaluation.benchmarks == ("none",):
        raise UserError(f"{folder} is a run without scores. {NAME_SOME}")
    require_rows(config)
    check_writable(folder)  # before the scoring
    run = read_kept_run(folder, words)
    if len(run.banks) < 2:
        raise UserError(f"{folder} has updates of one bank only: contributions need two banks or more.")
    players = combination(run.banks, permutations, run.config.seed)
    adapters = {label_of(coalition, run.banks): coalition for coalition in players.coalitions}
    alone = _alone(run, local) if local else {}
    print(f"{len(adapters)} adapters of {len(run.banks)} banks' updates, {len(alone)} of banks alone", flush=True)
    scored = _scored(run, {**dict.fromkeys(adapters), **alone}, adapters)
    found = summed_up(run, players, scored)
    write_contributions(folder, found)
    write_run_report([folder], folder / "report.html")
    print_table(contributions_table(found))
    print("\n".join(notes(found)))
    return 0


def label_of(coalition: Coalition, banks: Sequence[str]) -> str:
    """A plain folder name: the places of the banks, `none` for no bank."""
    return (
        "with-" + "-".join(str(place) for place, bank in enumerate(banks) if bank in coalition) if coalition else "none"
    )


def _alone(run: KeptRun, local: str) -> dict[str, Vector]:
    """Label -> adapter of each bank alone, from the folders LOCAL-BANK that `local` has made."""
    found = {}
    session = run.session()
    for bank in run.banks:
        folder = Path(f"{local}-{bank}").expanduser()
        adapter = folder / "adapters" / "final"
        if not adapter.is_dir():
            raise UserError(
                f"{folder} is no finished run of {bank} alone. Make them with `python -m fedfinlora local … "
                "run_name=NAME` "
                "and give --local FOLDER/NAME."
            )
        check_as_written(adapter)
        found[LOCAL + bank] = load_adapter(adapter, session.layout, run.config.model, session.frozen)
    return found


def _scored(
    run: KeptRun, wanted: Mapping[str, Vector | None], coalitions: Mapping[str, Coalition]
) -> dict[str, dict[str, RowValues]]:
    """Label -> benchmark -> rows. Scored in a temporary folder, since the run keeps figures only."""
    session, found = run.session(), dict[str, dict[str, RowValues]]()
    labels = list(wanted)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for first in range(0, len(labels), AT_ONCE):
            models = {}
            for label in labels[first : first + AT_ONCE]:
                known = wanted[label]
                vector = run.replay(coalitions[label]) if known is None else known
                models[label] = LocalModel(session, run.config, vector)
            evaluations = evaluate_models(models, run.config, place)
            for label, evaluation in evaluations.items():
                files = {key: place / "eval" / label / f"{key}.jsonl" for key in evaluation.scores}
                found[label] = {key: row_values(read_records(file)) for key, file in files.items()}
    if not any(found.values()):
        raise UserError(f"Nothing was scored. {NAME_SOME}")
    return found


def summed_up(run: KeptRun, players: Combination, scored: Mapping[str, Mapping[str, RowValues]]) -> Contributions:
    """All figures from the rows."""
    labels = [label for label in _labels(run, players) if label in scored]
    models, unit = [scored[label] for label in labels], dict(zip(labels, np.eye(len(labels)), strict=True))
    everybody = frozenset(run.banks)
    nothing, whole = labels[0], labels[1]
    asked = {("", "first"): unit[nothing], ("", "all"): unit[whole]}
    for bank, shares in zip(players.players, players.coefficients, strict=True):
        asked[bank, "shapley"] = np.pad(shares, (0, len(labels) - len(shares)))
        for name, one, other in (
            ("leave one out", whole, label_of(everybody - {bank}, run.banks)),
            ("alone", label_of(frozenset({bank}), run.banks), nothing),
            ("local", whole, LOCAL + bank),
        ):
            if one in unit and other in unit:
                asked[bank, name] = unit[one] - unit[other]
    figures = dict(zip(asked, contrasts(models, np.array(list(asked.values()))), strict=True))
    coalition_scores = contrasts(models, np.eye(len(labels))[: len(players.coalitions)])
    errors: Sequence[float | None] = players.errors([estimate.value or 0.0 for estimate in coalition_scores]) or [
        None
    ] * len(run.banks)
    updates = Counter(entry.bank for line in run.lines for entry in line.banks if entry.is_ok)
    unknown = Estimate(None)
    return Contributions(
        run=run.folder.name,
        rounds=len(run.lines),
        method="exact" if players.permutations is None else "permutations",
        permutations=0 if players.permutations is None else len(players.permutations),
        coalitions=len(players.coalitions),
        is_replay=not run.is_one_shot,
        benchmarks=tuple(models[0]),
        rows=sum(len(one.values) for one in models[0].values()),
        first_score=figures["", "first"],
        score=figures["", "all"],
        banks=tuple(
            BankContribution(
                bank, updates[bank], figures[bank, "shapley"], error,
                leave_one_out=figures.get((bank, "leave one out"), unknown),
                alone_replayed=figures.get((bank, "alone"), unknown),
                gain_over_local=figures.get((bank, "local")),
            )
            for bank, error in zip(players.players, errors, strict=True)
        ),
    )  # fmt: skip


def _labels(run: KeptRun, players: Combination) -> list[str]:
    """Of the coalitions, in their order, then of the banks alone."""
    return [label_of(one, run.banks) for one in players.coalitions] + [LOCAL + bank for bank in run.banks]
