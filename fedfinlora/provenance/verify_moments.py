"""Compute again what banks start from under strategy=fedadamw_local: the means of second moments in a round's requests
are those of the replies of the round before, all of which are signed and in the chain, deltas kept or not.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedfinlora.config.strategy import MOMENT_RULES
from fedfinlora.errors import plural
from fedfinlora.model.block_means import averaged, fault_in, from_text, to_text
from fedfinlora.provenance.findings import Findings, Round
from fedfinlora.provenance.lines import CHAIN_FILE, Attempt
from fedfinlora.provenance.rules import Rules

KEY = "second-moments"


def check_moments(rounds: Mapping[int, Round], rules: Rules, found: Findings) -> None:
    """Each request has the weighted mean of the accepted replies of the round before; the first has none. No accepted
    reply has means that the server must reject.
    """
    checked, before = 0, ""
    for number, one in sorted(rounds.items()):
        attempt, is_rule = one.line, one.config is not None and one.config.strategy.name in MOMENT_RULES
        is_known = is_rule and (number == 1 or number - 1 in rounds)
        for bank, part in attempt.banks.items():
            has = {**attempt.request, **part.request}.get(KEY, "")
            if is_known and has != before:
                found.add(
                    one.where,
                    f"round {number}: the second moments sent to {bank} are not the mean of the replies of the round "
                    "before",
                )
            elif not is_rule and one.config is not None and (has or KEY in part.head):
                found.add(one.where, f"round {number}: second moments of {bank}, and the strategy has none")
        if is_rule:
            _check_replies(one, rules, found)
        checked += is_known
        before = _mean(attempt) if is_rule else ""
    if checked:
        found.checked.append(
            f"{CHAIN_FILE}: the second moments that banks start from were computed again in {plural(checked, 'round')}"
        )


def _check_replies(one: Round, rules: Rules, found: Findings) -> None:
    """The server's own check of what arrives, where a saved adapter tells the tensors."""
    attempt, layout = one.line, rules.layout(str(one.line.request.get("layout-id", "")))
    if layout is None or one.config is None:
        return
    for bank in attempt.accepted:
        means = from_text(str(attempt.banks[bank].head.get(KEY, "")))
        if fault := fault_in(means, layout, one.config.train.clip_norm):
            found.add(one.where, f"round {attempt.round}: second moments of {bank} were accepted, and {fault}")


def _mean(attempt: Attempt) -> str:
    """As the next round's requests should have it."""
    banks = [bank for bank in attempt.accepted if bank in (attempt.weights or {})]
    means = [from_text(str(attempt.banks[bank].head.get(KEY, ""))) for bank in banks]
    if not means or not all(own.size == means[0].size > 0 for own in means):
        return ""
    return to_text(averaged(means, [(attempt.weights or {})[bank] for bank in banks]).astype("float32"))
