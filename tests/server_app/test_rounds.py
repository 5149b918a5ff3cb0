"""The round loop with the real ClientApp behind a grid without processes: same bytes, one bad bank at a time, quorum,
the roster.
"""

from __future__ import annotations

import io
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, only, with_delta, with_figures, with_head
from flwr.app import Array, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from hypothesis import given
from hypothesis import strategies as st
from keys import Consortium
from round_runs import Runs, raising
from tiny_runs import SCORED, adapter_bytes, result_of, rounds_of, same_run, write_rows

import client_app.app
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import UserError
from fedfinlora.model import loading as models
from fedfinlora.wire.messages import BankError
from fedfinlora.wire.reasons import SAFE_REASONS
from fedfinlora.wire.vectors import FLAT_FLOAT32
from server_app.exchange import roster
from server_app.federated import run_federated
from server_app.strategies import rule_of

MARKER = "ZEBRA7731"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def runs(rows: Path, tmp_path: Path) -> Runs:
    return Runs(rows, tmp_path)


def entry(run: Path, round_number: int, bank: str) -> dict[str, Any]:
    [found] = [each for each in rounds_of(run)[round_number - 1]["banks"] if each["bank"] == bank]
    return dict(found)


def in_round(number: int, change: Callable[[Message, Message], Any]) -> Callable[[Message, Message], Any]:
    """Change a reply in one round only."""
    return lambda message, reply: change(message, reply) if message.metadata.group_id == str(number) else reply


def replaced(content: RecordDict, message: Message) -> Message:
    return Message(content, reply_to=message)


class TestSameBytes:
    def test_the_same_run_twice_gives_the_same_bytes(self, runs: Runs) -> None:
        one, two = (runs.start(name, *SCORED) for name in ("one", "two"))
        assert same_run(one, two)
        assert rounds_of(one)[0]["train_loss"] > 0
        assert adapter_bytes(one, "round_001") != adapter_bytes(one, "round_002") == adapter_bytes(one)

    def test_another_seed_gives_other_bytes(self, runs: Runs) -> None:
        assert adapter_bytes(runs.start("one")) != adapter_bytes(runs.start("two", "seed=1"))

    @pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
    def test_the_order_in_which_banks_answer_changes_nothing(self, runs: Runs, strategy: str) -> None:
        draws = random.Random(3)
        orders: list[Callable[[list[str]], list[str]]] = [
            sorted,
            lambda names: sorted(names, reverse=True),
            lambda names: draws.sample(names, len(names)),
        ]
        made = [
            runs.start(f"{strategy}{number}", f"strategy={strategy}", banks=4, order=order)
            for number, order in enumerate(orders)
        ]
        assert same_run(made[0], made[1])
        assert same_run(made[0], made[2])

    def test_banks_that_answer_one_by_one_change_nothing(self, runs: Runs) -> None:
        """Each poll brings one reply: the server adds them up in the order of the names all the same."""
        reference = runs.start("together", banks=3)
        grid = FakeGrid(runs.nodes(3))
        pull = grid.pull_messages

        def one_a_poll(ids: Any) -> list[Message]:
            return pull(sorted(ids)[-1:])

        grid.pull_messages = one_a_poll  # type: ignore[method-assign]
        assert same_run(reference, run_federated(grid, runs.config("apart", banks=3)))

    def test_node_ids_change_nothing(self, runs: Runs) -> None:
        reference = runs.start("one")
        nodes = {node * 7919: config for node, config in reversed(runs.nodes(2).items())}
        assert same_run(reference, run_federated(FakeGrid(nodes), runs.config("two")))

    def test_scores_between_rounds_do_not_change_training(self, runs: Runs) -> None:
        plain, scored = runs.start("plain"), runs.start("scored", *SCORED, "evaluation.every=1")
        assert adapter_bytes(plain) == adapter_bytes(scored)
        assert set(rounds_of(scored)[0]["scores"]) == {"fpb"}


class TestRunFolder:
    def test_everything_a_run_leaves(self, runs: Runs) -> None:
        run = runs.start("run", *SCORED)
        files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
        assert {
            "config.yaml", "manifest.json", "rounds.jsonl", "result.json", "report.html", "progress.jsonl",
            "eval/base/fpb.jsonl",
            "eval/base/metrics.json", "eval/final/metrics.json", "adapters/round_001/adapter_config.json",
            "adapters/round_002/adapter_model.safetensors", "adapters/final/adapter_model.safetensors",
            "state/run.json",
        } <= files  # fmt: skip
        assert not [name for name in files if name.endswith(".tmp")]
        result = result_of(run)
        assert {
            "schema_version": 1,
            "mode": "federated",
            "status": "completed",
            "rounds": 2,
            "banks": 2,
        }.items() <= result.items()
        lines = rounds_of(run)
        assert result["rows_trained"] == sum(bank["rows"] for line in lines for bank in line["banks"]) == 2 * 2 * 2 * 4
        assert result["bytes_up"] == sum(line["bytes_up"] for line in lines) > 0
        assert set(result["scores"]) == {"base", "final"}
        assert result["scores"]["final"]["fpb"]["n"] == 2

    def test_banks_are_divided_fairly_and_named(self, runs: Runs) -> None:
        line = rounds_of(runs.start("run", banks=3))[0]
        assert [bank["bank"] for bank in line["banks"]] == ["bank-0", "bank-1", "bank-2"]
        assert {bank["status"] for bank in line["banks"]} == {"ok"}

    def test_the_round_is_the_weighted_mean_of_the_deltas(self, runs: Runs) -> None:
        """Against the definition, from what crossed: w + sum n_k d_k / sum n_k."""
        run = runs.start("run", "strategy.weighting=rows", rounds=1)
        assert runs.grid is not None
        deltas, weights = [], []
        for reply in runs.grid.arrived:
            if reply.metadata.message_type == "train":
                deltas.append(
                    np.frombuffer(reply.content.array_records["delta"]["vector"].data, "<f4").astype(np.float64)
                )
                weights.append(reply.content.metric_records["figures"]["rows"])
        [sent] = {
            message.content.array_records["adapter"]["vector"].data
            for message in runs.grid.messages
            if message.metadata.message_type == "train"
        }
        start = np.frombuffer(sent, "<f4").astype(np.float64)
        expected = (start + np.average(deltas, axis=0, weights=weights)).astype(np.float32)
        from safetensors.numpy import load_file

        saved = load_file(run / "adapters" / "final" / "adapter_model.safetensors")
        got = np.concatenate([saved[name].reshape(-1) for name in sorted(saved)])
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


class TestModel:
    def test_the_base_model_is_loaded_once_and_not_again_in_round_2(self, runs: Runs) -> None:
        models._bases.clear()
        models._sessions.clear()
        before = models.base_loads
        runs.start("run", *SCORED, rounds=3, banks=3)
        assert models.base_loads == before + 1

    def test_another_peft_method_on_the_same_base_does_not_load_it_again(self, runs: Runs) -> None:
        runs.start("one")
        before = models.base_loads
        runs.start("two", "peft=dora")
        reference = runs.start("three")
        assert models.base_loads == before
        assert same_run(runs.folder / "one", reference)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def declared(size: int, content: bytes, dtype: str = "float32", stype: str = FLAT_FLOAT32) -> Array:
    """A Flower Array that claims to be a flat array of `size` numbers, with any bytes."""
    return Array(dtype=dtype, shape=(size,), stype=stype, data=content)


def header(shape: str) -> bytes:
    """A .npy file that promises more than it holds."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (len(text) + 10) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def zipped(size: int) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, vector=np.zeros(min(size, 100), np.float32))
    return buffer.getvalue()


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda delta: (delta * np.float32(factor)).astype(np.float32)


def set_first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(delta: np.ndarray) -> np.ndarray:
        delta = delta.copy()
        delta[0] = value
        return delta

    return change


BAD_REPLIES: dict[str, tuple[Callable[[Message], RecordDict], str, str]] = {
    "layout id of another adapter": (lambda r: with_head(r, layout_id="0" * 16), "rejected", "layout"),
    "too few numbers": (lambda r: with_delta(r, lambda d: d[:-1]), "rejected", "layout"),
    "too many numbers": (lambda r: with_delta(r, lambda d: np.append(d, d[:1])), "rejected", "layout"),
    "a matrix": (lambda r: with_delta(r, lambda d: d.reshape(2, -1)), "rejected", "layout"),
    "float64": (lambda r: with_delta(r, lambda d: d.astype(np.float64)), "rejected", "layout"),
    "int32": (lambda r: with_delta(r, lambda d: np.ones(len(d), np.int32)), "rejected", "layout"),
    "float64 declared float32": (
        lambda r: with_delta(r, lambda d: declared(len(d), d[: len(d) // 2].astype(np.float64).tobytes() + b"1234")),
            "rejected", "layout",
    ),
    "far more bytes than declared": (
        lambda r: with_delta(r, lambda d: declared(len(d), np.zeros(10 * len(d), np.float32).tobytes())), "rejected",
            "layout",
    ),
    "NaN": (lambda r: with_delta(r, set_first(math.nan)), "rejected", "not-finite"),
    "Inf": (lambda r: with_delta(r, set_first(-math.inf)), "rejected", "not-finite"),
    "loss NaN": (lambda r: with_figures(r, train_loss=math.nan), "rejected", "not-finite"),
    "loss Inf": (lambda r: with_figures(r, train_loss=math.inf), "rejected", "malformed"),
    "zero rows": (lambda r: with_figures(r, rows=0), "rejected", "no-rows"),
    "rows below zero": (lambda r: with_figures(r, rows=-8), "rejected", "malformed"),
    "a trillion rows": (lambda r: with_figures(r, rows=2**40), "rejected", "malformed"),
    "rows beyond any whole number": (lambda r: with_figures(r, rows=1.7e308), "rejected", "malformed"),
    "a loss that overflows": (lambda r: with_figures(r, holdout_loss=1e300), "rejected", "malformed"),
    "tokens that overflow": (lambda r: with_figures(r, tokens=2**62), "rejected", "malformed"),
    "zero steps": (lambda r: with_figures(r, steps=0), "rejected", "malformed"),
    "a huge norm": (lambda r: with_delta(r, lambda d: np.full(len(d), 1e4, np.float32)), "rejected", "norm"),
    "a norm beyond float32": (lambda r: with_delta(r, lambda d: np.full(len(d), 3e38, np.float32)), "rejected", "norm"),
    "nothing": (lambda r: RecordDict(), "rejected", "malformed"),
    "no figures": (lambda r: RecordDict({"reply": r.content["reply"], "delta": r.content["delta"]}), "rejected",
        "malformed"),
    "no delta": (lambda r: RecordDict({"reply": r.content["reply"], "figures": r.content["figures"]}), "rejected",
        "malformed"),
    "no steps reported": (lambda r: with_figures(r, steps=None), "rejected", "malformed"),
    "no rows reported": (lambda r: with_figures(r, rows=None), "rejected", "no-rows"),
    "a list for a figure": (lambda r: with_figures(r, rows=[8, 8]), "rejected", "malformed"),
    "rows NaN": (lambda r: with_figures(r, rows=math.nan), "rejected", "malformed"),
    "another bank's name": (lambda r: with_head(r, bank="bank-0"), "rejected", "malformed"),
    "an unknown status": (lambda r: with_head(r, status="perhaps"), "rejected", "malformed"),
    "records under other names": (lambda r: RecordDict({"answer": ConfigRecord({"status": "ok"})}), "rejected",
        "malformed"),
    "no bytes": (lambda r: with_delta(r, lambda d: declared(len(d), b"")), "rejected", "layout"),
    "bytes that are no array": (lambda r: with_delta(r, lambda d: declared(len(d), b"\x00" * 128)), "rejected",
        "layout"),
    "cut off bytes": (lambda r: with_delta(r, lambda d: declared(len(d), d.tobytes()[:-8])), "rejected", "layout"),
    "a pickle": (
        lambda r: with_delta(r, lambda d: declared(len(d), npy(np.array([{"a": 1}], dtype=object)))), "rejected",
            "layout",
    ),
    "another serialization": (
        lambda r: with_delta(r, lambda d: declared(len(d), npy(d), stype="torch.tensor")), "rejected", "layout",
    ),
    "rows Inf": (lambda r: with_figures(r, rows=math.inf), "rejected", "malformed"),
    "a zip archive": (lambda r: with_delta(r, lambda d: declared(len(d), zipped(len(d)))), "rejected", "layout"),
    "a torn zip archive": (lambda r: with_delta(r, lambda d: declared(len(d), b"PK\x03\x04" + b"x" * 64)), "rejected",
        "layout"),
    "a header that promises terabytes": (
        lambda r: with_delta(r, lambda d: declared(len(d), header(f"({10**15},)"))), "rejected", "layout",
    ),
}  # fmt: skip
"""What arrives in the place of bank-1's reply -> the status and code of its entry."""


class TestOneBadBank:
    """One bank goes wrong in round 1, and is well again in round 2: one entry says so, and the run continues."""

    @pytest.mark.parametrize("name", BAD_REPLIES)
    def test_a_bad_reply_is_one_entry_and_the_run_continues(self, runs: Runs, name: str) -> None:
        make, status, code = BAD_REPLIES[name]
        change = in_round(1, lambda message, reply: replaced(make(reply), message))
        run = runs.start("run", tamper=only("bank-1", change))
        self.check(run, status, code)

    @staticmethod
    def check(run: Path, status: str, code: str) -> None:
        bad = entry(run, 1, "bank-1")
        assert (bad["status"], bad["code"]) == (status, code)
        assert bad["reason"]
        assert "\n" not in bad["reason"]
        assert (bad["rows"], bad["bytes_up"], bad["train_loss"], bad["delta_norm"]) == (0, 0, None, None)
        assert (
            entry(run, 1, "bank-0")["status"]
            == entry(run, 2, "bank-0")["status"]
            == entry(run, 2, "bank-1")["status"]
            == "ok"
        )
        first = rounds_of(run)[0]
        assert first["train_loss"] == entry(run, 1, "bank-0")["train_loss"]
        assert first["update_norm"] == pytest.approx(entry(run, 1, "bank-0")["delta_norm"], rel=1e-6)
        assert result_of(run)["status"] == "completed"
        for file in ("rounds.jsonl", "result.json", "progress.jsonl"):
            text = (run / file).read_text("utf-8")
            for line in text.splitlines() if file.endswith("jsonl") else [text]:
                json.loads(line, parse_constant=pytest.fail)

    @pytest.mark.parametrize(
        "values",
        [
            {"train_s": math.nan},
            {"train_s": math.inf},
            {"train_s": -1.0},
            {"holdout_loss": math.inf},
            {"holdout_rows": -5},
            {"tokens": -1, "answer_tokens": -1},
            {"train_loss": 1e308, "answer_tokens": 2**40},
            {"bank_rows": 2**60},
            {"rows": 2**40 - 1, "tokens": 2**53 - 1, "answer_tokens": 2**53 - 1, "train_loss": 1e6, "train_s": 1e9},
            {"rows": 1, "train_s": 5e-324, "tokens": 2**53 - 1},
        ],
        ids=str,
    )
    def test_figures_that_cannot_be_leave_every_file_readable(self, runs: Runs, values: dict[str, float]) -> None:
        """Rejected or taken, a strange figure never ends the run and never writes what JSON does not have."""
        run = runs.start(
            "run",
            tamper=only("bank-1", in_round(1, lambda message, reply: replaced(with_figures(reply, **values), message))),
        )
        assert result_of(run)["status"] == "completed"
        for file in ("rounds.jsonl", "progress.jsonl"):
            for line in (run / file).read_text("utf-8").splitlines():
                json.loads(line, parse_constant=lambda constant, file=file: pytest.fail(f"{constant} in {file}"))

    def test_a_claim_of_all_rows_weighs_no_more_than_the_cap(self, runs: Runs) -> None:
        """The cap holds against the largest claim that is taken; with two banks each weighs half."""
        claim = only("bank-1", lambda message, reply: replaced(with_figures(reply, rows=2**40 - 1), message))
        capped, equal = (
            runs.start(name, f"strategy.{word}", tamper=claim)
            for name, word in (("capped", "max_share=0.5"), ("equal", "weighting=equal"))
        )
        owned = runs.start("owned", tamper=claim)
        norms = [[line["update_norm"] for line in rounds_of(run)] for run in (capped, equal, owned)]
        assert norms[0] == norms[1] != norms[2]
        first = rounds_of(owned)[0]
        assert first["update_norm"] == pytest.approx(entry(owned, 1, "bank-1")["delta_norm"], rel=1e-6), (
            "without a cap it owns the mean"
        )

    @pytest.mark.parametrize(("made_up", "status"), [(MARKER, "rejected"), ("acme-will-default", "error")])
    def test_a_code_of_its_own_making_does_not_reach_the_run_folder(
        self, runs: Runs, made_up: str, status: str
    ) -> None:
        change = in_round(1, lambda message, reply: replaced(with_head(reply, status="error", code=made_up), message))
        run = runs.start("run", tamper=only("bank-1", change))
        assert entry(run, 1, "bank-1")["status"] == status
        assert made_up not in (run / "rounds.jsonl").read_text() + (run / "progress.jsonl").read_text()

    @pytest.mark.parametrize(
        "code",
        list(SAFE_REASONS),
    )
    def test_an_error_at_the_bank_is_a_code_and_its_sentence(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch, code: str
    ) -> None:
        fail_in_round_1(monkeypatch, BankError(code, f"{MARKER} in /secret/{MARKER}.jsonl"))
        run = runs.start("run")
        TestOneBadBank.check(run, "error", code)
        assert entry(run, 1, "bank-1")["reason"] == SAFE_REASONS[code]

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (RuntimeError(f"{MARKER}: row 3"), "internal"),
            (KeyError(MARKER), "internal"),
            (MemoryError(MARKER), "memory"),
            (RuntimeError(f"CUDA out of memory {MARKER}"), "memory"),
            (OSError(28, "No space left on device", f"/secret/{MARKER}"), "internal"),
            (UserError(f"/secret/{MARKER}.jsonl:3: not JSON"), "internal"),
        ],
        ids=["RuntimeError", "KeyError", "MemoryError", "CUDA", "OSError", "UserError"],
    )
    def test_every_exception_of_a_bank_is_a_code(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
    ) -> None:
        fail_in_round_1(monkeypatch, error)
        run = runs.start("run")
        TestOneBadBank.check(run, "error", code)
        assert_not_said(runs, run, MARKER)

    def test_a_bank_whose_process_dies_is_one_entry(self, runs: Runs) -> None:
        change = in_round(1, lambda message, reply: Message(Error(8, f"killed {MARKER}"), reply_to=message))
        run = runs.start("run", tamper=only("bank-1", change))
        TestOneBadBank.check(run, "error", "crashed")
        assert MARKER not in (run / "rounds.jsonl").read_text()

    def test_a_simulated_bank_that_dies_ends_the_run_before_saving_the_round(self, runs: Runs) -> None:
        """Flower (1.41) never replaces it: all later rounds would go without the banks that draw it."""
        change = in_round(2, lambda message, reply: Message(Error(0, f"killed {MARKER}"), reply_to=message))
        with pytest.raises(UserError, match=r"has died, most likely for lack of memory.* resume=RUN workers=1"):
            runs.start("run", tamper=only("bank-1", change))

    def test_a_delta_that_would_overflow_is_rejected_without_a_limit_too(self, runs: Runs) -> None:
        overflow = lambda delta: np.full(len(delta), 3e38, np.float32)  # noqa: E731
        huge = in_round(1, lambda message, reply: replaced(with_delta(reply, overflow), message))
        run = runs.start("run", "strategy.max_update_norm=0", tamper=only("bank-1", huge))
        TestOneBadBank.check(run, "rejected", "norm")

    def test_a_bank_that_never_answers_is_late_and_the_run_continues(self, runs: Runs) -> None:
        started = time.monotonic()
        run = runs.start(
            "run", "strategy.deadline_s=0.5", tamper=only("bank-1", in_round(1, lambda message, reply: None))
        )
        TestOneBadBank.check(run, "late", "late")
        assert time.monotonic() - started < 10

    def test_a_rejected_bank_can_be_absent_for_good(self, runs: Runs) -> None:
        run = runs.start("run", "strategy.deadline_s=0.3", rounds=3, tamper=only("bank-1", lambda message, reply: None))
        assert [entry(run, number, "bank-1")["status"] for number in (1, 2, 3)] == ["late"] * 3
        assert [entry(run, number, "bank-0")["status"] for number in (1, 2, 3)] == ["ok"] * 3


def fail_in_round_1(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make bank-1 raise in round 1."""
    true = client_app.app.train_round

    def train_round(request: Any, facts: Any) -> Any:
        if facts.name == "bank-1" and request.round == 1:
            raise error
        return true(request, facts)

    monkeypatch.setattr(client_app.app, "train_round", train_round)


def assert_not_said(runs: Runs, run: Path, *words: str) -> None:
    """None of the words is in a reply or in the run's folder."""
    assert runs.grid is not None
    from flwr.common.serde import message_to_proto

    for reply in runs.grid.arrived:
        content = message_to_proto(reply).SerializeToString()
        for word in words:
            assert word.encode() not in content
    for path in run.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            for word in words:
                assert word.encode() not in path.read_bytes(), path


class TestNothingOfARowIsSaid:
    def test_no_row_text_in_the_replies_of_a_run_that_goes_well(self, runs: Runs, tmp_path: Path) -> None:
        runs.rows = write_rows(tmp_path / "marked", word=MARKER)
        run = runs.start("run")
        assert_not_said(runs, run, MARKER)

    def test_no_row_text_and_no_path_when_a_banks_own_rows_are_bad(self, runs: Runs, tmp_path: Path) -> None:
        """bank-1 reads its own folder, in which no line is a row."""
        own = write_rows(tmp_path / f"folder-{MARKER}", word=MARKER)
        file = own / "train" / "fpb_train.jsonl"
        file.write_text(f'{{"context": "{MARKER}\n')
        nodes = runs.nodes(2)
        nodes[99] = {"bank": "bank-1", "data-path": str(own), "state-dir": str(tmp_path / "states")}
        runs.grid = FakeGrid(nodes)
        run = run_federated(runs.grid, runs.config("run", "dataset.on_bad_row=stop"))
        bad = entry(run, 1, "bank-1")
        assert (bad["status"], bad["code"], bad["reason"]) == ("error", "data", SAFE_REASONS["data"])
        assert_not_said(runs, run, MARKER, str(own))

    def test_a_reply_holds_the_delta_and_the_fixed_figures_only(self, runs: Runs) -> None:
        runs.start("run", rounds=1)
        assert runs.grid is not None
        for reply in runs.grid.arrived:
            if reply.metadata.message_type == "train":
                assert set(reply.content) == {"reply", "delta", "figures"}
                assert set(reply.content["reply"]) == {
                    "status",
                    "bank",
                    "layout-id",
                    "policy-sha256",
                    "run",
                    "round",
                    "attempt",
                    "request",
                }
                assert set(reply.content["delta"]) == {"vector"}
                assert all(isinstance(value, int | float) for value in reply.content["figures"].values())


class TestAnswersNobodyAskedFor:
    def test_a_second_reply_to_the_same_message_is_not_looked_at(self, runs: Runs) -> None:
        reference = runs.start("reference")

        def copy_first(message: Message, reply: Message) -> list[Message]:
            import copy

            first = copy.deepcopy(reply)
            return [first, Message(with_delta(reply, scaled(3.0)), reply_to=message)]

        assert same_run(reference, runs.start("twice", tamper=only("bank-1", copy_first)))

    def test_a_reply_to_an_earlier_round_is_not_looked_at(self, runs: Runs) -> None:
        """bank-1 misses round 1's deadline; its reply comes with that of round 2."""
        held: list[Message] = []

        def late(message: Message, reply: Message) -> Any:
            if message.metadata.group_id == "1":
                held.append(reply)
                return None
            return [*held, reply]

        run = runs.start("run", "strategy.deadline_s=0.3", tamper=only("bank-1", late))
        silent = runs.start(
            "silent", "strategy.deadline_s=0.3", tamper=only("bank-1", in_round(1, lambda message, reply: None))
        )
        assert entry(run, 1, "bank-1")["status"] == "late"
        assert same_run(run, silent)

    def test_a_reply_to_no_message_is_not_looked_at(self, runs: Runs) -> None:
        reference = runs.start("reference")

        def stray(message: Message, reply: Message) -> list[Message]:
            import copy

            other = copy.deepcopy(reply)
            other.metadata.__dict__["_reply_to_message_id"] = "message-never-sent"
            return [other, reply]

        assert same_run(reference, runs.start("stray", tamper=only("bank-0", stray)))


class TestQuorum:
    def test_too_few_usable_replies_end_the_run_and_it_can_be_resumed(self, runs: Runs) -> None:
        reference = runs.start("reference", "strategy.quorum=2", rounds=3)
        bad = only("bank-1", in_round(2, lambda message, reply: replaced(with_figures(reply, rows=0), message)))
        with pytest.raises(
            UserError, match=r"Round 2: 1 of 2 replies are usable, strategy\.quorum=2\. bank-1: .*0 rows"
        ):
            runs.start("run", "strategy.quorum=2", rounds=3, tamper=bad)
        run = runs.folder / "run"
        assert result_of(run)["status"] == "failed"
        assert "bank-1" in result_of(run)["reason"]
        assert len(rounds_of(run)) == 1
        assert (run / "report.html").is_file()
        assert same_run(reference, runs.resume(run))
        assert result_of(run)["status"] == "completed"

    def test_all_banks_failing_ends_the_run_with_every_banks_reason(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reference = runs.start("reference")
        with monkeypatch.context() as patch:
            patch.setattr(client_app.app, "train_round", lambda request, facts: 1 / 0)
            with pytest.raises(UserError, match=r"Round 1: 0 of 2 replies are usable.*bank-0: .*bank-1: ") as error:
                runs.start("run")
        assert "\n" not in str(error.value)
        run = runs.folder / "run"
        assert result_of(run)["status"] == "failed"
        assert result_of(run)["reason"] == str(error.value)
        assert same_run(reference, runs.resume(run))

    def test_a_round_closes_with_exactly_the_quorum(self, runs: Runs) -> None:
        bad = only("bank-2", lambda message, reply: replaced(RecordDict(), message))
        assert len(rounds_of(runs.start("run", "strategy.quorum=2", banks=3, tamper=bad))) == 2


class TestSampling:
    @given(
        banks=st.integers(1, 40),
        percent=st.integers(1, 100),
        quorum=st.integers(1, 40),
        seed=st.integers(0, 10),
        number=st.integers(1, 50),
    )
    def test_draw_law(self, banks: int, percent: int, quorum: int, seed: int, number: int) -> None:
        """As many as the share asks for, at least the quorum, at most all; sorted, none twice; the same again."""
        names = [f"bank-{index:02}" for index in range(banks)]
        rule = rule_of(StrategyConfig(fraction_train=percent / 100, quorum=quorum), 1)
        drawn = rule.sampled(names, seed, number)
        assert drawn == sorted(set(drawn)) == rule.sampled(names, seed, number)
        assert set(drawn) <= set(names)
        assert len(drawn) == min(banks, max(quorum, -(-percent * banks // 100)))

    def test_each_round_samples_again_and_every_bank_gets_its_turn(self) -> None:
        names = [f"bank-{index}" for index in range(4)]
        rule = rule_of(StrategyConfig(fraction_train=0.5), 20)
        drawn = [tuple(rule.sampled(names, 0, number)) for number in range(1, 21)]
        assert len(set(drawn)) > 2
        assert set().union(*drawn) == set(names)

    def test_only_the_drawn_banks_are_asked(self, runs: Runs) -> None:
        run = runs.start("run", "strategy.fraction_train=0.5", rounds=3, banks=4)
        assert runs.grid is not None
        expected = [
            (number, name)
            for number in (1, 2, 3)
            for name in rule_of(StrategyConfig(fraction_train=0.5), 9).sampled(
                [f"bank-{index}" for index in range(4)], 0, number
            )
        ]
        assert sorted(runs.grid.trained()) == expected
        assert [[bank["bank"] for bank in line["banks"]] for line in rounds_of(run)] == [
            [name for number, name in expected if number == line["round"]] for line in rounds_of(run)
        ]


class TestRoster:
    def test_two_banks_of_one_name_are_an_error_that_names_it(self, runs: Runs) -> None:
        nodes = {node: {**config, "bank": "alpha"} for node, config in runs.nodes(2).items()}
        with pytest.raises(UserError, match=r"'alpha'.*own name"):
            run_federated(FakeGrid(nodes), runs.config("run"))
        assert not (runs.folder / "run").exists()

    def test_a_bank_that_takes_anothers_name_is_rejected(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its key was enrolled under a name of its own."""
        runs.consortium = Consortium(runs.folder / "keys").serves(monkeypatch)
        given = runs.nodes(2)
        nodes, enrolled = list(given), runs.consortium.home / "banks.json"
        monkeypatch.setattr(runs.consortium, "nodes", lambda nodes: given)
        enrolled.write_text(json.dumps({"bank-0": str(nodes[0]), "honest": str(nodes[1])}))
        assert [bank["bank"] for bank in rounds_of(runs.start("run"))[0]["banks"]] == ["bank-0"]
        enrolled.write_text(json.dumps({"honest": str(nodes[0])}))
        with pytest.raises(UserError, match=r"honest: it gives another name than .*; node \d+: it gives another name"):
            runs.start("again")

    def test_a_bank_with_other_code_is_rejected(self, runs: Runs) -> None:
        other = only(
            "bank-1", lambda message, reply: replaced(with_head(reply, source_sha256="0" * 64), message), "query"
        )
        run = runs.start("run", tamper=other)
        assert [[bank["bank"] for bank in line["banks"]] for line in rounds_of(run)] == [["bank-0"], ["bank-0"]]
        assert result_of(run)["banks"] == 1

    def test_no_bank_with_the_servers_code_is_an_error(self, runs: Runs) -> None:
        def other(bank: str, message: Message, reply: Message) -> Message:
            return replaced(with_head(reply, source_sha256="0" * 64), message)

        with pytest.raises(UserError, match="another version of the code"):
            runs.start("run", tamper=other)

    def test_a_bank_whose_code_changes_under_the_run_refuses(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        import client_app.admission

        monkeypatch.setattr(client_app.admission, "source_fingerprint", lambda: "1" * 64)
        with pytest.raises(UserError, match="another version of the code"):
            runs.start("run")

    def test_a_bank_whose_gate_refuses_the_code_is_in_every_round_line(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It comes back in round 2, when its policy allows the code; it has a name because its key was enrolled."""
        runs.consortium = Consortium(runs.folder / "keys").serves(monkeypatch)

        def refused(bank: str, message: Message, reply: Message) -> Message:
            gate_is_shut = bank == "bank-1" and message.metadata.group_id in ("", "1")
            return (
                Message(Error(ErrorCode.INVALID_FAB, f"/secret/{MARKER}"), reply_to=message) if gate_is_shut else reply
            )

        run = runs.start("run", "strategy.min_banks=2", tamper=refused)
        first, second = (entry(run, number, "bank-1") for number in (1, 2))
        assert (first["status"], first["code"], first["reason"]) == (
            "error",
            "policy-code",
            SAFE_REASONS["policy-code"],
        )
        assert (second["status"], entry(run, 1, "bank-0")["status"]) == ("ok", "ok")
        assert MARKER not in (run / "rounds.jsonl").read_text()

    def test_code_that_every_bank_refuses_is_an_error_before_anything_is_done(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs.consortium = Consortium(runs.folder / "keys").serves(monkeypatch)
        runs.nodes(2)
        with pytest.raises(UserError, match=r"0 usable banks, 1 are needed .*bank-0: .*rule: code.*bank-1: "):
            runs.start(
                "run", tamper=lambda bank, message, reply: Message(Error(ErrorCode.INVALID_FAB, ""), reply_to=message)
            )
        assert not (runs.folder / "run").exists()

    def test_a_bank_that_does_not_say_hello_is_rejected(self, runs: Runs) -> None:
        run = runs.start("run", "strategy.wait_s=0.3", tamper=only("bank-1", lambda message, reply: None, "query"))
        assert [bank["bank"] for bank in rounds_of(run)[0]["banks"]] == ["bank-0"]

    def test_a_bank_with_an_impossible_name_is_rejected(self, runs: Runs) -> None:
        nodes = runs.nodes(2)
        nodes[99] = {**nodes[99], "bank": "../../etc"}
        run = run_federated(FakeGrid(nodes), runs.config("run"))
        assert [bank["bank"] for bank in rounds_of(run)[0]["banks"]] == ["bank-0"]

    def test_the_server_takes_no_impossible_name_from_a_bank(self, runs: Runs) -> None:
        named = only("bank-1", lambda message, reply: replaced(with_head(reply, bank="<b>../x</b>"), message), "query")
        run = runs.start("run", tamper=named)
        assert [bank["bank"] for bank in rounds_of(run)[0]["banks"]] == ["bank-0"]

    @pytest.mark.parametrize("rank", [-3, 0, 10**15, True, "4"])
    def test_a_bank_with_an_impossible_rank_is_rejected(self, runs: Runs, rank: Any) -> None:
        ranked = only("bank-1", lambda message, reply: replaced(with_head(reply, rank=rank), message), "query")
        run = runs.start("run", rounds=1, tamper=ranked)
        assert [bank["bank"] for bank in rounds_of(run)[0]["banks"]] == ["bank-0"]

    def test_fewer_banks_than_min_banks_is_an_error_after_the_wait(self, runs: Runs) -> None:
        started = time.monotonic()
        with pytest.raises(UserError, match=r"2 of 3 banks are connected after 0\.4 s.*min_banks"):
            runs.start("run", "strategy.min_banks=3", "strategy.wait_s=0.4")
        assert 0.4 <= time.monotonic() - started < 5

    def test_the_wait_ends_as_soon_as_the_last_bank_is_there(self, runs: Runs) -> None:
        grid = FakeGrid(runs.nodes(3))
        looks: list[int] = []

        def growing() -> list[int]:
            looks.append(1)
            return list(grid.nodes)[: min(3, len(looks))]

        grid.get_node_ids = growing  # type: ignore[method-assign]
        assert list(roster(grid, StrategyConfig(wait_s=30.0, min_banks=3), 3)) == ["bank-0", "bank-1", "bank-2"]
        assert len(looks) == 3

    def test_enough_nodes_but_too_few_usable_banks_is_an_error(self, runs: Runs) -> None:
        other = only(
            "bank-1", lambda message, reply: replaced(with_head(reply, source_sha256="0" * 64), message), "query"
        )
        with pytest.raises(UserError, match=r"1 usable banks, 2 are needed .*strategy\.min_banks"):
            runs.start("run", "strategy.min_banks=2", tamper=other)


def test_an_error_inside_the_server_is_a_failed_run_with_a_reason(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    import server_app.federated

    monkeypatch.setattr(server_app.federated, "run_round", raising(ZeroDivisionError("by zero")))
    with pytest.raises(ZeroDivisionError):
        runs.start("run")
    assert result_of(runs.folder / "run")["status"] == "failed"
    assert "ZeroDivisionError" in result_of(runs.folder / "run")["reason"]


def test_a_step_that_is_not_finite_ends_the_run_and_keeps_the_state(runs: Runs) -> None:
    with pytest.raises(UserError, match="not finite"):
        runs.start("run", "strategy.server_learning_rate=1e39", "strategy.max_update_norm=0")
    assert result_of(runs.folder / "run")["status"] == "failed"
    assert (runs.folder / "run" / "state" / "round_0000.safetensors").is_file()
