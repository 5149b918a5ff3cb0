"""For all that the server sends: nothing leaves a bank unaccounted, the bank works on, and its history says what was
refused and why.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from hostile_server import ANSWER, BUDGET, HONEST, LIES, Bank, Lie, code_of, config_of, said, tell, write_bank
from parties import Federation, when
from tiny_runs import rounds_of
from wiretap import found_in, pushed, secrets_of

import client_app.bank
import client_app.local_training
import client_app.prepared_rows
import client_app.privacy_plan
from client_app.memories import LocalRound
from client_app.prepared_rows import bank_rows
from client_app.privacy_plan import NAMES, delta_of
from client_app.trial import try_plan
from fedfinlora.deployment.bank_settings import read_settings, settings_text
from fedfinlora.deployment.plan import read_plan
from fedfinlora.deployment.policy import Policy
from fedfinlora.errors import ConfigError
from fedfinlora.model.loading import get_session
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.privacy.cohorts import hash_rows
from fedfinlora.privacy.dp_lora import PublishedMechanism
from fedfinlora.privacy.history import read_history
from fedfinlora.privacy.ledger import Rows, read_lines
from fedfinlora.privacy.ledger_chain import opened
from fedfinlora.privacy.ledger_spent import histories, units_of
from fedfinlora.privacy.mechanism import Mechanism
from fedfinlora.wire.messages import pack_error, pack_request
from fedfinlora.wire.reasons import SAFE_REASONS
from fedfinlora.wire.vectors import ARRAY_KEY, from_array


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture
def bank(settings: Path, tmp_path: Path) -> Bank:
    return Bank(settings, tmp_path)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    client_app.prepared_rows._rows.clear()
    client_app.privacy_plan._tested.clear()


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.asks)
def test_a_lie_gets_nothing_that_is_not_accounted_for(bank: Bank, lie: Lie) -> None:
    tried = tried_beforehand(bank, lie)
    assert bank.lines == []
    assert bank.history == [], "a plan that is tried leaves nothing"
    answer = bank.lied_to(lie)
    assert code_of(answer) == lie.code, bank.history
    assert tried in (code_of(answer), NOT_IN_A_PLAN) or (lie.booked and tried == ANSWER), "`bank try` says the same"
    assert len(bank.lines) == int(lie.booked or lie.code == ANSWER)
    if code_of(answer) == ANSWER:
        it_is_in_the_ledger(bank, answer)
    else:
        nothing_but_its_code_left(answer)
    # The history names the rule or the reason.
    last = bank.history[-1]
    assert re.search(lie.history, f"{last['outcome']} {last['code']} {last['detail']}"), last
    assert last["code"] in (code_of(answer), "")
    # The bank continues.
    booked = len(bank.lines)
    honest = bank.asked_honestly(run="honest")
    assert code_of(honest) == ANSWER
    assert len(bank.lines) == booked + 1
    it_is_in_the_ledger(bank, honest)


NOT_IN_A_PLAN = "not in a plan"
"""A lie about what a plan does not have: the round, the run's name, the adapter, the ledger's head."""


def tried_beforehand(bank: Bank, lie: Lie) -> str:
    """What `bank try` says of a plan with the lie in it: "ok", or the code of the refusal. A plan that the training
    itself would fail is let through.
    """
    if lie.adapter or set(lie.record) - {"source-sha256", "config"}:
        return NOT_IN_A_PLAN
    content = tell(pack_request(bank.request(*HONEST)), lie).config_records["request"]
    file = bank.place / "plan.json"
    file.write_text(
        f'{{"version": 1, "source_sha256": "{content["source-sha256"]}", "config": {content["config"]}}}', "utf-8"
    )
    try:
        plan = read_plan(file)
    except ConfigError:
        return "config"
    trial = try_plan(plan.config, plan.source_sha256, bank.facts)
    assert trial.is_allowed == (trial.code == "")
    assert all(verdict.is_allowed or (verdict.reason and verdict.way_out) for verdict in trial.verdicts)
    return trial.code or ANSWER


def it_is_in_the_ledger(bank: Bank, answer: RecordDict) -> None:
    """A delta has left: with the ledger's head, a delta of the bank's, and an epsilon within the budget."""
    head, figures, line = answer.config_records["reply"], answer.metric_records["figures"], bank.lines[-1]
    assert (head["ledger-number"], head["ledger-hash"]) == (line["number"], line["hash"])
    assert line["noise_multiplier"] > 0
    assert figures["delta"] <= 1e-5
    assert epsilon([Steps(line["sampling_rate"], line["noise_multiplier"], line["steps"])], figures["delta"]) <= BUDGET
    assert figures["epsilon_spent"] <= BUDGET
    assert bank.history[-1]["ledger_hash"] == line["hash"]


def nothing_but_its_code_left(answer: RecordDict) -> None:
    """To the byte what every bank says under this code, for every reason."""
    code = code_of(answer)
    assert said(answer) == dict(pack_error("north", code).config_records["reply"])
    assert list(answer) == ["reply"]
    assert not re.search(r"\d", SAFE_REASONS[code])


def test_all_refusals_that_depend_on_rows_are_one(bank: Bank) -> None:
    """B2: the code was an oracle, by which N was found in twelve questions. For every question beyond the rows the
    answer is the same.
    """
    asked = [{"train.batch_rows": rows} for rows in (64, 100, 10**6)]
    asked += [{"dataset.tasks": ["fiqa"], "train.batch_rows": rows} for rows in (1, 2, 3, 4)]
    asked += [{"model.context_tokens": tokens} for tokens in (3, 18)]
    asked += [{"privacy.unit": "customer"}, {"dataset.tasks": ["nwgi"]}]
    asked += [{"privacy.epsilon": 0.0, "privacy.noise_multiplier": 1e-3}, {"train.max_rows": 3, "train.batch_rows": 1}]
    answers = [bank.lied_to(Lie("", "privacy", "", config)) for config in asked]
    assert {json.dumps(said(answer)) for answer in answers} == {
        json.dumps({"status": "error", "bank": "north", "code": "privacy"})
    }
    assert bank.lines == []
    assert len({line["detail"] for line in bank.history if line["outcome"] == "refused"}) > 8, (
        "the bank knows them apart"
    )


def test_a_round_that_is_asked_for_again_and_again_is_paid_for_each_time(bank: Bank) -> None:
    """B3: what binds one request does not bind a run; the budget does."""
    answers = [
        bank.answers(pack_request(bank.request("privacy=example", "privacy.epsilon=6", "train.batch_rows=63")))
        for _ in range(12)
    ]
    codes = [code_of(answer) for answer in answers]
    spent = [
        float(answer.metric_records["figures"]["epsilon_spent"]) for answer in answers if code_of(answer) == ANSWER
    ]  # type: ignore[arg-type]
    assert codes == [ANSWER] * len(spent) + ["privacy"] * (12 - len(spent))
    assert 1 < len(spent) < 12
    assert spent == sorted(spent)
    assert spent[-1] <= BUDGET
    assert len(bank.lines) == len(spent)


@pytest.mark.parametrize("mode", ["none", "bank"])
def test_a_bank_without_a_budget_books_noiseless_rounds_as_infinite(tmp_path: Path, mode: str) -> None:
    """A4: and a budget that is set afterwards counts it."""
    bank = Bank(write_bank(tmp_path, budget_epsilon=0.0, min_rows=16), tmp_path)
    words = {"none": ("privacy=none",), "bank": ("privacy=bank", "privacy.epsilon=0", "privacy.noise_multiplier=1")}[
        mode
    ]
    assert code_of(bank.answers(pack_request(bank.request(*words)))) == ANSWER
    (line,) = bank.lines
    assert (line["noise_multiplier"], line["mechanism"]) == (0.0, NAMES[mode])
    answer = bank.asked_honestly()
    assert answer.metric_records["figures"]["epsilon_spent"] == math.inf
    write_bank(tmp_path)
    assert code_of(bank.asked_honestly()) == "privacy"
    assert "above privacy.budget_epsilon=8" in bank.history[-1]["detail"]


def test_noise_that_others_can_compute_is_the_banks_choice_booked_as_none(settings: Path, tmp_path: Path) -> None:
    """A2: the flag is the node's own. Under a budget even then nothing leaves."""
    bank = Bank(settings, tmp_path)
    bank.node_config["reproducible-noise"] = "true"
    assert code_of(bank.asked_honestly()) == "privacy"
    assert bank.lines == []
    write_bank(tmp_path / "other", budget_epsilon=0.0)
    bank.node_config["settings"] = str(tmp_path / "other" / "bank.yaml")
    answer = bank.asked_honestly()
    assert answer.metric_records["figures"]["epsilon_spent"] == math.inf
    assert answer.metric_records["figures"]["epsilon_planned"] == math.inf
    assert bank.lines[-1]["noise_multiplier"] == 0.0
    assert bank.history[-1]["noise_multiplier"] == 0.0


def test_an_adapter_on_which_every_loss_is_infinite_tells_nothing(bank: Bank) -> None:
    """C4: a loss that is not finite was one bit about the rows. The step is noise alone, or nothing leaves; it is
    booked either way.
    """
    for number, value in enumerate((1e30, 3e38, 1e19), 1):
        answer = bank.lied_to(Lie("", "", "", adapter=value))
        assert code_of(answer) in (ANSWER, "privacy")
        assert len(bank.lines) == number


def test_a_lie_about_an_earlier_run_does_not_carry_over(bank: Bank) -> None:
    """The test of the gradients is of the adapter and the settings of this very request, also under a run's name that
    was tested before.
    """
    tested: list[float] = []
    real = client_app.privacy_plan.self_test

    def watched(model: Any, units: Any, clip_norm: float) -> float:
        from fedfinlora.model.adapter import read_adapter

        tested.append(float(np.abs(read_adapter(model)).max()))
        return real(model, units, clip_norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_app.privacy_plan, "self_test", watched)
        for lie in (
            Lie("", "", ""),
            Lie("", "", ""),
            Lie("", "", "", adapter=3.0),
            Lie("", "", "", {"privacy.clip_norm": 0.5}),
        ):
            assert code_of(bank.lied_to(lie)) == ANSWER
    assert len(tested) == 3
    assert tested[1] == 3.0, "the adapter that was sent is the one that is tested"
    assert tested[0] == tested[2] < 3.0


# --- what a step without noise shows --------------------------------------------------------------

ONE_ROW = (
    "privacy=none",
    "train.batch_rows=1",
    "train.steps_per_round=1",
    "train.optimizer=sgd",
    "train.holdout_max_rows=0",
)
HEAD = ("peft=lora", "peft.target_modules=[lm_head]", "peft.dropout=0")


def test_the_default_policy_refuses_the_head_and_rounds_on_one_row(tmp_path: Path) -> None:
    """Also where no budget asks for noise: each part of the attack is refused by a rule of its own."""
    bank = Bank(write_bank(tmp_path, Policy(models=("memory:tiny-random",)), budget_epsilon=0.0), tmp_path)

    def refused(*words: str) -> tuple[str, str]:
        code = code_of(bank.answers(pack_request(bank.request("privacy=none", "train.holdout_max_rows=0", *words))))
        return code, bank.history[-1]["detail"]

    assert refused(*HEAD)[0] == "policy-target_modules"
    assert refused("train.optimizer=sgd")[0] == "policy-optimizer"
    for words in (("train.batch_rows=1",), ("train.max_rows=1",), ("train.batch_rows=0", "train.epochs=0.02")):
        code, detail = refused(*words)
        assert code == "privacy"
        assert "fewer than min_rows=20" in detail
    assert bank.lines == []


def test_an_allowed_step_on_the_head_shows_the_answers_tokens(tmp_path: Path) -> None:
    """What the three rules are for: the largest rows of the update of lm_head are the tokens of the row's answer."""
    allowed = Policy(models=("memory:tiny-random",), target_modules=("lm_head",), optimizer=("sgd",))
    bank = Bank(write_bank(tmp_path, allowed, budget_epsilon=0.0, min_rows=0), tmp_path)
    request = bank.request(*ONE_ROW, *HEAD, "dataset.tasks=[fpb]")
    answer = bank.answers(pack_request(request))
    assert code_of(answer) == ANSWER
    session = get_session(request.config)
    views = session.layout.views(from_array(answer.array_records["delta"][ARRAY_KEY], session.layout.size))
    [update] = [view for name, view in views.items() if "lora_B" in name]
    by_length = np.argsort(-np.linalg.norm(update, axis=1))
    tokens = set(session.tokenizer(" positive", add_special_tokens=False)["input_ids"])
    tokens |= set(session.tokenizer("positive", add_special_tokens=False)["input_ids"])
    shown = set(by_length[: len(tokens)].tolist())
    assert len(shown & tokens) >= len(tokens) // 2, (shown, tokens)


# --- any sequence ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """A delta that has left: the mechanism that made it, and which rows could be in it."""

    rows: frozenset[str]
    steps: Steps


@pytest.mark.parametrize("seed", range(12))
def test_after_any_requests_the_ledger_has_each_row_that_was_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Epsilon is made again from the mechanisms that really ran, row by row, at the bank's own delta."""
    draw = random.Random(seed)
    budget = draw.choice([2.0, BUDGET])
    bank = Bank(write_bank(tmp_path, budget_epsilon=budget), tmp_path)
    wanted = WANTED if seed % 5 == 0 else WANTED[1:]
    ran: list[Left] = []
    watched = watching(ran)
    monkeypatch.setattr(client_app.bank, "trained", watched)
    monkeypatch.setattr(client_app.local_training, "trained", watched)
    left: list[Left] = []
    for number in range(6):
        lie = draw.choice([*LIES, *[Lie("does not lie", "ok", "sent")] * 8])
        ran.clear()
        request = bank.request(*draw.choice(wanted), run=f"run-{draw.randrange(2)}", round_number=draw.randint(1, 4))
        answer = bank.answers(tell(pack_request(request), lie))
        assert len(ran) <= 1
        if code_of(answer) == ANSWER:
            left += ran
            it_is_in_the_ledger(bank, answer)
        if draw.random() < 0.3:
            more_rows(tmp_path, number)
    delta = delta_of(config_of(tmp_path, *HONEST), bank.facts, {"fpb": 60, "fiqa": 3})
    assert delta == 1e-5
    rows = sorted(frozenset().union(*(one.rows for one in left)) | frozenset(rows_of_now(bank)))
    booked = booked_by_row(bank, rows, delta)
    for row, of_ledger in zip(rows, booked, strict=True):
        spent = epsilon([one.steps for one in left if row in one.rows], delta)
        assert spent <= of_ledger + 1e-9, row
        assert of_ledger <= budget, row


WANTED = (
    ("privacy=example", "privacy.epsilon=0", "privacy.noise_multiplier=2"),
    ("privacy=example", "privacy.epsilon=4", "train.batch_rows=63"),
    ("privacy=example", "privacy.epsilon=6", "train.batch_rows=60", "dataset.tasks=[fpb]"),
    ("privacy=example", "privacy.epsilon=3", "train.batch_rows=40", "train.max_rows=40"),
    ("privacy=dp_lora", "privacy.noise_multiplier=8"),
)
"""What is asked for, before it is made a lie. The first is subsampled, and adding it up takes a second each time."""


def watching(ran: list[Left]) -> Any:
    """`trained` that writes down which mechanism it is given."""
    real = client_app.bank.trained

    def trained(now: LocalRound) -> Any:
        examples, stretch, mechanism = now.examples, now.stretch, now.gradient
        held = bank_rows(now.config, now.facts, now.session.tokenizer)
        prompts = np.array(held.in_ledger.prompts)
        if isinstance(mechanism, PublishedMechanism):
            rows = held.train
            taking_part = prompts[[any(row is one for one in examples) for row in rows]]
            assert len(taking_part) == len(examples)
            ran.append(Left(frozenset(taking_part.tolist()), mechanism.spends(stretch.steps)))
        else:
            assert isinstance(mechanism, Mechanism)
            assert len(prompts) == len(examples)
            places = [place for unit in mechanism.units for place in unit]
            assert len(places) == len(set(places)), "a row is in one unit"
            steps = Steps(mechanism.sampling_rate, mechanism.noise_multiplier, stretch.steps)
            ran.append(Left(frozenset(prompts[places].tolist()), steps))
        assert not mechanism.reproducible
        return real(now)

    return trained


def more_rows(place: Path, number: int) -> None:
    """The bank gets ten more rows and loses its first."""
    file = place / "rows" / "train" / "fpb_train.jsonl"
    lines = file.read_text("utf-8").splitlines()[1:]
    lines += [
        json.dumps({"context": f"new {number} {each} came in. Answer:", "target": "positive"}) for each in range(10)
    ]
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    client_app.prepared_rows._rows.clear()


def rows_of_now(bank: Bank) -> tuple[str, ...]:
    config = config_of(bank.place, *HONEST)
    return bank_rows(config, bank.facts, get_session(config).tokenizer).in_ledger.prompts


def booked_by_row(bank: Bank, rows: list[str], delta: float) -> list[float]:
    """Epsilon of each row by the ledger."""
    if not bank.lines:
        return [0.0] * len(rows)
    with opened(bank.facts.ledger_folder, writing=False) as ledger:
        units = units_of(ledger.index, hash_rows(Rows(tuple(rows)), ledger.key), by_customer=False)
        found = histories(ledger.lines, ledger.index, units)
    of_history = [found.epsilon(history, delta) for history in range(len(found.counts))]
    return [of_history[found.of_unit[unit]] for unit in units.of_row]


# --- over a real deployment -----------------------------------------------------------------------

USED_LIES = (
    "asks for noise that it can compute", "asks for a round without privacy",
    "asks for noise of 0.0001 of the clip norm", "asks for one row",
    "asks for the head's layer, whose update names the tokens of the rows",
    "sends an adapter of NaN", "sends an adapter of 1e30, on which every loss is infinite",
    "names a run by a path", "shows a line of the ledger that the bank never wrote", "has other code",
    "asks for delta 0.99", "asks for a step of plain sgd without noise", "asks for a thousand steps",
    "asks for sgd under noise", "sends an adapter of another layout", "asks for round 99 of 4",
    "sends a configuration that is none",
)  # fmt: skip
"""Which of the lies are used in the rounds of a real run, one each: of every code and of every part of a request at
least one. All of them reach the same ClientApp in `test_a_lie_gets_nothing_that_is_not_accounted_for`.
"""


class LyingFederation(Federation):
    """Its ServerApp lies to south, whose line is read along."""

    def starts_coordinator(self) -> None:
        tests = Path(__file__).parents[1]
        numbers = {lie.asks: number for number, lie in enumerate(LIES)}
        reported = {"LIES_TO": "south", "LIES_SENT": ",".join(str(numbers[asks]) for asks in USED_LIES)}
        self.coordinator = self.aggregator.starts(
            "coordinator", "start", also={"PYTHONPATH": f"{tests / 'lying'}:{tests / 'helpers'}:{tests}", **reported}
        )
        when(lambda: self._ups() == 1, "the coordinator is up")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    found = LyingFederation(tmp_path_factory.mktemp("federation"))
    try:
        found.begins()
        yield found
    finally:
        found.ends()


@pytest.mark.slow
def test_a_lying_server_gets_nothing_and_the_deployment_continues(federation: Federation) -> None:
    south, aggregator = federation.south, federation.aggregator
    file = south.bank / "bank.yaml"
    own = read_settings(file)[0]
    policy = replace(own.policy, privacy=("none", "example", "bank"), max_epsilon=0.0)
    file.write_text(settings_text(replace(own, budget_epsilon=BUDGET, policy=policy)))
    run = aggregator.home / "runs" / "lying"
    honest_rounds = 2
    command = federation.run(
        run,
        f"num_server_rounds={len(USED_LIES) + honest_rounds}",
        "privacy=example",
        "privacy.epsilon=2",
        "strategy.deadline_s=60",
    )
    assert command.wait(timeout=580) == 0, aggregator.said("coordinator run")
    lies = {lie.asks: lie for lie in LIES}
    reported = [lies[asks] for asks in USED_LIES]
    assert {lie.code for lie in reported} == {lie.code for lie in LIES}
    history = read_history(south.bank / "state" / "history" / "south.jsonl")
    ended = [line for line in history if line["outcome"] in ("sent", "refused", "failed")]
    for lie, line, event in zip(reported, rounds_of(run), ended, strict=False):
        [bank] = [bank for bank in line["banks"] if bank["bank"] == "south"]
        assert (bank["code"] or bank["status"]) == lie.code, lie
        assert re.search(lie.history, f"{event['outcome']} {event['code']} {event['detail']}"), lie
    lines = rounds_of(run)
    assert [bank["status"] for line in lines[-honest_rounds:] for bank in line["banks"]] == ["ok"] * 2 * honest_rounds
    assert [bank["status"] for line in lines for bank in line["banks"] if bank["bank"] == "north"] == ["ok"] * len(
        lines
    )
    # What crossed the line: deltas that are booked, and codes.
    booked = read_lines(south.bank / "ledger")
    answered = [lie.code == ANSWER for lie in reported] + [True] * honest_rounds
    assert len(booked) == sum(answered) + sum(lie.booked for lie in reported)
    assert all(line["noise_multiplier"] > 0 for line in booked)
    replies = [message for message in pushed(federation.tap.requests()) if message.metadata.message_type == "train"]
    assert [code_of(message.content) == ANSWER for message in replies] == answered
    hashes = {line["hash"] for line in booked}
    for message, lie in zip(replies, [*reported, *[None] * honest_rounds], strict=True):
        if code_of(message.content) == ANSWER:
            assert message.content.config_records["reply"]["ledger-hash"] in hashes
        else:
            assert list(message.content) == ["reply"], lie
    assert found_in(federation.tap.sent(), secrets_of(south.bank, south.home / "rows")) == set()
