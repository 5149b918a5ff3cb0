"""provenance.jsonl of a run: lines in a chain of hashes, and what each kind of line binds of the run's files.

A chain begins with `begin`. For each round follow `round`, written before its checkpoint, and `saved`, written once the
round is closed; `end` has the hash of every file. A line costs about 2 KB, and 1.2 KB a bank and round.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from fedfinlora import __version__
from fedfinlora.errors import UserError
from fedfinlora.files import append_synced, unwritable
from fedfinlora.provenance.evidence import ServerKeys
from fedfinlora.provenance.folder import contents_of, sha256_of_file
from fedfinlora.provenance.lines import CHAIN_FILE, FIRST, Begin, End, Line, Saved, read_values, values_of
from fedfinlora.provenance.signatures import LINE, Signer, WrongSignature, canonical, digest
from fedfinlora.run.records import ROUNDS_FILE

REPORT_FILE, AUDIT_FILE, CARD_FILE = "report.html", "audit.json", "privacy.json"
LATER = (CHAIN_FILE, "progress.jsonl", REPORT_FILE, CARD_FILE, AUDIT_FILE, "contributions.json")
"""Files that are written after `end`, or by other commands later."""
OF_STATE = ("run.json", "origin.json")
"""Of the folder `state`, besides checkpoints: all else there is logs, locks and Flower's own."""
AT_BEGIN = ("config.yaml", "manifest.json", "resumed.jsonl", "state/run.json", "state/origin.json")
"""Written before the first round, or before a resumed run's next one."""
OF_ROUND = re.compile(
    r"(?:state/round_|adapters/round_|deltas/round_|eval/(?:validation_)?round_)(\d+)(?:\.safetensors\Z|/)", re.ASCII
)
"""Names of a round's own files."""


class Chain:
    """provenance.jsonl of a run, to add lines to."""

    def __init__(self, folder: Path, signer: Signer | None = None) -> None:
        """Begin it, or continue after its last whole line. UserError where it is damaged."""
        self.file, self._signer = folder / CHAIN_FILE, signer
        self._previous = FIRST
        try:
            content = self.file.read_bytes() if self.file.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if whole:
                self._previous = str(read_values(whole.splitlines()[-1])["sha256"])
            if whole != content:
                os.truncate(self.file, len(whole))
        except OSError as error:
            raise UserError(f"{self.file} cannot be read ({error.strerror}).") from error
        except WrongSignature as error:
            raise UserError(
                f"{self.file} is damaged: {error}. `python -m fedfinlora verify {folder}` says more."
            ) from error

    def append(self, line: Line) -> str:
        """Write one line and sync it; returns its hash."""
        body = {**values_of(line), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "previous": self._previous}
        found = digest(body)
        signed = {"signature": self._signer.sign(LINE, found)} if self._signer else {}
        try:
            append_synced(self.file, canonical({**body, "sha256": found, **signed}) + b"\n")
        except OSError as error:
            raise unwritable(self.file, error) from error
        self._previous = found
        return found


def saved_files(run: Path) -> dict[str, str]:
    """Path -> SHA-256, of what the rounds have saved, as the chain last has it. A round that was begun again counts
    only once it is saved again. UserError where the chain is damaged.
    """
    found: dict[str, str] = {}
    file = run / CHAIN_FILE
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1] if file.is_file() else (), 1):
        try:
            values = read_values(line)
        except WrongSignature as error:
            raise UserError(
                f"{file}, line {number}: {error}. `python -m fedfinlora verify {run}` says more."
            ) from error
        if values["kind"] == "begin":
            found = {name: sha256 for name, sha256 in found.items() if (round_of(name) or 0) <= values["round"]}
        elif values["kind"] == "saved":
            found |= values["files"]
    return found


def begin_line(
    run: Path, run_id: str, config_json: str, code_sha256: str, keys: ServerKeys, round_number: int, adapter_sha256: str
) -> Begin:
    """What a run begins or resumes with after `round_number` rounds."""
    files = _hashes(run, AT_BEGIN)
    certificate = keys.signer.certificate if keys.signer else ""
    return Begin(
        run_id, round_number, adapter_sha256, config_json, code_sha256, files.get("manifest.json", ""), certificate,
        keys.banks, __version__, files,
    )  # fmt: skip


def saved_line(run: Path, run_id: str, round_number: int, with_base: bool = False) -> Saved:
    """What lies on the disk after a round; `with_base` adds the scores of the base model."""
    scored = [f"eval/{kind}_{round_number:03d}" for kind in ("round", "validation_round")]
    folders = [f"adapters/round_{round_number:03d}", "adapters/best", *scored, *(["eval/base"] if with_base else [])]
    names = [f"{folder}/{name}" for folder in folders for name in contents_of(run / folder).files]
    files = _hashes(run, [*names, f"state/round_{round_number:04d}.safetensors"])
    return Saved(run_id, round_number, files, _last_line_sha256(run / ROUNDS_FILE) if round_number else "")


def end_line(run: Path, run_id: str, status: str) -> End:
    """What a run has left."""
    return End(run_id, status, files_of(run), _hashes(run, [REPORT_FILE]).get(REPORT_FILE, ""))


def _hashes(run: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: sha256_of_file(run / name) for name in names if (run / name).is_file()}


def _last_line_sha256(file: Path) -> str:
    """Of the canonical JSON of the last line; "" where there is none."""
    with open(file, "rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - MOST_LINE_BYTES))
        lines = stream.read().splitlines()
    return digest(json.loads(lines[-1])) if lines else ""


MOST_LINE_BYTES = 2**24
"""Of a line of rounds.jsonl; one has 1 KB a bank."""


def files_of(run: Path) -> dict[str, str]:
    """Path -> SHA-256, of every file that does not change once the run has ended. OSError."""
    return {name: sha256_of_file(run / name) for name in contents_of(run).files if is_covered(name)}


def is_covered(name: str) -> bool:
    """Whether `end` has the hash of a file of the run's folder.

    >>> (is_covered("config.yaml"), is_covered("report.html"), is_covered("state/server.log"),
    ... is_covered("state/round_0001.safetensors"))
    (True, False, False, True)
    >>> is_covered(".hidden"), is_covered("state/.hidden"), is_covered("state/flwr/.cache/x")
    (True, True, False)
    """
    if name in LATER:
        return False
    if not name.startswith("state/"):
        return True
    rest = name.removeprefix("state/")
    return rest in OF_STATE or rest.startswith(".") or (rest.startswith("round_") and rest.endswith(".safetensors"))


def round_of(name: str) -> int | None:
    """The round that a file is of.

    >>> (round_of("state/round_0012.safetensors"), round_of("eval/validation_round_003/fpb.jsonl"),
    ... round_of("adapters/best/x"))
    (12, 3, None)
    """
    found = OF_ROUND.match(name)
    return int(found[1]) if found else None
