"""`audit`: canaries among a bank's rows (or among the banks) are trained on by the real code, and an attacker guesses which were there.

Under privacy=example and dp_lora one bank is asked, round by round, through `client_app.bank.train_round`, with its own ledger in a folder that is thrown
away; the claim is what the bank itself says that it spent. Two attackers look on: the server sees each reply and knows each canary's gradient at the
adapter that it sent; the reader of the final adapter sees how each canary's loss fell. One bank alone is the attackers' best case, since other
banks' deltas only blur what the average shows.

Under privacy=bank the canaries are banks, each with a delta ten times the clip norm along a direction of its own, and go through the server's own step.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_app.bank import BankFacts, divide, train_round
from data.encode import encode_rows
from data.rows import Row
from eval.report import write_run_report
from fedfinlora.adapter import read_adapter, trainable, write_adapter
from fedfinlora.compose import compose
from fedfinlora.config import Config
from fedfinlora.config_values import to_plain_group
from fedfinlora.errors import ConfigError
from fedfinlora.models import Session, get_session, initial_adapter
from fedfinlora.packing import Example
from fedfinlora.privacy.audit import Bound, alignment, best_bound, refuted, sentence
from fedfinlora.privacy.card import privacy_card
from fedfinlora.privacy.mechanism import answer_means, pack_units, spans_of, token_losses
from fedfinlora.privacy.noise import secret_generator
from fedfinlora.privacy.per_example import keeping
from fedfinlora.runfolder import origin_of_this_process, read_config, read_lines, source_fingerprint, write_json
from fedfinlora.seeds import generator
from fedfinlora.training import mean_loss
from fedfinlora.wire import Figures, Reply, TrainRequest
from server_app.central_privacy import make_mechanism
from server_app.rounds import RoundState, take_step

ROWS_A_PASS = 32
KNOWN_ROWS = 200
"""So many of the bank's own rows are known to the attacker, who may know all but the coins; more would only cost time."""
LARGE_EVERY, LARGE_ROWS = 50, 1000
"""Every fiftieth canary bank says that it has a thousand times the rows of the others: a server that weighs by rows shows it."""
LETTERS = "".join(map(chr, range(33, 127)))
"""What canaries are written in: all printable ASCII, so that they resemble each other little."""
SERVER, READER = "the server, from each reply", "who reads the final adapter"
BANKS_READER = "who reads the global adapter of each round"


@dataclass(frozen=True)
class Evidence:
    """What the attackers saw."""

    scores: Mapping[str, NDArray[np.float64]]
    """Attacker -> (canaries,), high for "in"."""
    included: NDArray[np.bool_]
    claimed: float | None
    """Epsilon; None where nothing is claimed."""
    delta: float


def audit(overrides: Sequence[str], run: Path | None, canaries: int, confidence: float, file: Path | None) -> int:
    """Audit the configuration, or a run's. Returns 1 when the claim is refuted. The result goes to `file` and to the run's privacy card."""
    if canaries < 20:
        raise ConfigError(f"--canaries {canaries} can prove nothing: take 20 or more.")
    if not 0.5 < confidence < 1:
        raise ConfigError(f"--confidence must be above 0.5 and below 1, not {confidence}.")
    config = compose(overrides)
    if run is not None:
        if overrides:
            raise ConfigError("--run takes the run's own configuration: leave out the key=value words.")
        config = read_config(run)
    evidence = audit_banks(config, canaries) if config.privacy.mode == "bank" else audit_rows(config, canaries)
    bounds = {
        view: best_bound(scores, evidence.included, evidence.delta, confidence, views=len(evidence.scores))
        for view, scores in evidence.scores.items()
    }
    told = sentence(bounds, evidence.claimed, canaries, confidence)
    wrong = refuted(list(bounds.values()), evidence.claimed)
    print(told)
    result = _as_json(config, evidence, bounds, told, wrong, confidence)
    for place in (file, run / "audit.json" if run else None):
        if place is not None:
            write_json(place, result)
    if run is not None:
        write_json(run / "privacy.json", privacy_card(config, read_lines(run / "rounds.jsonl"), result))
        write_run_report([run], run / "report.html")
    return 1 if wrong else 0


def _as_json(
    config: Config, evidence: Evidence, bounds: Mapping[str, Bound], told: str, wrong: bool, confidence: float
) -> dict[str, Any]:
    return {
        "sentence": told,
        "refuted": wrong,
        "epsilon_claimed": evidence.claimed,
        "delta": evidence.delta,
        "confidence": confidence,
        "canaries": len(evidence.included),
        "included": int(evidence.included.sum()),
        "views": {
            view: {"epsilon_at_least": bound.epsilon, "guesses": bound.guesses, "right": bound.right}
            for view, bound in bounds.items()
        },
        "privacy": to_plain_group(config.privacy),
        "model": config.model.name,
        "rounds": config.num_server_rounds,
        **origin_of_this_process(),
    }


# --- rows -----------------------------------------------------------------------------------------------------------------------


def audit_rows(config: Config, canaries: int) -> Evidence:
    """Canary rows at one bank, over all rounds of the run."""
    draw = _coins(config)
    session = get_session(config)
    own = divide(replace(config, resume=""), config.banks)[0]
    if config.train.max_rows:
        own = own[: config.train.max_rows]
    rows = canary_rows(canaries, draw, own[0].task if own else "fpb")
    included = draw.random(canaries) < 0.5
    examples = encode_rows(session.tokenizer, rows, config.model.context_tokens).examples
    sample = sorted(draw.permutation(len(own))[:KNOWN_ROWS].tolist())
    known = encode_rows(session.tokenizer, [own[place] for place in sample], config.model.context_tokens).examples
    state = RoundState(0, initial_adapter(session, config), {})
    scores = np.zeros(canaries)
    loss_before = canary_losses(session, state.adapter, examples, config)
    with tempfile.TemporaryDirectory(prefix="fedfinlora-audit-") as place:
        folder = Path(place)
        write_bank(folder / "rows", [*own, *(row for row, is_in in zip(rows, included, strict=True) if is_in)])
        facts = BankFacts("audited", 0, 0, str(folder / "rows"), folder / "state", folder / "ledger")
        asked = asked_of_the_bank(config)
        figures: Figures | None = None
        for number in range(1, config.num_server_rounds + 1):
            gradients = row_gradients(session, state.adapter, examples)
            others = row_gradients(session, state.adapter, known)
            request = TrainRequest(asked, "audit", number, session.layout.id, source_fingerprint(), state.adapter)
            delta, _, figures = train_round(request, facts)
            scores += alignment(delta, gradients, others)
            reply = Reply(facts.name, delta, figures, float(np.linalg.norm(delta)))
            state, _ = take_step(
                [reply], state, replace(config.strategy, weighting="equal", sizes=()), config.num_server_rounds
            )
            print(f"round {number} of {config.num_server_rounds}", file=sys.stderr, flush=True)
    assert figures is not None
    fall = loss_before - canary_losses(session, state.adapter, examples, config)
    claims = math.isfinite(figures.epsilon_spent)
    return Evidence(
        {SERVER: scores, READER: fall}, included, figures.epsilon_spent if claims else None, figures.delta if claims else 0.0
    )


def asked_of_the_bank(config: Config) -> Config:
    """The run's configuration with no sample drawn from the bank's rows, all of which the audit has chosen; its ledger's budget does not count."""
    return replace(
        config,
        dataset=replace(config.dataset, max_rows_per_task=0, tasks=()),
        train=replace(config.train, max_rows=0),
        evaluation=replace(config.evaluation, validation_rows=0, keep="last", patience=0),
        privacy=replace(config.privacy, budget_epsilon=0.0),
    )


def canary_rows(count: int, draw: np.random.Generator, task: str) -> list[Row]:
    """Rows that nobody could have had: random letters that ask for random letters, each a customer of its own."""

    def letters(number: int) -> str:
        return "".join(LETTERS[place] for place in draw.integers(0, len(LETTERS), number))

    return [
        Row(f"canary/{index}", task, f"{letters(10)} Answer: ", letters(4), issuer=f"canary {index}") for index in range(count)
    ]


def write_bank(folder: Path, rows: Sequence[Row]) -> None:
    """A bank's own folder with these rows."""
    folder.mkdir(parents=True)
    lines = (
        {"context": row.prompt, "target": row.target, "task": row.task, **({"issuer": row.issuer} if row.issuer else {})}
        for row in rows
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")


def row_gradients(session: Session, adapter: NDArray[np.float32], examples: Sequence[Example]) -> NDArray[np.float32]:
    """(rows, size) float32: each row's gradient of its mean answer loss at `adapter`."""
    write_adapter(session.model, adapter)
    session.model.eval()
    device = next(session.model.parameters()).device
    names = list(trainable(session.model))
    found = np.zeros((len(examples), session.layout.size), np.float32)
    for first in range(0, len(examples), ROWS_A_PASS):
        units = [[example] for example in examples[first : first + ROWS_A_PASS]]
        pack = pack_units(units, device)
        with keeping(session.model) as kept:
            (token_losses(session.model, pack) * answer_means(pack)).sum().backward()  # type: ignore[no-untyped-call]
        session.model.zero_grad(set_to_none=True)
        for place, (start, end) in enumerate(spans_of(units), first):
            layers = [kept.output_gradients[name][start:end].float().T @ kept.inputs[name][start:end].float() for name in names]
            found[place] = np.concatenate([layer.cpu().numpy().reshape(-1) for layer in layers])
    return found


def canary_losses(
    session: Session, adapter: NDArray[np.float32], examples: Sequence[Example], config: Config
) -> NDArray[np.float64]:
    """(canaries,) mean negative log-likelihood of an answer token of each, in nats."""
    before = read_adapter(session.model)
    write_adapter(session.model, adapter)
    found = np.array([mean_loss(session.model, [example], config.train) for example in examples])
    write_adapter(session.model, before)
    return found


# --- banks ----------------------------------------------------------------------------------------------------------------------


def audit_banks(config: Config, canaries: int) -> Evidence:
    """Canary banks in the server's step, over all rounds of the run, without a model: what a bank computes is the attacker's to choose."""
    draw = _coins(config)
    included = draw.random(canaries) < 0.5
    names = [f"canary-{index:05d}" for index in range(canaries)]
    present = {name: place for place, name in enumerate(names) if included[place]}
    privacy = replace(config.privacy, accept_noise=True)
    mechanism = make_mechanism(replace(config, privacy=privacy), list(present), canaries)
    assert mechanism is not None
    strategy = replace(config.strategy, name="fedavg", server_learning_rate=1.0, schedule="constant", warmup_rounds=0)
    figures = [
        replace(Figures.withheld(1, 0.0, math.nan, math.nan, math.nan), rows=LARGE_ROWS if index % LARGE_EVERY == 0 else 1)
        for index in range(canaries)
    ]
    state = RoundState(0, np.zeros(canaries, np.float32), {})
    scores = np.zeros(canaries)
    for number in range(1, config.num_server_rounds + 1):
        replies = []
        for name in mechanism.drawn(list(present), number):
            delta = np.zeros(canaries, np.float32)
            delta[present[name]] = 10 * privacy.clip_norm
            replies.append(Reply(name, delta, figures[present[name]], float(np.linalg.norm(delta))))
        following, _ = take_step(replies, state, strategy, config.num_server_rounds, mechanism)
        scores += following.adapter - state.adapter
        state = following
    return Evidence({BANKS_READER: scores}, included, mechanism.epsilon_planned, mechanism.delta)


def _coins(config: Config) -> np.random.Generator:
    """The coin tosses; repeatable where the noise is, for tests."""
    return generator(config.seed, "audit") if config.privacy.reproducible_noise else secret_generator()
