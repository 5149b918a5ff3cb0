"""The ledger's probes of `audit`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from client_app.facts import BankFacts
from fedfinlora.commands.audit_workbench import Workbench, canary_rows, declared, one_step, with_noise
from fedfinlora.config.schema import Config
from fedfinlora.privacy.accounting import Steps, default_delta, epsilon
from fedfinlora.privacy.ledger import read_lines
from fedfinlora.privacy.ledger_audit import Probe, arithmetic, pld_available
from fedfinlora.wire.messages import BankError

ROWS, BATCH_ROWS = 12, 3
ROUNDS = 3
SERVERS_DELTA = 0.01
"""What a server might ask for; far above any bank's own."""


def ledger_probes(bench: Workbench) -> list[Probe]:
    """Rounds on the same rows, one with a row changed, one with the server's delta, one with a budget that only that
    delta allows.
    """
    asked = _asked(bench.config)
    rows = canary_rows(ROWS, bench.draw, bench.task)
    changed = [*rows[:-1], *canary_rows(1, bench.draw, bench.task, customer="another")]
    own = {"declared_rows": declared(ROWS), "ledger_folder": bench.folder / "probed-ledger"}
    facts, after_change = bench.bank(rows, "ledger-rows", **own), bench.bank(changed, "ledger-changed", **own)
    each = bench.plan(asked, facts).of_round
    spent = [bench.ask(asked, facts, bench.start, number).figures for number in range(1, ROUNDS + 1)]
    last = bench.ask(asked, after_change, bench.start, ROUNDS + 1).figures
    before, after, delta = spent[-1].epsilon_spent, last.epsilon_spent, last.delta
    probes = []
    if pld_available():
        of = replace(each, count=ROUNDS * each.count)
        probes.append(arithmetic(f"epsilon of {ROUNDS} rounds", before, [of], delta))
        of = replace(each, count=(ROUNDS + 1) * each.count)
        probes.append(arithmetic("one more with a changed row", after, [of], delta))
    booked, wanted = _steps_in(facts.ledger_folder, each), (ROUNDS + 1) * each.count
    return [
        *probes,
        Probe(
            "a changed row",
            after > before,
            f"after {ROUNDS} rounds {before:.4g}, after one more with a changed row {after:.4g}",
        ),
        Probe("the lines", booked == wanted, f"{booked} of {wanted} steps are in the ledger"),
        *_delta_probes(bench, facts, each),
    ]


def _steps_in(folder: Path, each: Steps) -> int:
    """How many steps like these, or with less noise, a ledger's lines hold."""
    return sum(
        int(line["steps"])
        for line in read_lines(folder)
        if line["sampling_rate"] >= each.sampling_rate and line["noise_multiplier"] <= each.noise_multiplier
    )


def _delta_probes(bench: Workbench, facts: BankFacts, each: Steps) -> list[Probe]:
    """Whether the bank's delta is its own, and its budget is tested at it, when the server asks for another."""
    asked = _asked(bench.config)
    servers = replace(asked, privacy=replace(asked.privacy, delta=SERVERS_DELTA))
    reported = bench.ask(
        servers, replace(facts, ledger_folder=bench.folder / "delta-ledger"), bench.start
    ).figures.delta
    own = default_delta(ROWS)
    at_own, at_servers = epsilon([each], own), epsilon([each], SERVERS_DELTA)
    budget = (at_own + at_servers) / 2
    try:
        bench.ask(
            servers, replace(facts, ledger_folder=bench.folder / "budget-ledger", budget_epsilon=budget), bench.start
        )
        refused = False
    except BankError:
        refused = True
    what = f"asked for delta {SERVERS_DELTA:g} a bank of {ROWS} rows"
    did = "refused" if refused else "took"
    return [
        Probe("the delta", reported <= own, f"{what} used {reported:.2g} (its own is {own:.2g})"),
        Probe("the budget", refused, f"and {did} a round of epsilon {at_own:.3g} under a budget of {budget:.3g}"),
    ]


def _asked(config: Config) -> Config:
    """Rounds of one step that draw a quarter of the rows."""
    asked = one_step(config, ROWS, config.privacy.clip_norm)
    train = replace(asked.train, batch_rows=BATCH_ROWS, sgd_learning_rate=1.0)
    return with_noise(replace(asked, num_server_rounds=ROUNDS + 1, train=train))
