"""Compare configuration, adapters and hashes of files in a run's folder with its chain: none was added, changed or removed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedfinlora.checkpoint import KEPT
from fedfinlora.config import Config
from fedfinlora.errors import UserError
from fedfinlora.provenance.chain import CARD_FILE, REPORT_FILE, files_of, is_covered, round_of
from fedfinlora.provenance.deltas import delta_file, start_file
from fedfinlora.provenance.findings import Findings, Round, first_names
from fedfinlora.provenance.folder import contents_of, file_bytes, sha256_of_file
from fedfinlora.provenance.lines import CHAIN_FILE, Attempt, Audited, Begin, End, Saved
from fedfinlora.provenance.signatures import digest
from fedfinlora.provenance.verify_chain import Placed
from fedfinlora.retention import first_kept
from fedfinlora.run.records import RESULT_FILE, ROUNDS_FILE, read_result
from fedfinlora.runfolder import deciding_values, read_config, read_json

WRITTEN_AGAIN = ("adapters/best/", "adapters/final/", "eval/final/", "tensorboard/", "result.json", ROUNDS_FILE)
"""What a resumed run writes again."""


@dataclass
class Bound:
    """What the chain has come to: which file has which hash."""

    files: dict[str, str] = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)
    """Round -> hash of its line of rounds.jsonl."""
    status: str = ""
    """Of the last `end`."""
    ended: bool = False
    """Whether nothing but audits follows the last `end`: it has every file."""
    report_sha256: str = ""
    last_round: int = 0
    """The last that was closed."""


def bound_by(lines: Sequence[Placed], run: Path) -> Bound:
    """What the lines bind together: an `end` everything, a `begin` what comes before the rounds, a `saved` what is of its round."""
    found = Bound()
    for _, sealed in lines:
        line = sealed.line
        if isinstance(line, Begin):
            kept = {name: sha256 for name, sha256 in found.files.items() if (round_of(name) or 0) <= line.round}
            kept = {name: sha256 for name, sha256 in kept.items() if not name.startswith(WRITTEN_AGAIN)}
            rounds = {number: sha256 for number, sha256 in found.lines.items() if number <= line.round}
            begun = {"manifest.json": line.manifest_sha256} if line.manifest_sha256 else {}
            begun |= {start_file(run).relative_to(run).as_posix(): line.adapter_sha256} if not line.round else {}
            found = Bound({**kept, **begun, **line.files}, rounds, last_round=max(rounds, default=0))
        elif isinstance(line, Attempt):
            found.files |= {
                delta_file(run, line.round, bank).relative_to(run).as_posix(): line.banks[bank].delta_sha256
                for bank in line.accepted
            }
        elif isinstance(line, Saved):
            found.files |= line.files
            found.last_round = line.round
            if line.round:
                found.lines[line.round] = line.line_sha256
        elif isinstance(line, End):
            found = Bound(dict(line.files), found.lines, line.status, True, line.report_sha256, found.last_round)
        elif isinstance(line, Audited):
            found.report_sha256 = line.files.get(REPORT_FILE, found.report_sha256)
    return found


def check_identity(run: Path, run_id: str, config: Config | None, found: Findings) -> None:
    """config.yaml and state/run.json are those of the chain."""
    identity = run / "state" / "run.json"
    try:
        if read_json(identity).get("run_id") != run_id:
            found.add(identity, f"it is of another run than {CHAIN_FILE}")
    except (UserError, AttributeError) as error:
        found.add(identity, str(error))
    try:
        own = read_config(run)
        if config is not None and digest(deciding_values(own)) != digest(deciding_values(config)):
            found.add(run / "config.yaml", f"it is not the configuration in {CHAIN_FILE}")
    except UserError as error:
        found.add(run / "config.yaml", str(error))


def check_result(run: Path, bound: Bound, rounds: Mapping[int, Round], found: Findings) -> None:
    """result.json says how the run ended, after how many rounds and of what configuration, as the chain does."""
    result = read_result(run)
    config = rounds[max(rounds)].config if rounds else None
    expected: dict[str, object] = {"status": bound.status, "rounds": len(rounds)}
    if config is not None:
        expected |= {
            "model": config.model.name,
            "peft": config.peft.method,
            "strategy": config.strategy.name,
            "seed": config.seed,
        }
    for name, value in expected.items():
        if getattr(result, name) != value:
            found.add(run / RESULT_FILE, f"{name} is not what {CHAIN_FILE} says")


def check_files(run: Path, bound: Bound, found: Findings) -> None:
    """Every file that the chain has a hash of is as it was; what it has none of is not proven, or, once the run has ended, wrong."""
    here = files_of(run)
    if bound.ended:
        _check_ended(run, bound, here, found)
    else:
        _check_broken_off(run, bound, here, found)
    report = run / REPORT_FILE
    if bound.report_sha256 and report.is_file() and sha256_of_file(report) != bound.report_sha256:
        found.not_proven(
            report,
            "it was written again after the run ended; `python -m fedfinlora report` makes it from the files that were checked",
        )
    known = (CHAIN_FILE, CARD_FILE, *([REPORT_FILE] if bound.report_sha256 else []))
    others = [name for name in contents_of(run).files if not is_covered(name) and name not in known]
    not_covered = f"; not covered: {first_names(others)}" if others else ""
    same = sum(bound.files.get(name) == sha256 for name, sha256 in here.items())
    found.checked.append(f"files: {same} of {len(here)} are as {CHAIN_FILE} has them{not_covered}")


def _check_ended(run: Path, bound: Bound, here: Mapping[str, str], found: Findings) -> None:
    for name in sorted({*bound.files, *here}):
        if name not in here:
            found.add(run / name, "it is missing")
        elif name not in bound.files:
            found.add(run / name, "it was not there when the run ended")
        elif bound.files[name] != here[name]:
            found.add(run / name, "it is not as it was when the run ended")


def _check_broken_off(run: Path, bound: Bound, here: Mapping[str, str], found: Findings) -> None:
    """A run whose process was killed, or that is still running: its last `saved` is what there is."""
    completed = "result.json" in here and _status(run) not in ("stopped", "failed")
    for name, ended in (("result.json", completed), ("adapters/final", (run / "adapters" / "final").exists())):
        if ended:
            found.add(run / CHAIN_FILE, f"its last line is missing: {name} says that the run has ended")
    in_hand = any((round_of(name) or 0) > bound.last_round for name in here)
    kept_from = _kept_from(run, bound.last_round + in_hand)
    for name, sha256 in sorted(bound.files.items()):
        if name not in here:
            if not _may_be_gone(name, bound.last_round, kept_from):
                found.add(run / name, "it is missing")
        elif here[name] != sha256:
            if name.startswith("adapters/best/") and in_hand:
                found.not_proven(run / name, f"it was written after round {bound.last_round}")
            else:
                found.add(run / name, "it is not as it was when it was saved")
    rounds = _rounds_lines(run)
    for number, sha256 in sorted(bound.lines.items()):
        if rounds.get(number, sha256) != sha256:  # `check_rounds_file` names a missing one
            found.add(run / ROUNDS_FILE, f"the line of round {number} is not as it was when it was saved")
    loose = [
        name for name in sorted(here) if name not in bound.files and (name != ROUNDS_FILE or set(rounds) - set(bound.lines))
    ]
    found.not_proven(
        run / CHAIN_FILE,
        f"the run was broken off or is still running after round {bound.last_round}: nothing shows whether later lines were cut off",
    )
    if loose:
        found.not_proven(run, f"{CHAIN_FILE} has no hash of {first_names(loose)}")


def _kept_from(run: Path, last: int) -> int:
    """The first round whose adapter and scored rows were not yet removed after round `last`."""
    try:
        return first_kept(last, read_config(run))
    except UserError:
        return 0


def _may_be_gone(name: str, last: int, kept_from: int) -> bool:
    """Whether a run removes a file by itself: older checkpoints, and what `keep_rounds` lets go. Deltas are there only if they were kept."""
    number = round_of(name)
    if name.startswith("deltas/"):
        return True
    if number is None or name.endswith("metrics.json"):
        return False
    return number <= last - KEPT + 1 if name.startswith("state/") else number < kept_from


def _rounds_lines(run: Path) -> dict[int, str]:
    """Round -> hash of its line of rounds.jsonl; what cannot be read is left out, and named by `check_rounds_file`."""
    found: dict[int, str] = {}
    for line in file_bytes(run / ROUNDS_FILE).splitlines() if (run / ROUNDS_FILE).is_file() else ():
        try:
            values = json.loads(line)
            found[int(values["round"])] = digest(values)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _status(run: Path) -> str:
    """How the run ended: "stopped" and "failed" may be written by the command that followed it, after its server was gone."""
    try:
        return str(read_json(run / "result.json")["status"])
    except (UserError, KeyError, TypeError):
        return ""
