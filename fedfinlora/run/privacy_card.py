"""privacy.json: what a run guarantees, to whom, what it has spent, and what else left the banks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.privacy.accounting import accountant_name
from fedfinlora.run.records import BankCard, PrivacyCard, RoundLine

LEAVES = {
    "the noisy delta of each round": (
        "the guarantee is about this, and about all that is made of it: the global adapter, its scores"
    ),
    "epsilon planned, epsilon spent, delta": (
        "of the ledger's lines, added up as if one row had been in all of them, "
        "and of the bank's declared size; not of its rows"
    ),
    "number and hash of the ledger's last line": (
        "how many rounds were booked on the bank's machine; the aggregator is a witness of them"
    ),
    "the number of optimiser steps": "set by the configuration, the same for every bank",
    "seconds to load the base model": "of the machine, not of the rows",
    "when a reply arrives": "how long a round takes grows with the tokens drawn; nothing hides that from the server",
    "a refusal's code": "one code and one sentence for everything that depends on rows, ledger or budget",
}
"""What leaves a bank that makes its own replies private -> what it reveals."""
WITHHELD = (
    "rows, tokens and answer tokens of a round and of the bank",
    "training loss, losses of held-out rows",
    "gradient norms and how many gradients were clipped",
    "seconds of training",
    "skipped rows, and rows excluded because their budget is spent",
    "exception texts",
)
OUTSIDE_START = (
    "The run began with an adapter that was given to it (start_adapter). The rows that this one was trained on are not "
    "protected here: they must be public, or have a guarantee of their own."
)
EARLIER_STAGE = (
    "The run continues the adapter of an earlier stage (start_adapter). Epsilon counts that stage's rounds if they are "
    "in the same ledgers, as they are at banks and servers that keep theirs. Rows of a stage without privacy are not "
    "protected."
)
COMMON_LIMITS = (
    "Settings that were chosen by looking at results on private rows spend privacy too, and are booked only if "
    "every trial was a private run.",
)
BANK_SIDE_LIMITS = (
    "One row is protected, or all rows of one customer with privacy.unit=customer. Somebody with several rows under "
    "unit=example has a guarantee for each of them only.",
    "A row is known by its prompt. White space, labels, order and names change nothing; a prompt with other words "
    "is a new row.",
    "What one row changes in the rounding of the others is measured on a few of the bank's rows before its first "
    "private round, not on all.",
    "Who can read the bank's disk reads its rows. Who deletes ledger, key and history together begins again, where "
    "no aggregator has seen the head.",
)
NO_AUDIT = "none was made of this run: `python -m fedfinlora audit --run RUN`"


@dataclass(frozen=True)
class _Words:
    mechanism: str
    formula: str
    trusted: str
    sampling: str
    composition: str
    leaves: Mapping[str, str]
    withheld: tuple[str, ...]
    limits: tuple[str, ...]


_OWN_NOISE = (
    "Each bank with its own rows. Neither the server, nor the other banks, nor who reads the adapter is trusted."
)
WORDS = {
    "example": _Words(
        mechanism="DP-SGD on the adapter inside each bank: Poisson sampling, one clip over all trainable tensors of a "
        "unit, whole numbers on a grid, discrete Gaussian noise once per optimiser step on the sum (Abadi et al. 2016, "
        "algorithm 1; Canonne, Kamath and Steinke 2020)",
        formula=(
            "g = step (sum of round(c_i G_i) + N_Z(0, 2^(2 L))) / (q N declared), with |round(c_i G_i)| <= C / "
            "step and step = sigma C / 2^L"
        ),
        trusted=_OWN_NOISE,
        sampling="each unit is in a step with probability q, drawn from the operating system's entropy",
        composition=(
            "over all rounds and all runs in each bank's ledger, as if one row had been in all of them; each "
            "bank counts by row, and no row has spent more"
        ),
        leaves=LEAVES,
        withheld=WITHHELD,
        limits=(*BANK_SIDE_LIMITS, *COMMON_LIMITS),
    ),
    "dp_lora": _Words(
        mechanism="DP-LoRA as published (Liu et al. 2023, algorithm 1): the gradient of a minibatch is clipped, that "
        "of all A and that of all B apart, and discrete Gaussian noise is added to both",
        formula=(
            "g_A = min(1, C / |G_A|) G_A + N(0, (sigma C)^2 I), and g_B likewise; G is the gradient of a "
            "minibatch's mean loss"
        ),
        trusted=_OWN_NOISE,
        sampling="none is counted on: the order of the rows comes from the run's seed, which everybody knows",
        composition="over all rounds and all runs in each bank's ledger, every row in every step, with sensitivity 2 "
        "sqrt(2) C: one row can turn both clipped gradients round. The paper assumes C",
        leaves=LEAVES,
        withheld=WITHHELD,
        limits=(
            "A minibatch's gradient is clipped, not each row's: the epsilon is large, and the same for any change "
            "of the bank's rows.",
            *BANK_SIDE_LIMITS,
            *COMMON_LIMITS,
        ),
    ),
    "bank": _Words(
        mechanism=(
            "DP-FedAvg on the server: each bank's whole delta is clipped, discrete Gaussian noise is added to "
            "their sum once a round (McMahan et al. 2018)"
        ),
        formula="mean = (sum of min(1, S / |delta_k|) delta_k + N(0, (z S)^2 I)) / (q K)",
        trusted=(
            "The server, with every bank's delta, row count and losses. Who reads the global adapter, of any "
            "round, is not trusted."
        ),
        sampling=(
            "each bank is in a round with probability q = strategy.fraction_train, drawn from the operating "
            "system's entropy"
        ),
        composition="over all rounds and all runs in the server's ledger, an account for each bank's name",
        leaves={
            "the global adapter of each round": "what the guarantee is about; the banks receive it",
            "the run's folder on the server": "rounds.jsonl, progress and report hold each bank's rows, losses and "
            "norms in clear: they are the server's, and must be shown to no one else",
        },
        withheld=(),
        limits=(
            "What a bank sends reaches the server in clear.",
            "That a bank took part at all is hidden only from who does not see the network.",
            "A bank that comes back under another name has another account.",
            *COMMON_LIMITS,
        ),
    ),
}
"""privacy.mode -> what its card says. A new mode needs an entry here."""


def privacy_card(
    config: Config, rounds: Sequence[RoundLine], audit: Mapping[str, Any] | None = None
) -> PrivacyCard | None:
    """The card after these rounds; None without privacy. `audit` is the content of an audit.json."""
    privacy = config.privacy
    if privacy.mode == "none":
        return None
    words = WORDS[privacy.mode]
    banks = _server_side(rounds) if privacy.mode == "bank" else _banks(rounds)
    spent = [bank.epsilon_spent for bank in banks.values() if bank.epsilon_spent is not None]
    broken = any(bank.rounds and bank.epsilon_spent is None for bank in banks.values())
    unit = {"example": "one row", "customer": "all rows of one customer", "bank": "one bank with all its rows"}[
        privacy.unit
    ]
    return PrivacyCard(
        mode=privacy.mode,
        epsilon=None if broken or not spent else max(spent),
        delta=max((bank.delta for bank in banks.values() if bank.delta is not None), default=None),
        void=NO_GUARANTEE if broken else "",
        unit=unit if privacy.mode == "bank" else f"{unit} of one bank",
        adjacency=f"two data sets that differ by {unit}, added or removed",
        trusted=words.trusted,
        mechanism=words.mechanism,
        formula=words.formula,
        sampling=words.sampling,
        clip_norm=privacy.clip_norm,
        noise_multiplier=privacy.noise_multiplier or f"found for epsilon {privacy.epsilon:g}",
        accountant=accountant_name(),
        composition=words.composition,
        banks=banks,
        leaves=dict(words.leaves),
        withheld=tuple(words.withheld),
        limits=(*start_limits(config), *words.limits),
        audit=str(audit["sentence"]) if audit else NO_AUDIT,
    )


def start_limits(config: Config) -> list[str]:
    """What is not protected of the rows that the start adapter was trained on."""
    if config.peft.frozen_rank:
        return [EARLIER_STAGE]
    return [OUTSIDE_START] if config.start_adapter else []


def _server_side(rounds: Sequence[RoundLine]) -> dict[str, BankCard]:
    """The same for all banks together, whose guarantee is one."""
    private = [line.privacy for line in rounds if line.privacy]
    if not private:
        return {}
    last = private[-1]
    card = BankCard(len(private), 0, last.epsilon_planned, last.epsilon_spent, last.delta)
    return {"every bank": card}


def _banks(rounds: Sequence[RoundLine]) -> dict[str, BankCard]:
    """Each bank's latest epsilon, its private rounds in the aggregate, and how many it refused."""
    banks: dict[str, BankCard] = {}
    for line in rounds:
        for entry in line.banks:
            before = banks.get(entry.bank, BankCard())
            card = replace(before, refused=before.refused + (entry.code == "privacy"))
            if spent := entry.privacy:
                card = BankCard(card.rounds + 1, card.refused, spent.epsilon_planned, spent.epsilon_spent, spent.delta)
            banks[entry.bank] = card
    return {name: bank for name, bank in sorted(banks.items()) if bank.rounds or bank.refused}


NO_GUARANTEE = (
    "A round was booked without noise, in this run or an earlier one on the same rows (privacy=none or bank at a bank "
    "with rows of its own, or noise that can be repeated, for tests). Nothing is guaranteed."
)
