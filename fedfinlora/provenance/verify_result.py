"""Compute what config.yaml, manifest.json, state/run.json and result.json say again from the chain and each other."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedfinlora import __version__
from fedfinlora.config.values import build
from fedfinlora.errors import UserError, plural
from fedfinlora.files import read_lines, read_mapping
from fedfinlora.provenance.compared import differences
from fedfinlora.provenance.findings import Findings
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.provenance.verify_chain import ChainCheck
from fedfinlora.run.folder import config_fingerprint, deciding_values, read_config
from fedfinlora.run.opening import OpenRun, run_result
from fedfinlora.run.origin import ORIGIN_FILE, source_files, source_fingerprint
from fedfinlora.run.records import RESULT_FILE, RoundLine, read_result
from fedfinlora.run.resuming import RESUMED_FILE
from fedfinlora.run.typed import to_json

MANIFEST = "manifest.json"
ITS_OWN = ("reason", "run", "run_dir", "finished_at", "config_sha256", "schema_version")
"""Keys of result.json that say where and when, and why it ended; `config_sha256` is that of the manifest."""


def check_identity(chain: ChainCheck, found: Findings) -> None:
    """config.yaml and state/run.json are those of the chain."""
    run, identity = chain.run, chain.run / "state" / "run.json"
    try:
        values = read_mapping(identity)
        if values.get("run_id") != chain.run_id:
            found.add(identity, f"it is of another run than {CHAIN_FILE}")
        if values.get("mode") != "federated":
            found.add(identity, "its mode is not federated")
    except UserError as error:
        found.add(identity, str(error))
    try:
        own = read_config(run)
        if chain.config is not None:
            found.differs(
                differences(deciding_values(chain.config), deciding_values(own), run / "config.yaml",
                    f"the configuration in {CHAIN_FILE}")
            )  # fmt: skip
    except UserError as error:
        found.add(run / "config.yaml", str(error))


def check_manifest(chain: ChainCheck, found: Findings) -> None:
    """manifest.json has the hashes of the configuration and of the code that the chain has, and what state/origin.json
    says.
    """
    run, file, config = chain.run, chain.run / MANIFEST, chain.config
    manifest = read_mapping(file)
    if config is None or not chain.begins:
        return
    same_version = chain.begins[0].version == __version__
    expected: dict[str, Any] = {"seed": config.seed, "config_sha256": config_fingerprint(config)}
    identity = read_mapping(run / "state" / "run.json")
    if not same_version and manifest.get("config_sha256") == identity.get("config_sha256"):
        del expected["config_sha256"]  # another version has other settings
        found.checked.append(
            f"{MANIFEST}: config_sha256 was not computed again, version {chain.begins[0].version} has made it"
        )
    wrong = list(differences(expected, {name: manifest.get(name) for name in expected}, file, "the configuration"))
    wrong += differences(
        manifest.get("config_sha256"),
        identity.get("config_sha256"),
        run / "state" / "run.json",
        MANIFEST,
        "config_sha256",
    )
    if (run / ORIGIN_FILE).is_file():
        origin = read_mapping(run / ORIGIN_FILE)
        wrong += differences(origin, {name: manifest.get(name) for name in origin}, file, str(ORIGIN_FILE))
    asked = next((one.line.request.get("source-sha256") for one in chain.rounds.values() if one.begin == 1), None)
    if asked is not None:
        wrong += differences(
            asked, manifest.get("source_sha256"), file, f"the requests in {CHAIN_FILE}", "source_sha256"
        )
    if manifest.get("source_sha256") == source_fingerprint():
        wrong += differences(
            source_files(), manifest.get("source_files"), file, "this code, whose hash it has", "source_files"
        )
        found.checked.append(f"{MANIFEST}: code, configuration and seed were computed again")
    else:
        found.checked.append(
            f"{MANIFEST}: configuration and seed were computed again; its code is not the one that checks it"
        )
    found.checked.append(f"{MANIFEST}: the hashes of data and base model are of files that are not in this folder")
    found.differs(wrong)


def check_resumed(chain: ChainCheck, found: Findings) -> None:
    """Each line of resumed.jsonl is of a `begin` after as many rounds, and a run that was resumed with other code or
    another configuration has one.
    """
    file = chain.run / RESUMED_FILE
    lines = read_lines(file)
    after = [begin.round for begin in chain.begins[1:]]
    for number, line in enumerate(lines, 1):
        if line.get("after_round") not in after:
            found.add(f"{file}, line {number}", f"{CHAIN_FILE} has no begin after round {line.get('after_round')}")
    said = {line.get("after_round") for line in lines}
    for earlier, begin in itertools.pairwise(chain.begins):
        if begin.version == earlier.version and begin.round not in said:
            was, now_is = (deciding_values(build(json.loads(each.config))) for each in (earlier, begin))
            found.differs(differences(was, now_is, chain.run / "config.yaml", f"{CHAIN_FILE} before it was resumed"))
    codes: dict[int, Any] = {}
    """Which `begin`, from 1 -> hash of the code that its rounds ask for."""
    for one in chain.rounds.values() if after else ():
        if one.begin not in codes:
            codes[one.begin] = one.line.request.get("source-sha256")
    for number, code in codes.items():
        before = after[number - 2] if number > 1 else 0
        if code != next(iter(codes.values())) and before not in said:
            found.add(file, f"the run was resumed after round {before} with other code, and it does not say so")


def check_result(chain: ChainCheck, lines: Sequence[RoundLine], status: str, found: Findings) -> None:
    """result.json follows from configuration, rounds.jsonl and eval/."""
    run, file, config = chain.run, chain.run / RESULT_FILE, chain.config
    if config is None:
        return
    result = read_result(run)
    made = run_result(
        OpenRun(run, config, str(chain.run_id), None), status, result.reason, result.wall_s.total or 0.0, lines=lines
    )
    expected, has = (_comparable(to_json(one)) for one in (made, result))
    wrong = list(differences(expected, has, file, "config.yaml, rounds.jsonl and eval/ of this folder"))
    manifest = read_mapping(run / MANIFEST)
    wrong += differences(manifest.get("config_sha256"), result.config_sha256, file, MANIFEST, "config_sha256")
    if status == "completed" and len(lines) != config.num_server_rounds and result.stopped_early_after_round is None:
        found.add(
            file,
            f"it is completed after {len(lines)} of {plural(config.num_server_rounds, 'round')}, and nothing has stopped it early",  # noqa: E501
        )
    if not found.differs(wrong):
        found.checked.append(f"{RESULT_FILE}: every figure but the wall time was computed again")


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ITS_OWN}
