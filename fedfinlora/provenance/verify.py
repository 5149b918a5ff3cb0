"""Check a run's folder from provenance.jsonl alone, offline.

Without an authority it shows that nothing was changed since; with the consortium's ca.crt it shows who said it; with
the deltas (strategy.keep_deltas) it computes each round again. Whoever holds the folder can write a chain with right
hashes, so every figure that follows from others is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fedfinlora import __version__
from fedfinlora.provenance.chain import AUDIT_FILE, CARD_FILE
from fedfinlora.provenance.compared import Difference
from fedfinlora.provenance.findings import Findings, naming, no_other_kinds
from fedfinlora.provenance.lines import CHAIN_FILE
from fedfinlora.provenance.rules import Rules
from fedfinlora.provenance.verify_card import check_audit, check_card
from fedfinlora.provenance.verify_chain import ChainCheck
from fedfinlora.provenance.verify_deltas import Computed, compute_again
from fedfinlora.provenance.verify_drift import check_drift
from fedfinlora.provenance.verify_files import Bound, check_files
from fedfinlora.provenance.verify_moments import check_moments
from fedfinlora.provenance.verify_release import check_release
from fedfinlora.provenance.verify_result import MANIFEST, check_identity, check_manifest, check_result, check_resumed
from fedfinlora.provenance.verify_rounds import RoundsCheck, read_rounds_file
from fedfinlora.provenance.verify_weights import SavedNorms, adapter_size, check_adapters, check_checkpoints
from fedfinlora.run.records import RESULT_FILE, ROUNDS_FILE, RoundLine
from fedfinlora.run.resuming import RESUMED_FILE

OnStep = Callable[[str], None]
"""Called again and again with what is being done, in a few words."""


def verify_run(
    run: Path,
    rules: Rules,
    authority: bytes | None = None,
    enrolled: Mapping[str, str] | None = None,
    on_step: OnStep = lambda words: None,
) -> Findings:
    """`authority` is the ca.crt that the reader trusts, `enrolled` the banks' public keys that the reader knows
    (OpenSSH's form).
    """
    found = Findings()
    if not no_other_kinds(run, found):
        return found
    lines, hashes = list[RoundLine](), dict[int, str]()
    with naming(run / ROUNDS_FILE, found):
        lines, hashes = read_rounds_file(run, found)
    bound = Bound()
    chain: ChainCheck | None = None
    with naming(run / CHAIN_FILE, found):
        rounds = RoundsCheck(run, lines, adapter_size(run), rules)
        chain = ChainCheck(run, authority, enrolled, rounds.compare, found)
        for place, sealed in chain.lines():
            on_step(f"{CHAIN_FILE}, line {place[0]:,}")
            chain.take(place, sealed)
            bound.keeps_deltas = bool(chain.config and chain.config.strategy.keep_deltas)
            bound.take(sealed.line, run, found)
        chain.sum_up()
    if chain is not None and chain.begins:
        computed, saved = Computed({}, None), SavedNorms({}, {})
        with naming(run / "config.yaml", found):
            check_identity(chain, found)
        with naming(run / "deltas", found):
            computed = compute_again(run, chain.rounds, chain.started, rules, found, on_step)
        with naming(run / "adapters", found):
            saved = check_adapters(run, chain.rounds, chain.started, lines, rules, found)
        with naming(run / "state", found):
            check_checkpoints(run, chain.rounds, chain.started, lines, computed.state, found)
        with naming(run / ROUNDS_FILE, found):
            rounds.check(chain, {**saved.steps, **computed.norms}, found)
            check_drift(run, chain.rounds, lines, rounds.size, saved.lengths, rules, found)
        with naming(run / CHAIN_FILE, found):
            check_moments(chain.rounds, rules, found)
        with naming(run / MANIFEST, found):
            check_manifest(chain, found)
        with naming(run / RESUMED_FILE, found):
            check_resumed(chain, found)
    on_step("the hash of each file")
    with naming(run, found):
        check_files(run, bound, hashes, found)
    with naming(run / "eval", found):
        _check_scores(run, rules, lines, chain is not None and _is_of_this_version(chain), found, on_step)
    if chain is None:
        return found
    if bound.ended:
        with naming(run / RESULT_FILE, found):
            check_result(chain, lines, bound.status, found)
    is_bound = False
    with naming(run / AUDIT_FILE, found):
        is_bound = check_audit(run, chain.audits, found)
    with naming(run / CARD_FILE, found):
        check_card(run, lines, chain.audits, is_bound, bound.ended, found)
    if chain.ended is not None:
        with naming(run / "adapters" / "final", found):
            check_release(run, chain.ended, lines, found)
    return found


def _is_of_this_version(chain: ChainCheck) -> bool:
    return all(begin.version == __version__ for begin in chain.begins)


def _check_scores(
    run: Path, rules: Rules, lines: list[RoundLine], same_version: bool, found: Findings, on_step: OnStep
) -> None:
    for one in rules.scores(run, lines):
        on_step("the scores in eval/")
        if isinstance(one, Difference):
            found.differs([one], same_version)
        else:
            found.checked.append(one)
