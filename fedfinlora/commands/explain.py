"""`explain`: what lies between a pooled and a federated run, one change at a time (docs/adr/0038).

    pooled -> fewer steps -> one bank -> iid banks -> own banks -> with privacy = federated

Each arrow changes one thing and trains a run with it, in this process; what is already there, or equals its neighbour,
is not trained. The effects are differences of scores of neighbours on the same rows, with intervals over rows, and add
up to the whole difference. An effect depends on the order of the changes.

Apart from this chain, compared with the federated run and not added: the mean of the products B A in the place of that
of A and B (one more run), and, by kept updates (strategy.keep_deltas) without training, other weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from eval.evaluate import evaluate_models
from eval.metrics.row_values import RowValues, contrasts, row_values
from eval.models import LocalModel
from eval.rows import require_rows
from fedfinlora.commands.explain_runs import CHANGES, EXACT, EXACT_TITLE, FEDERATED, POOLED, PRODUCT, Plan
from fedfinlora.commands.printed import print_table
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import made_as
from fedfinlora.model.adapter import Vector, load_adapter
from fedfinlora.model.loading import get_session
from fedfinlora.report.explanation import explanation_lines, explanation_table
from fedfinlora.run.evaluation import read_records
from fedfinlora.run.explanation import EXPLANATION_FILE, Cause, Explanation, write_explanation
from fedfinlora.run.far_factors import furthest
from fedfinlora.run.records import read_rounds


def explain(
    run: Path, pooled: Path, output: Path | None, causes: str, json_file: Path | None, words: Sequence[str]
) -> int:
    """Train what lies in between, score all on the same rows, write explain.json and print the causes."""
    plan = Plan(run, pooled, output or run.parent / f"{run.name}-explained", words)
    wanted = _wanted(causes)
    require_rows(plan.federated)
    plan.take_place()
    adapters, unknown = plan.adapters(wanted)
    print(f"scoring {len(adapters)} adapters on the same rows: {', '.join(adapters)}", flush=True)
    replayed, more = plan.replayed()
    exact, why = plan.exact_mean() if PRODUCT in wanted else (None, [])
    found = _explained(plan, adapters, exact, replayed, [*unknown, *why, *more])
    with made_as(plan.place):
        write_explanation(plan.place / EXPLANATION_FILE, found)
    if json_file is not None:
        write_explanation(json_file, found)
    print_table(explanation_table(found))
    print("\n".join(explanation_lines(found)))
    if said := furthest(read_rounds(run), plan.federated.strategy.name):
        print(said)
    return 0


def _wanted(causes: str) -> list[str]:
    known = [*(change.name for change in CHANGES), PRODUCT]
    wanted = [name.strip() for name in causes.split(",") if name.strip()] or known
    wrong = [name for name in wanted if name not in known]
    if wrong:
        raise ConfigError(f"--causes: {', '.join(wrong)} is none of {', '.join(known)}.")
    return wanted


def _explained(
    plan: Plan, chain: Mapping[str, Path], exact: Path | None, replayed: Mapping[str, Vector], unknown: Sequence[str]
) -> Explanation:
    config = plan.federated
    session = get_session(config)
    folders = {**chain, **({EXACT: exact} if exact else {})}
    vectors = {
        label: load_adapter(folder / "adapters" / "final", session.layout, config.model, session.frozen)
        for label, folder in folders.items()
    }
    vectors |= replayed
    models = {label: LocalModel(session, config, vector) for label, vector in vectors.items()}
    with made_as(plan.place):
        evaluations = evaluate_models(models, config, plan.place)
    rows: list[Mapping[str, RowValues]] = [
        {key: row_values(read_records(plan.place / "eval" / label / f"{key}.jsonl")) for key in evaluation.scores}
        for label, evaluation in evaluations.items()
    ]
    if not all(rows):
        raise UserError(
            "Nothing was scored. Name benchmarks with rows: evaluation.benchmarks=[fpb] evaluation.limit=0."
        )
    unit = dict(zip(vectors, np.eye(len(vectors)), strict=True))
    apart = [label for label in vectors if label not in chain]
    pairs = [*pairwise(chain), (POOLED, FEDERATED), *((FEDERATED, label) for label in apart)]
    figures = contrasts(rows, np.array([unit[after] - unit[before] for before, after in pairs]))
    steps = len(chain) - 1
    absent = {
        name
        for name, is_absent in (("privacy", config.privacy.mode == "none"), ("skew", config.partition.name == "iid"))
        if is_absent
    }
    causes = [
        replace(_cause(before, after, absent), effect=effect)
        for (before, after), effect in zip(pairs[:steps], figures[:steps], strict=True)
    ]
    others = [
        replace(_apart(label), effect=effect)
        for (_, label), effect in zip(pairs[steps + 1 :], figures[steps + 1 :], strict=True)
    ]
    return Explanation(
        federated=plan.run.name,
        pooled=plan.pooled.name,
        difference=figures[steps],
        causes=tuple(causes),
        replays=tuple(others),
        unknown=tuple(unknown),
        benchmarks=tuple(rows[0]),
        rows=sum(len(one.values) for one in rows[0].values()),
    )


def _apart(label: str) -> Cause:
    """What is compared with the federated run and not part of the chain."""
    if label == EXACT:
        advice = "strategy=residual, or fewer local steps a round"
        return Cause(PRODUCT, EXACT_TITLE, FEDERATED, label, advice=advice)
    weights = label.removeprefix("weights-")
    title, advice = f"{weights} weights on the same recorded updates", f"set strategy.weighting={weights}"
    return Cause("weighting", title, FEDERATED, label, advice=advice)


def _cause(before: str, after: str, absent: Set[str]) -> Cause:
    """What changed between two neighbours; several changes where those between were not trained."""
    labels = [POOLED, *(change.label for change in CHANGES)]
    between = CHANGES[labels.index(before) : labels.index(after)]
    changed = [change for change in between if change.name not in absent]
    return Cause(
        " + ".join(change.name for change in changed),
        "; ".join(change.title for change in changed),
        before,
        after,
        advice="; ".join(change.advice for change in changed),
    )
