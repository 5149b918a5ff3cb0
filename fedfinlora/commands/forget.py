"""`forget`: a run's adapter computed again without one bank, from the updates that the run kept.

That is the adapter of a run without the bank only where no kept update was computed from an adapter that the bank had a
part in. Otherwise its influence on the others' later updates stays, as the output says; only training again removes it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.evaluate import evaluate_models
from eval.metrics.compare import compare_runs
from eval.models import LocalModel
from eval.report import write_run_report
from eval.rows import data_files, require_rows
from fedfinlora.commands.compare import show
from fedfinlora.commands.replayed import KeptRun, read_kept_run
from fedfinlora.config.checks import folder_name_fault
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.files import made_as
from fedfinlora.model.adapter import Vector, norm
from fedfinlora.run.checkpoint import adapter_checksum
from fedfinlora.run.folder import new_run_folder, write_config, write_manifest
from fedfinlora.run.lineage import EXACT, REPLAY, Lineage, write_lineage
from fedfinlora.run.opening import OpenRun, run_result
from fedfinlora.run.records import read_result, write_result

BEFORE, AFTER = "before", "final"


def forget(folder: Path, bank: str, output: Path | None, with_scores: bool, words: Sequence[str]) -> int:
    """Write the folder of the adapter without `bank` and print what it is."""
    started = time.monotonic()
    if output:
        _check_place(output)
    run = read_kept_run(folder, words)
    _check_bank(run, bank)
    place = output or folder.parent / f"{folder.name}-without-{bank}"
    _check_place(place)
    if with_scores:
        require_rows(run.config)
    lineage, adapter = without_bank(run, bank)
    config = replace(run.config, output_dir=str(place.parent), run_name=place.name, resume="", overwrite=False)
    made = new_run_folder(config)
    with made_as(made):
        _write(run, made, config, adapter, lineage)
        if with_scores:
            _score(run, made, config, adapter)
        opened = OpenRun(made, config, made.name, None)
        write_result(made, run_result(opened, "completed", "", time.monotonic() - started, "evaluate"))
        write_run_report([made], made / "report.html")
    print("\n".join(sentences(lineage, bank)))
    print(f"folder: {made}")
    if with_scores:
        show(compare_runs(made, BEFORE, made, AFTER))
    return 0


def without_bank(run: KeptRun, bank: str) -> tuple[Lineage, Vector]:
    """(what it is, the adapter without the bank's updates). UserError for an unknown bank and for the only one."""
    _check_bank(run, bank)
    others = [name for name in run.banks if name != bank]
    accepted = {line.round: {entry.bank for entry in line.banks if entry.is_ok} for line in run.lines}
    own = [number for number, banks in accepted.items() if bank in banks]
    influenced = sum(len(banks - {bank}) for number, banks in accepted.items() if number > own[0])
    adapter, former = run.replay(others), run.replay(run.banks)
    moved = norm(former - run.start)
    distance = norm(adapter - former)
    lineage = Lineage(
        run=run.folder.name,
        config_sha256=read_result(run.folder).config_sha256,
        adapter_sha256=adapter_checksum(former),
        without=(bank,),
        kind=REPLAY if influenced else EXACT,
        rounds=len(run.lines),
        first_round=own[0],
        updates_left_out=len(own),
        updates_influenced=influenced,
        distance=distance,
        relative_distance=distance / moved if moved else None,
    )
    return lineage, adapter


def _check_place(place: Path) -> None:
    if fault := folder_name_fault(place.name):
        raise UserError(f"{place} cannot be a run's folder: {fault}. Name another one with --output DIR.")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} is there already. Name another folder with --output DIR.")


def _check_bank(run: KeptRun, bank: str) -> None:
    if bank not in run.banks:
        raise UserError(f"{bank!r} has no accepted update in {run.folder}. Banks with one: {', '.join(run.banks)}.")
    if run.banks == [bank]:
        raise UserError(f"{bank} is the only bank with an update in {run.folder}: without it there is no run.")


def sentences(lineage: Lineage, bank: str) -> list[str]:
    """What the new adapter is, for people."""
    far = (
        ""
        if lineage.relative_distance is None
        else f", {100 * lineage.relative_distance:.1f} % of what the run changed"
    )
    found = [
        f"{bank}: {lineage.updates_left_out} updates removed, in {lineage.rounds} rounds; distance to the old "
        f"adapter {lineage.distance:.4g}{far}"
    ]
    if lineage.kind == EXACT:
        return [*found, f"exact: no other update was computed from an adapter that {bank} had a part in."]
    return [
        *found,
        f"replay of recorded updates: {lineage.updates_influenced} updates of other banks were computed from "
        "adapters that "
        f"{bank} had a part in (from round {lineage.first_round} on). That influence stays; only training again "
        "without "
        f"{bank} removes it.",
    ]  # fmt: skip


def _write(run: KeptRun, made: Path, config: Config, adapter: Vector, lineage: Lineage) -> None:
    write_config(made, config)
    write_manifest(made, config, data_files(config), with_model=False)
    run.save(made / "adapters" / "final", adapter)
    write_lineage(made, lineage)


def _score(run: KeptRun, made: Path, config: Config, adapter: Vector) -> None:
    """Both adapters on the same rows, the old one as `before`."""
    session = run.session()
    adapters = {BEFORE: run.replay(run.banks), AFTER: adapter}
    evaluate_models({label: LocalModel(session, config, vector) for label, vector in adapters.items()}, config, made)
