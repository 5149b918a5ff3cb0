"""FedAdamW with moments at the banks: against the paper's algorithm by hand, and hostile means on each side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import set_random_adapter, text_examples, tiny_config
from fake_grid import only, with_head
from flwr.app import ConfigRecord, Message
from keys import Consortium
from liar import chain_of, makes_right, rounds_in
from numpy.typing import NDArray
from round_runs import Runs
from tiny_runs import rounds_of, same_run, write_rows

import server_app.federated
from client_app.global_step import LastGlobal, rates_of, started
from fedfinlora.commands.verify import verify
from fedfinlora.config.privacy import PrivacyConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.config.train import TrainConfig
from fedfinlora.deployment.policy import Policy, _is_sgd
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import Layout, read_adapter, trainable, write_adapter
from fedfinlora.model.block_means import averaged, block_means, fault_in, from_text, spread, to_text
from fedfinlora.model.loading import Session
from fedfinlora.run.checkpoint import checkpoint_file, load_checkpoint, save_checkpoint
from fedfinlora.train.gradient_step import LocalRows, StepTaken
from fedfinlora.train.loop import Stretch, schedule_factor, train
from fedfinlora.wire.messages import Figures, Reply
from server_app.replies import replies_of
from server_app.strategies import rule_of
from server_app.strategies.strategy import ServerState, take_step

LAYOUT = Layout(("a.lora_A.weight", "a.lora_B.weight"), ((2, 3), (4, 2)))
FIGURES = Figures(4, 1, 10, 5, 1.0, 0, 0.0, 0.0, 0.0, 4, 0)
ALPHA, DECAY, RATE, STEPS, ROUNDS = 0.5, 0.1, 1e-2, 4, 3
Vector64 = NDArray[np.float64]


@dataclass(frozen=True)
class Bowl:
    """The gradient of sum curvature (x - target)^2 / 2 in the place of a model's."""

    curvature: Vector64
    target: Vector64
    is_private = False

    def take(self, local: LocalRows, step: int) -> StepTaken:
        x = read_adapter(local.model).astype(np.float64)
        gradient, offset = (self.curvature * (x - self.target)).astype(np.float32), 0
        for parameter in trainable(local.model).values():
            end = offset + parameter.numel()
            parameter.grad = torch.from_numpy(gradient[offset:end].copy()).reshape(parameter.shape)
            offset = end
        return StepTaken(local.examples[:1], 1.0)


def settings(**values: Any) -> Config:
    own = {"learning_rate": RATE, "weight_decay": DECAY, "steps_per_round": STEPS, "clip_norm": 0.0, "warmup_steps": 1}
    return tiny_config(
        train=TrainConfig(**(own | values)), num_server_rounds=ROUNDS,
        strategy=StrategyConfig(name="fedadamw_local", weighting="equal", server_learning_rate=0.8,
                                local_correction=ALPHA),
    )  # fmt: skip


def by_the_paper(start: Vector64, bowls: list[Bowl], layout: Layout, config: Config) -> tuple[Vector64, Vector64]:
    """(adapter, means of second moments) after three rounds of algorithm 2, in float64, Delta_G an explicit vector."""
    tensors = [math.prod(shape) for shape in layout.shapes]
    ends = np.cumsum(tensors)
    x, means, pull = start.copy(), np.zeros(len(tensors)), np.zeros_like(start)
    total = ROUNDS * STEPS
    for number in range(ROUNDS):
        moves, seconds = [], []
        rates = [RATE * schedule_factor(number * STEPS + k, total, 1, "cosine") for k in range(STEPS)]
        for bowl in bowls:
            y, m, v = x.copy(), np.zeros_like(x), np.repeat(means, tensors)
            for k, rate in enumerate(rates, 1):
                g = bowl.curvature * (y - bowl.target)
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                m_hat, v_hat = m / (1 - 0.9**k), v / (1 - 0.999 ** (number * STEPS + k))
                y = y - rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + ALPHA * pull + DECAY * y)
            moves.append(y - x)
            seconds.append([part.mean() for part in np.split(v, ends[:-1])])
        pull = -np.mean(moves, axis=0) / sum(rates)
        x, means = x + 0.8 * np.mean(moves, axis=0), np.mean(seconds, axis=0)
    return x, means


def test_three_rounds_of_two_banks_equal_the_papers_algorithm(tiny: Session) -> None:
    config, layout = settings(), tiny.layout
    start, rows, draw = set_random_adapter(tiny), text_examples(4), np.random.default_rng(3)
    bowls = [Bowl(draw.uniform(0.5, 2.0, layout.size), draw.normal(0, 1.0, layout.size)) for _ in range(2)]
    rule, state = rule_of(config.strategy, ROUNDS), ServerState(0, start)
    last: list[LastGlobal | None] = [None, None]
    for number in range(1, ROUNDS + 1):
        replies = []
        for bank, bowl in enumerate(bowls):
            stretch = Stretch((number - 1) * STEPS, STEPS, ROUNDS * STEPS, 4.0)
            means = rule.second_moments(state)
            begun = started(last[bank], state.adapter, means, layout, stretch, number, config)
            write_adapter(tiny.model, state.adapter)
            done = train(tiny.model, rows, stretch, config.train, seed=0, bank="b", optimizer=begun, gradient=bowl)
            last[bank] = LastGlobal(number, state.adapter, rates_of(stretch, config))
            delta = read_adapter(tiny.model) - state.adapter
            own = block_means(done.optimizer.second_moment, layout)
            replies.append(Reply(f"bank-{bank}", delta, FIGURES, 1.0, second_moments=own))
        state = take_step(rule, state, replies_of(replies, [1.0, 1.0], layout))
    x, expected = by_the_paper(start.astype(np.float64), bowls, layout, config)
    assert float(np.abs(x - start).max()) > 0.05
    np.testing.assert_allclose(state.adapter, x, atol=2e-6)
    np.testing.assert_allclose(state.arrays["second_moments"], expected, rtol=1e-4)


def test_one_bank_with_one_round_is_adamw_to_the_byte(tiny: Session) -> None:
    config, rows = settings(clip_norm=1.0), text_examples(8)
    start, stretch, ends = set_random_adapter(tiny), Stretch(0, 5, 5, 4.0), []
    for optimizer in (None, started(None, start, np.zeros(0, np.float32), tiny.layout, stretch, 1, config)):
        write_adapter(tiny.model, start)
        result = train(tiny.model, rows, stretch, config.train, seed=0, bank="bank-0", optimizer=optimizer)
        ends.append((read_adapter(tiny.model).tobytes(), result.optimizer.second_moment.tobytes()))
    assert ends[0] == ends[1]


# --- means by tensor ------------------------------------------------------------------------------


def test_means_are_one_number_a_tensor_and_come_back_from_text() -> None:
    vector = np.arange(LAYOUT.size, dtype=np.float32)
    means = block_means(vector, LAYOUT)
    np.testing.assert_array_equal(means, [2.5, 9.5])
    np.testing.assert_array_equal(spread(means, LAYOUT), [2.5] * 6 + [9.5] * 8)
    np.testing.assert_array_equal(averaged([means, 3 * means], [3.0, 1.0]), 1.5 * means)
    np.testing.assert_array_equal(from_text(to_text(means)), means)
    assert from_text("").size == 0


@pytest.mark.parametrize("text", ["AAAA", "AACAPw", "AACAPw==AACAPw==", "é", "AACAP/=="])
def test_what_is_no_array_of_float32_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="second-moments"):
        from_text(text)


@pytest.mark.parametrize(
    ("means", "fault"),
    [([0.0, 0.0], ""), ([1 / 6, 1 / 8], ""), ([0.1], "1 means for 2"), ([0.1, np.nan], "NaN"), ([np.inf, 0.1], "NaN"),
     ([-1e-9, 0.1], "below 0"), ([0.17, 0.1], "larger than train.clip_norm=1")],
)  # fmt: skip
def test_means_that_no_clipped_gradient_gives_are_named(means: list[float], fault: str) -> None:
    found = fault_in(np.array(means, np.float32), LAYOUT, 1.0)
    assert fault in found
    assert bool(found) == bool(fault)


def test_without_clipping_means_have_a_bound_too() -> None:
    assert not fault_in(np.array([1e15, 1.0], np.float32), LAYOUT, 0.0)
    assert fault_in(np.array([1e17, 1.0], np.float32), LAYOUT, 0.0)


# --- what it does not go with ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["example", "bank", "dp_lora"])
def test_privacy_does_not_let_second_moments_leave(mode: str) -> None:
    train = TrainConfig(share_prefix=False, holdout_max_rows=0)
    privacy = PrivacyConfig(mode=mode, noise_multiplier=1.0, unit="bank" if mode == "bank" else "example")
    with pytest.raises(ConfigError, match=f"strategy=fedadamw_local sends means of squared gradients.*{mode}"):
        replace(settings(), train=train, privacy=privacy)


def test_other_optimisers_and_drift_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"set train\.optimizer=adamw"):
        settings(optimizer="adamw_8bit")
    with pytest.raises(ConfigError, match=r"strategy\.sync=drift does not go with strategy=fedadamw_local"):
        StrategyConfig(name="fedadamw_local", sync="drift")


def test_a_policy_without_sgd_lets_no_second_moments_leave() -> None:
    assert "sgd" not in Policy().optimizer
    assert _is_sgd(settings())
    assert not _is_sgd(replace(settings(), strategy=StrategyConfig()))


# --- runs -----------------------------------------------------------------------------------------

WORDS = ("strategy=fedadamw_local", "train.learning_rate=1e-2", "train.holdout_max_rows=0")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def made(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Consortium]:
    """(a signed run of three rounds that kept its deltas; its keys)."""
    folder = tmp_path_factory.mktemp("made")
    consortium = Consortium(folder / "keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDFINLORA_WITNESS", str(folder / "witness"))
        consortium.serves(patch)
        run = Runs(rows, folder, consortium=consortium).start("run", *WORDS, "strategy.keep_deltas=true", rounds=3)
    return run, consortium


def test_a_run_sends_the_mean_back_and_verifies(
    made: tuple[Path, Consortium], capsys: pytest.CaptureFixture[str]
) -> None:
    run, consortium = made
    assert verify(run, consortium.ca) == 0, capsys.readouterr().out
    assert "the second moments that banks start from were computed again in 3 rounds" in capsys.readouterr().out
    first, second, _ = rounds_in(chain_of(run))
    means = [from_text(part["reply"]["second-moments"]) for part in first["banks"].values()]
    assert all((own > 0).any() for own in means)
    assert second["request"]["second-moments"] == to_text(np.mean(means, axis=0, dtype=np.float64).astype(np.float32))
    assert load_checkpoint(run).arrays["second_moments"].shape == means[0].shape


def test_a_checkpoint_with_other_means_is_named_and_the_one_before_resumes(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(rows, tmp_path)
    run, whole = (runs.start(name, *WORDS, rounds=2) for name in ("run", "whole"))
    last = load_checkpoint(run)
    means = last.arrays["second_moments"]
    for fault, own in (("NaN", {"second_moments": means * np.nan}), ("below 0", {"second_moments": means - 1}),
                       ("means for", {"second_moments": means[1:]}), ("0 means for", {})):  # fmt: skip
        save_checkpoint(run, replace(last, arrays={"adapter": last.arrays["adapter"], **own}))
        with monkeypatch.context() as patch:
            patch.setattr(
                server_app.federated, "saved_files", lambda folder: {}
            )  # as where the chain has no hash of it
            with pytest.raises(UserError, match=rf"round_0002\.safetensors is damaged: .*{fault}.*Delete it to resume"):
                runs.resume(run)
    assert checkpoint_file(run, 2).is_file()
    runs.resume(run)
    assert same_run(run, whole)


def test_other_means_in_a_request_are_named(
    made: tuple[Path, Consortium], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run, (_, consortium) = Path(shutil.copytree(made[0], tmp_path / "run")), made
    lines = chain_of(run)
    request = rounds_in(lines)[1]["request"]
    request["second-moments"] = to_text(from_text(request["second-moments"]) * np.float32(2))
    makes_right(run, lines, consortium.signer)
    assert verify(run, consortium.ca) == 1
    assert "round 2: the second moments sent to bank-0 are not the mean of the replies" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda means: means * np.float32(np.nan), "NaN or infinite"),
        (lambda means: -means, "below 0"),
        (lambda means: means * 0 + np.float32(1e30), "larger than"),
        (lambda means: means[:3], "3 means for"),
    ],
)  # fmt: skip
def test_accepted_means_that_the_server_must_reject_are_named(
    make: Callable[[Any], Any], fault: str, made: tuple[Path, Consortium], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """An aggregator in league with a bank takes impossible means, and sends what follows from them."""
    import shutil

    run, (_, consortium) = Path(shutil.copytree(made[0], tmp_path / "run")), made
    lines = chain_of(run)
    first, second, _ = rounds_in(lines)
    for part in first["banks"].values():
        part["reply"]["second-moments"] = to_text(make(from_text(part["reply"]["second-moments"])))
    means = [from_text(part["reply"]["second-moments"]) for part in first["banks"].values()]
    second["request"]["second-moments"] = to_text(np.mean(means, axis=0, dtype=np.float64).astype(np.float32))
    makes_right(run, lines, consortium.signer)
    assert verify(run, consortium.ca) == 1
    said = capsys.readouterr().out
    assert "round 1: second moments of bank-0 were accepted" in said
    assert fault in said


def hostile(make: Callable[[Any], Any]) -> Callable[[Message, Message], Message]:
    def change(message: Message, reply: Message) -> Message:
        means = from_text(str(reply.content.config_records["reply"]["second-moments"]))
        return Message(with_head(reply, second_moments=make(means)), reply_to=message)

    return change


@pytest.mark.parametrize(
    ("make", "code"),
    [(lambda means: to_text(means * np.float32(np.nan)), "moments"), (lambda means: to_text(-means), "moments"),
     (lambda means: to_text(means[:-1]), "moments"), (lambda means: to_text(means + np.float32(1e6)), "moments"),
     (lambda means: "", "moments"), (lambda means: "AAAA", "malformed"), (lambda means: "A" * 2**15, "malformed")],
    ids=["nan", "negative", "too few", "too large", "none", "no floats", "too long"],
)  # fmt: skip
def test_a_banks_hostile_means_are_rejected_by_name(
    make: Callable[[Any], Any], code: str, rows: Path, tmp_path: Path
) -> None:
    run = Runs(rows, tmp_path).start("run", *WORDS, rounds=1, tamper=only("bank-1", hostile(make)))
    assert [entry["code"] for entry in rounds_of(run)[0]["banks"]] == ["", code]


def test_means_that_no_one_asked_for_are_rejected(rows: Path, tmp_path: Path) -> None:
    def change(message: Message, reply: Message) -> Message:
        return Message(with_head(reply, second_moments=to_text(np.ones(4, np.float32))), reply_to=message)

    run = Runs(rows, tmp_path).start("run", rounds=1, tamper=only("bank-1", change))
    assert [entry["code"] for entry in rounds_of(run)[0]["banks"]] == ["", "malformed"]


@pytest.mark.parametrize(
    ("text", "code"),
    [(to_text(np.array([np.nan] * 4, np.float32)), "moments"), (to_text(np.full(9, 1e9, np.float32)), "moments"),
     ("AAAA", "config"), ("A" * 2**15, "config")],
    ids=["nan", "other tensors", "no floats", "too long"],
)  # fmt: skip
def test_a_servers_hostile_means_are_refused_by_name(
    text: str, code: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import server_app.rounds

    real = server_app.rounds.pack_requests

    def pack(*arguments: Any) -> Any:
        made = real(*arguments)
        for content in made.values():
            head = dict(content.config_records["request"]) | {"second-moments": text}
            content.config_records["request"] = ConfigRecord(head)
        return made

    monkeypatch.setattr(server_app.rounds, "pack_requests", pack)
    runs = Runs(rows, tmp_path)
    with pytest.raises(Exception, match="0 of 2 replies are usable"):
        runs.start("run", *WORDS, rounds=1)
    assert runs.grid is not None
    replies = [dict(message.content.config_records["reply"]) for message in runs.grid.arrived]
    assert [reply["code"] for reply in replies if reply["status"] == "error"] == [code] * 2
