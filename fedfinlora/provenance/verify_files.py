"""Compare the files in a run's folder with the hashes in its chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedfinlora.errors import UserError, plural
from fedfinlora.files import read_json
from fedfinlora.provenance.chain import CARD_FILE, REPORT_FILE, files_of, is_covered, round_of
from fedfinlora.provenance.deltas import delta_file, start_file
from fedfinlora.provenance.findings import Findings, first_names
from fedfinlora.provenance.folder import contents_of, sha256_of_file
from fedfinlora.provenance.lines import CHAIN_FILE, Attempt, Audited, Begin, End, Line, Saved
from fedfinlora.run.checkpoint import KEPT
from fedfinlora.run.folder import STATE, read_config
from fedfinlora.run.records import ROUNDS_FILE
from fedfinlora.run.retention import first_kept

WRITTEN_AGAIN = ("adapters/best/", "adapters/final/", "eval/final/", "tensorboard/", "result.json", ROUNDS_FILE)
"""What a resumed run writes again."""
CHECKPOINTS = "state/round_"


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
    keeps_deltas: bool = False
    """Whether the run keeps the deltas of its rounds."""

    def take(self, line: Line, run: Path, found: Findings) -> None:
        """An `end` binds everything, a `begin` what comes before the rounds, a `saved` what is of its round."""
        if isinstance(line, Begin):
            kept = {name: sha256 for name, sha256 in self.files.items() if (round_of(name) or 0) <= line.round}
            kept = {name: sha256 for name, sha256 in kept.items() if not name.startswith(WRITTEN_AGAIN)}
            begun = {"manifest.json": line.manifest_sha256} if line.manifest_sha256 else {}
            begun |= {start_file(run).relative_to(run).as_posix(): line.adapter_sha256} if not line.round else {}
            self.files = {**kept, **begun, **line.files}
            self.lines = {number: sha256 for number, sha256 in self.lines.items() if number <= line.round}
            self.status, self.ended, self.report_sha256 = "", False, ""
            self.last_round = max(self.lines, default=0)
        elif isinstance(line, Attempt):
            if self.keeps_deltas:
                self.files |= {
                    delta_file(run, line.round, bank).relative_to(run).as_posix(): line.banks[bank].delta_sha256
                    for bank in line.accepted
                }
        elif isinstance(line, Saved):
            for name in line.files:
                if name.startswith(CHECKPOINTS) and self.files.get(name, line.files[name]) != line.files[name]:
                    found.add(run / name, f"{CHAIN_FILE} has one hash of it when it was saved, and another on resume")
            self.files |= line.files
            self.last_round = line.round
            if line.round:
                self.lines[line.round] = line.line_sha256
        elif isinstance(line, End):
            for name in sorted(self.files.keys() & line.files.keys()):
                if self.files[name] != line.files[name] and round_of(name) is not None:
                    found.add(
                        run / name, f"{CHAIN_FILE} has one hash of it when it was saved, and another when the run ended"
                    )
            self.files, self.status, self.ended, self.report_sha256 = (
                dict(line.files),
                line.status,
                True,
                line.report_sha256,
            )
        elif isinstance(line, Audited):
            self.report_sha256 = line.files.get(REPORT_FILE, self.report_sha256)


def check_files(run: Path, bound: Bound, rounds: Mapping[int, str], found: Findings) -> None:
    """Every file is as the chain has it; what it has no hash of is not proven, or, once the run has ended, wrong.
    `rounds` is round -> hash of its line of rounds.jsonl.
    """
    for number, sha256 in sorted(bound.lines.items()):
        if rounds.get(number, sha256) != sha256:  # `check_rounds` names a missing one
            found.add(run / ROUNDS_FILE, f"the line of round {number} is not as it was when it was saved")
    here = files_of(run)
    if bound.ended:
        _check_ended(run, bound, here, found)
    else:
        _check_broken_off(run, bound, here, rounds, found)
    report = run / REPORT_FILE
    if bound.report_sha256:
        found.checked.append(
            f"{REPORT_FILE}: only its hash was compared; `python -m fedfinlora report` makes it again from the files "
            "that were checked"
        )
    if bound.report_sha256 and report.is_file() and sha256_of_file(report) != bound.report_sha256:
        found.not_proven(
            report,
            "it was written again after the run ended; `python -m fedfinlora report` makes it from the files that "
            "were checked",
        )
    known = (CHAIN_FILE, CARD_FILE, *([REPORT_FILE] if bound.report_sha256 else []))
    for place, count in _by_folder(
        name for name in contents_of(run).files if not is_covered(name) and name not in known
    ):
        found.checked.append(f"not covered: {place}" + (f", {plural(count, 'file')}" if place.endswith("/") else ""))
    same = sum(bound.files.get(name) == sha256 for name, sha256 in here.items())
    found.checked.append(f"files: {same} of {len(here)} are as {CHAIN_FILE} has them")


def _by_folder(names: Iterable[str]) -> list[tuple[str, int]]:
    """(a folder with "/" at its end, how many files are below it); a file of the run's folder, or right in `state`, by
    its name.

    >>> _by_folder(["report.html", "state/server.log", "state/flwr/a/b", "state/flwr/c"])
    [('report.html', 1), ('state/flwr/', 2), ('state/server.log', 1)]
    """
    folders: Counter[str] = Counter()
    for name in names:
        parts = name.split("/")
        depth = 2 if parts[0] == STATE else 1
        folders["/".join(parts[:depth]) + ("/" if len(parts) > depth else "")] += 1
    return sorted(folders.items())


def _check_ended(run: Path, bound: Bound, here: Mapping[str, str], found: Findings) -> None:
    for name in sorted({*bound.files, *here}):
        if name not in here:
            found.add(run / name, "it is missing")
        elif name not in bound.files:
            found.add(run / name, "it was not there when the run ended")
        elif bound.files[name] != here[name]:
            found.add(run / name, "it is not as it was when the run ended")


def _check_broken_off(
    run: Path, bound: Bound, here: Mapping[str, str], rounds: Mapping[int, str], found: Findings
) -> None:
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
    loose = [
        name
        for name in sorted(here)
        if name not in bound.files and (name != ROUNDS_FILE or set(rounds) - set(bound.lines))
    ]
    found.not_proven(
        run / CHAIN_FILE,
        f"the run was broken off or is still running after round {bound.last_round}: nothing shows whether later "
        "lines were cut off",
    )
    if loose:
        found.not_proven(run, f"{CHAIN_FILE} has no hash of {first_names(loose)}")


def _kept_from(run: Path, last: int) -> int:
    """The first round whose adapter and scored rows are kept after round `last`."""
    try:
        return first_kept(last, read_config(run))
    except UserError:
        return 0


def _may_be_gone(name: str, last: int, kept_from: int) -> bool:
    """Whether a run removes a file by itself: older checkpoints, and what `keep_rounds` lets go."""
    number = round_of(name)
    if name.startswith("deltas/"):
        return True
    if number is None or name.endswith("metrics.json"):
        return False
    return number <= last - KEPT + 1 if name.startswith("state/") else number < kept_from


def _status(run: Path) -> str:
    """How the run ended: "stopped" and "failed" may be written by the command that followed it, after its server was
    gone.
    """
    try:
        return str(read_json(run / "result.json")["status"])
    except (UserError, KeyError, TypeError):
        return ""
