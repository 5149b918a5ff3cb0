"""`audit`: try to refute what is claimed, with the banks' and the server's own code.

Four checks: the same step with and without a unit; two runs of the same step; what attackers guess of canaries; the
ledger. Each is made in a folder that is thrown away, and spends nothing of a bank's. Exit status: 0 the claim holds, 1
refuted, 3 inconclusive, or nothing is claimed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report import write_run_report
from fedfinlora.commands.audit_banks import bank_checks
from fedfinlora.commands.audit_rows import row_checks
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.config.values import to_plain_group
from fedfinlora.errors import ConfigError, choose
from fedfinlora.files import write_json
from fedfinlora.privacy.audit import CANARIES, CHECKS, EXIT_STATUS, Check, sentence, together
from fedfinlora.provenance.audits import begun, bind_audit, check_may_sign
from fedfinlora.provenance.chain import AUDIT_FILE, CARD_FILE, REPORT_FILE
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.provenance.signatures import load_signer
from fedfinlora.run.folder import SERVER_LOCK, hold_run, read_config
from fedfinlora.run.origin import origin_of_this_process
from fedfinlora.run.privacy_card import privacy_card
from fedfinlora.run.records import read_rounds
from fedfinlora.run.typed import to_json

LEAST_CANARIES = 20


def audit(
    overrides: Sequence[str],
    run: Path | None,
    canaries: int,
    confidence: float,
    file: Path | None,
    checks: str = "",
    signing_key: Path | None = None,
) -> int:
    """Audit the configuration, or a run's, and print each check's verdict. The result goes to `file`, and to the run's
    card and report.

    `checks` names some of CHECKS, separated by commas. A run that a coordinator has signed takes an audit in only with
    its `signing_key`.
    """
    if canaries < LEAST_CANARIES:
        raise ConfigError(f"--canaries {canaries} can show nothing: take {LEAST_CANARIES} or more.")
    if not 0.5 < confidence < 1:
        raise ConfigError(f"--confidence must be above 0.5 and below 1, not {confidence}.")
    named = [name.strip() for name in checks.split(",") if name.strip()]
    for name in named:
        choose(name, tuple(CHECKS), "--checks")
    config = compose(overrides)
    if run is not None:
        config = read_config(run)
    signer = load_signer(signing_key) if signing_key else None
    if run is not None and (run / CHAIN_FILE).is_file():
        check_may_sign(run, begun(run), signer)
    if config.privacy.mode == "none":
        named = [CANARIES]  # nothing is claimed that the others could compare
    chosen = [name for name in CHECKS if name in named or not named]
    started = time.monotonic()
    make = bank_checks if config.privacy.mode == "bank" else row_checks
    found = []
    for check in make(config, chosen, canaries, confidence):
        print(check.line, flush=True)
        found.append(check)
    verdict = together(found)
    print(f"{verdict} ({time.monotonic() - started:.0f} s)")
    result = _as_json(config, found, verdict, confidence)
    if file is not None:
        write_json(file, result)
    if run is not None:
        with hold_run(run, SERVER_LOCK):  # else a server that trains there continues the chain from another line
            write_json(run / AUDIT_FILE, result)
            card = privacy_card(config, read_rounds(run), result)
            write_json(run / CARD_FILE, to_json(card) if card else {})
            write_run_report([run], run / REPORT_FILE)
            bind_audit(run, result["sentence"], signer)
    return EXIT_STATUS[verdict]


def _as_json(config: Config, found: Sequence[Check], verdict: str, confidence: float) -> dict[str, Any]:
    return {
        "sentence": sentence(found),
        "verdict": verdict,
        "confidence": confidence,
        "checks": {check.name: check.as_json() for check in found},
        "privacy": to_plain_group(config.privacy),
        "model": config.model.name,
        "rounds": config.num_server_rounds,
        **origin_of_this_process(),
    }
