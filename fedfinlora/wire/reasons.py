"""Why a bank gives no update: a code crosses the network, and each side has the sentence for it."""

from __future__ import annotations

SAFE_REASONS = {
    "config": "The bank could not accept the configuration it was sent.",
    "unsigned": "The request is not what the coordinator signed for this bank.",
    "source": "The bank runs another version of the code than the server.",
    "data": "The bank's rows could not be read or none of them is usable.",
    "model": "The bank could not load or test the base model.",
    "layout": "The adapter sent to the bank does not fit its model.",
    "adapter": "The adapter sent to the bank holds NaN or infinite numbers.",
    "moments": "The second moments sent to the bank are not of its adapter, or larger than its clipping allows.",
    "diverged": "Training gave a loss or an adapter that is not finite.",
    "trainer": "The bank's own trainer failed, or cannot do what the round asks for; the bank's log says which.",
    "memory": "The bank ran out of memory.",
    "disk": "The bank could not write its own state.",
    "local-adapter": "The bank no longer has the adapter that it was training; it starts again from the global one.",
    "local-layout": "The adapter that the bank was training is of another kind; it starts again from the global one.",
    "privacy": (
        "The bank's rows, ledger or budget do not allow this round, or its work on it failed; it does not say which."
    ),
    "refusals": (
        "The bank has refused or failed so many requests today that it reads only one in ten minutes until tomorrow."
    ),
    "internal": "The bank failed; the details are in its own log.",
    "policy-model": "The bank's policy does not allow this base model (rule: models).",
    "policy-peft_methods": "The bank's policy does not allow this kind of adapter (rule: peft_methods).",
    "policy-max_rank": "The bank's policy does not allow adapters of this rank (rule: max_rank).",
    "policy-rank": "The bank trains another rank than the run gives it (rank in its bank.yaml).",
    "policy-target_modules": "The bank's policy does not allow an adapter on these layers (rule: target_modules).",
    "policy-optimizer": (
        "The bank's policy does not allow this optimiser without the bank's own noise (rule: optimizer)."
    ),
    "policy-datasets": "The bank's policy does not allow these tasks, or wants them named (rule: datasets).",
    "policy-generation": (
        "The bank's policy does not let held-out rows be scored, or not so few of them (rule: generation)."
    ),
    "policy-max_delta": "The bank's policy does not allow this delta (rule: max_delta).",
    "policy-max_steps_per_round": (
        "The bank's policy does not allow so many steps in a round (rule: max_steps_per_round)."
    ),
    "policy-max_rows_per_round": "The bank's policy does not allow so many rows in a round (rule: max_rows_per_round).",
    "policy-max_processes": "The bank's policy does not allow so many training processes (rule: max_processes).",
    "policy-max_rounds_per_day": "The bank's policy does not allow another round today (rule: max_rounds_per_day).",
    "policy-privacy": "The bank's policy does not allow this privacy mode (rule: privacy).",
    "policy-privacy_units": "The bank's policy does not allow this privacy unit (rule: privacy_units).",
    "policy-max_epsilon": "The bank's policy does not allow this epsilon (rule: max_epsilon).",
    "policy-code": "The bank runs no other code than it has installed or its policy lists (rule: code).",
    "policy-reveal": (
        "The bank's policy does not reveal its number of rows, which strategy.weighting=rows needs (rule: reveal)."
    ),
    "policy-hours": "The bank's policy does not allow a round at this time of day (rule: hours).",
}
"""All that a bank says about an error: a code, for which the reader has this sentence."""

UNREAD = "refusals"
"""The code of a request that the bank did not look at."""
UNKNOWN = "unknown"
"""In the place of a code that is not in the table."""
UNKNOWN_REASON = "The bank gives an unknown reason."


def reason_of(code: str) -> str:
    """The sentence for a bank's code.

    >>> reason_of("memory"), reason_of("Acme Corp will default")
    ('The bank ran out of memory.', 'The bank gives an unknown reason.')
    """
    return SAFE_REASONS.get(code, UNKNOWN_REASON)
