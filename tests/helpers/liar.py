"""The owner of a run's folder who lies: changes what it likes, and then makes every hash right again, with the
coordinator's key or without one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedfinlora.files import read_json, write_json
from fedfinlora.model.adapter_folder import PROVENANCE_FILE
from fedfinlora.provenance.bom import BOM_FILE, bom_of
from fedfinlora.provenance.chain import AT_BEGIN, files_of
from fedfinlora.provenance.evidence import NO_DELTA
from fedfinlora.provenance.folder import sha256_of_file
from fedfinlora.provenance.lines import CHAIN_FILE, read_values
from fedfinlora.provenance.model_signature import SIGNATURE_FILE, sign_folder
from fedfinlora.provenance.signatures import LINE, REQUEST, Signer, canonical, digest

Values = dict[str, Any]


def chain_of(run: Path) -> list[Values]:
    return [read_values(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]


def write_chain(run: Path, lines: list[Values], signer: Signer | None = None) -> None:
    """The lines with hashes that are right, and the signatures that they had, or new ones."""
    previous, content = "0" * 64, b""
    for line in lines:
        body = {key: value for key, value in line.items() if key not in ("sha256", "signature", "previous")}
        body["previous"] = previous
        previous = digest(body)
        signature = {"signature": line["signature"]} if "signature" in line else {}
        if signer:
            signature = {"signature": signer.sign(LINE, previous)}
        content += canonical({**body, "sha256": previous, **signature}) + b"\n"
    (run / CHAIN_FILE).write_bytes(content)


def edited(file: Path, edit: Callable[[Any], Any]) -> None:
    """Change a JSON file."""
    values = read_json(file)
    edit(values)
    write_json(file, values)


def edited_lines(file: Path, edit: Callable[[list[Any]], Any]) -> None:
    """Change a file with a JSON object a line."""
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    edit(lines)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def rounds_in(lines: list[Values]) -> list[Values]:
    """The rounds of a chain."""
    return [line for line in lines if line["kind"] == "round"]


def makes_right(run: Path, lines: list[Values], signer: Signer | None = None) -> None:
    """Give every line of the chain, every request and the release the hashes and signatures that fit the folder as it
    is now.
    """
    rows = {
        line["round"]: digest(line) for line in map(json.loads, (run / "rounds.jsonl").read_text("utf-8").splitlines())
    }
    before = lines[0]["adapter_sha256"]
    for line in lines:
        if line["kind"] == "begin":
            line["manifest_sha256"] = sha256_of_file(run / "manifest.json")
            line["files"] = _hashes(run, AT_BEGIN)
        elif line["kind"] == "round":
            line["start_sha256"] = before
            for asked in (line["request"], *(part["request"] for part in line["banks"].values())):
                if asked.get("adapter-sha256", NO_DELTA) != NO_DELTA:  # none is sent to a bank that has its own
                    asked["adapter-sha256"] = before
            before = line["adapter_sha256"]
            for part in line["banks"].values():
                request = {**line["request"], **part["request"]}
                if signer:
                    part["request_signature"] = signer.sign(REQUEST, request)
                elif part.get("reply"):
                    part["reply"]["request"] = digest(request)
        elif line["kind"] == "saved":
            line["files"] = _hashes(run, line["files"])
            line["line_sha256"] = rows.get(line["round"], "")
    write_chain(run, lines[:-1], signer)
    _release(run, chain_of(run)[-1]["sha256"], signer)
    lines[-1]["files"] = files_of(run)
    write_chain(run, lines, signer)


def _hashes(run: Path, names: Any) -> dict[str, str]:
    return {name: sha256_of_file(run / name) for name in names if (run / name).is_file()}


def _release(run: Path, chain_sha256: str, signer: Signer | None) -> None:
    folder = run / "adapters" / "final"
    statement = read_json(folder / PROVENANCE_FILE)
    manifest = read_json(run / "manifest.json")
    statement["predicate"]["chainSha256"] = chain_sha256
    statement["predicate"]["data"] = manifest["data_sha256"]
    statement["predicate"]["configurationSha256"] = manifest["config_sha256"]
    statement["predicate"]["code"] |= {"commit": manifest["git_commit"], "sourceSha256": manifest["source_sha256"]}
    files = {one["name"]: sha256_of_file(folder / one["name"]) for one in statement["subject"]}
    statement["subject"] = [{"name": name, "digest": {"sha256": found}} for name, found in files.items()]
    write_json(folder / PROVENANCE_FILE, statement)
    write_json(folder / BOM_FILE, bom_of(run.name, files, statement["predicate"]))
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    if signer:
        sign_folder(folder, signer)
