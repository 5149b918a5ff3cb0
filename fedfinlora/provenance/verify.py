"""Check a run's folder from provenance.jsonl alone, offline: that each adapter follows from what was asked and answered, and who said so.

`verify_run` continues after what it finds wrong, and names the file each time. Without an authority it shows that nothing was changed since; with the
consortium's ca.crt it shows who said it; with the deltas (strategy.keep_deltas) it computes each round again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfinlora.provenance.chain import AUDIT_FILE, CARD_FILE
from fedfinlora.provenance.findings import Findings, naming, no_other_kinds
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.provenance.verify_card import check_audit, check_card
from fedfinlora.provenance.verify_chain import ChainCheck, Placed
from fedfinlora.provenance.verify_deltas import Step, compute_again
from fedfinlora.provenance.verify_files import bound_by, check_files, check_identity, check_result
from fedfinlora.provenance.verify_release import check_release
from fedfinlora.provenance.verify_rounds import check_rounds_file
from fedfinlora.provenance.verify_weights import check_adapters
from fedfinlora.run.records import RESULT_FILE


def verify_run(
    run: Path,
    authority: bytes | None = None,
    enrolled: Mapping[str, str] | None = None,
    step: Step | None = None,
    first_state: Any = None,
) -> Findings:
    """Check the run in a folder. `authority` is the ca.crt that the reader trusts, `enrolled` the banks' public keys that the reader knows
    (OpenSSH's form), `step` and `first_state` ((configuration, adapter, layout id) -> state) compute a round again.
    """
    found = Findings()
    if not no_other_kinds(run, found):
        return found
    chain = ChainCheck(run, authority, enrolled, found)
    lines: list[Placed] = []
    with naming(run / CHAIN_FILE, found):
        lines = chain.lines()
        chain.walk(lines)
    if chain.run_id is not None:
        with naming(run / "config.yaml", found):
            check_identity(run, chain.run_id, chain.config, found)
    with naming(run / "rounds.jsonl", found):
        check_rounds_file(run, chain.rounds, chain.open_round, found)
    with naming(run / "deltas", found):
        compute_again(run, chain.rounds, chain.started, step, first_state, found)
    with naming(run / "adapters", found):
        check_adapters(run, chain.rounds, found)
    bound = bound_by(lines, run)
    with naming(run, found):
        check_files(run, bound, found)
    if bound.ended:
        with naming(run / RESULT_FILE, found):
            check_result(run, bound, chain.rounds, found)
    is_bound = False
    with naming(run / AUDIT_FILE, found):
        is_bound = check_audit(run, chain.audits, found)
    with naming(run / CARD_FILE, found):
        check_card(run, chain.audits, is_bound, bound.ended, found)
    if chain.ended is not None:
        with naming(run / "adapters" / "final", found):
            check_release(run, chain.ended, found)
    return found
