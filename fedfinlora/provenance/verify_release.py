"""Hold what a run's adapters/final says of its origin against the run's own chain, field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.model_files import sha256_of_files
from fedfinlora.privacy.card import privacy_card
from fedfinlora.provenance.chain import CHAIN_FILE
from fedfinlora.provenance.findings import Ended, Findings
from fedfinlora.provenance.release import FINAL, PROVENANCE_FILE, Origin, origin_of, read_statement
from fedfinlora.provenance.signatures import WrongSignature, canonical
from fedfinlora.runfolder import read_json, read_lines


def check_release(run: Path, ended: Ended, found: Findings) -> None:
    """Name each field of the statement that is not what the chain had come to when the run was completed."""
    file = run / FINAL / PROVENANCE_FILE
    try:
        said = read_statement(run / FINAL)
        expected = _origin(run, ended, said, found)
    except WrongSignature:
        return  # whoever checks the adapter's own folder says what is wrong
    except UserError as error:  # it names the file, which is another's finding too
        found.checked.append(f"adapters/final: not held against {CHAIN_FILE} ({error})")
        return
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found.add(file, f"it cannot be held against {CHAIN_FILE} ({type(error).__name__})")
        return
    for name in differing(expected.to_json(), said.to_json()):
        found.add(file, f"{name} is not what {CHAIN_FILE} and the files that it covers say")
    found.checked.append(f"adapters/final: its statement was held against {CHAIN_FILE}, field by field")


def _origin(run: Path, ended: Ended, said: Origin, found: Findings) -> Origin:
    config, audited = ended.config, run / "audit.json"
    lines = [line for line in read_lines(run / "rounds.jsonl") if line["round"] in ended.rounds]
    cards = [privacy_card(config, lines)] + ([privacy_card(config, lines, read_json(audited))] if audited.is_file() else [])
    card = next(
        (each for each in cards if canonical(each or None) == canonical(said.privacy)), cards[0]
    )  # an audit may be later
    base, files = said.base_model.sha256, read_json(run / "manifest.json").get("model_files")
    if files:
        base = sha256_of_files(files)
    else:
        found.checked.append("adapters/final: the base model's hash was not compared, the run's manifest does not have it")
    expected = origin_of(run, config, lines, ended.run, ended.code_sha256, ended.previous, base, card or None)
    accepted = sorted({bank for one in ended.rounds.values() for bank in one.accepted})
    kept = ended.rounds[expected.of_round].line["adapter_sha256"] if expected.of_round in ended.rounds else ""
    code = replace(expected.code, version=said.code.version)  # of the program that trained, which the chain does not name
    return replace(expected, banks=accepted, rounds=len(ended.rounds), adapter_sha256=kept, code=code)


def differing(expected: Any, found: Any, where: str = "") -> Iterator[str]:
    """Names of the values that differ, with a dot between the levels.

    >>> list(differing({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 0}, "e": 4}))
    ['b.c', 'b.d', 'e']
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in sorted({*expected, *found}):
            if name not in expected or name not in found:
                yield f"{where}{name}"
            else:
                yield from differing(expected[name], found[name], f"{where}{name}.")
    elif canonical(expected) != canonical(found):
        yield where.removesuffix(".")
