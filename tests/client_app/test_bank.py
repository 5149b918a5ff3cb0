"""One bank's round: nothing leaks from bank to bank, its optimiser's memory is on its disk, errors leave as codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from powers import as_an_ordinary_user
from tiny_runs import overrides, write_lines, write_rows

import client_app.own_rows
import client_app.prepared_rows
from client_app.bank import RoundReply, train_round
from client_app.facts import BankFacts, bank_facts
from client_app.own_rows import train_and_held_out
from client_app.prepared_rows import bank_rows
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import Vector, write_adapter
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.train.loop import mean_loss
from fedfinlora.wire.messages import BankError, TrainRequest, pack_request, unpack_request
from fedfinlora.wire.reasons import SAFE_REASONS
from fedfinlora.wire.vectors import to_array


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), train=40)


@pytest.fixture
def config(rows: Path, tmp_path: Path) -> Config:
    return compose(overrides(rows, tmp_path / "runs", "peft.dropout=0.2", rounds=6))


@pytest.fixture(autouse=True)
def forget_rows() -> Iterator[None]:
    """Each test reads its rows again."""
    yield
    client_app.prepared_rows._rows.clear()
    client_app.own_rows._divided.cache_clear()


def facts(state: Path, index: int = 0, banks: int = 3, name: str = "") -> BankFacts:
    return BankFacts(name or f"bank-{index}", index, banks, "", state)


def own_rows(state: Path, folder: Path, name: str = "alpha") -> BankFacts:
    return BankFacts(name, 0, 0, str(folder), state, state / "ledger")


def request(config: Config, round_number: int = 1, adapter: Vector | None = None, run: str = "run-1") -> TrainRequest:
    session = get_session(config)
    start = initial_adapter(session, config) if adapter is None else adapter
    return TrainRequest(config, run, round_number, session.layout.id, source_fingerprint(), start)


def same(one: RoundReply, other: RoundReply) -> bool:
    """Whether two replies are equal, timings apart."""
    untimed = [
        {key: value for key, value in vars(reply.figures).items() if not key.endswith("_s")} for reply in (one, other)
    ]
    return one.delta.tobytes() == other.delta.tobytes() and untimed[0] == untimed[1]


class TestNothingLeaks:
    @pytest.mark.parametrize("peft", ["qlora", "lora", "dora", "rslora"])
    def test_a_banks_delta_is_the_same_whoever_trained_before_it(
        self, config: Config, tmp_path: Path, peft: str
    ) -> None:
        config = compose([*overrides(Path(config.dataset.root), tmp_path, "peft.dropout=0.2"), f"peft={peft}"])
        asked = request(config)
        alone = train_round(asked, facts(tmp_path / "alone", 1))
        for index in (0, 2, 0):
            train_round(asked, facts(tmp_path / f"before-{index}", index))
        after = train_round(asked, facts(tmp_path / "after", 1))
        assert same(alone, after)
        assert np.abs(alone.delta).max() > 0

    def test_another_run_before_leaves_no_trace(self, config: Config, tmp_path: Path) -> None:
        alone = train_round(request(config), facts(tmp_path / "a"))
        other = replace(
            config, train=replace(config.train, learning_rate=0.1, proximal_mu=1.0, gradient_checkpointing=True)
        )
        train_round(request(other), facts(tmp_path / "b"))
        assert same(alone, train_round(request(config), facts(tmp_path / "c")))

    def test_an_evaluation_before_leaves_no_trace(self, config: Config, tmp_path: Path) -> None:
        alone = train_round(request(config), facts(tmp_path / "a"))
        session = get_session(config)
        mean_loss(session.model, bank_rows(config, facts(tmp_path), session.tokenizer).train, config.train)
        assert same(alone, train_round(request(config), facts(tmp_path / "b")))

    def test_a_failure_before_leaves_no_trace(self, config: Config, tmp_path: Path) -> None:
        """A loss that is not finite ends a training half-way, with gradients in place."""
        asked = request(config)
        alone = train_round(asked, facts(tmp_path / "a"))
        with pytest.raises(BankError):
            train_round(replace(asked, adapter=np.full_like(asked.adapter, 1e30)), facts(tmp_path / "b", 1))
        assert same(alone, train_round(request(config), facts(tmp_path / "c")))

    def test_the_global_random_state_is_neither_used_nor_moved(self, config: Config, tmp_path: Path) -> None:
        import random

        import torch

        alone = train_round(request(config), facts(tmp_path / "a"))
        torch.manual_seed(123)
        random.seed(123)
        before = torch.get_rng_state()
        assert same(alone, train_round(request(config), facts(tmp_path / "b")))
        assert torch.equal(before, torch.get_rng_state())

    def test_the_received_adapter_is_not_written_to(self, config: Config, tmp_path: Path) -> None:
        asked = request(config)
        before = asked.adapter.tobytes()
        train_round(asked, facts(tmp_path))
        assert asked.adapter.tobytes() == before

    def test_different_banks_draw_differently(self, config: Config, tmp_path: Path) -> None:
        config = replace(config, train=replace(config.train, holdout_max_rows=0))
        one, two = (train_round(request(config), facts(tmp_path, 0, 1, name)) for name in ("one", "two"))
        assert one.delta.tobytes() != two.delta.tobytes()


class TestOptimizerState:
    """Adam's moments lie on the bank's disk, one file a round."""

    def rounds(self, config: Config, at: BankFacts, first: int, last: int) -> list[RoundReply]:
        return [train_round(request(config, number), at) for number in range(first, last + 1)]

    def test_a_repeated_round_gives_the_same_delta(self, config: Config, tmp_path: Path) -> None:
        at = facts(tmp_path)
        first = self.rounds(config, at, 1, 3)
        assert same(first[2], train_round(request(config, 3), at))
        assert same(first[2], train_round(request(config, 3), at))

    def test_moments_are_carried_into_the_next_round(self, config: Config, tmp_path: Path) -> None:
        kept = self.rounds(config, facts(tmp_path / "kept"), 1, 2)[1]
        fresh = train_round(request(config, 2), facts(tmp_path / "fresh"))
        assert kept.delta.tobytes() != fresh.delta.tobytes()

    def test_reset_starts_each_round_afresh_and_writes_nothing(self, config: Config, tmp_path: Path) -> None:
        config = replace(config, train=replace(config.train, optimizer_state="reset"))
        after = self.rounds(config, facts(tmp_path / "one"), 1, 2)[1]
        assert same(after, train_round(request(config, 2), facts(tmp_path / "two")))
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_a_round_that_was_missed_is_bridged_by_the_last_state(self, config: Config, tmp_path: Path) -> None:
        at = facts(tmp_path)
        self.rounds(config, at, 1, 1)
        bridged = train_round(request(config, 3), at)
        fresh = train_round(request(config, 3), facts(tmp_path / "fresh"))
        assert bridged.delta.tobytes() != fresh.delta.tobytes()

    def test_old_states_are_removed(self, config: Config, tmp_path: Path) -> None:
        self.rounds(config, facts(tmp_path), 1, 5)
        files = sorted(path.name for path in (tmp_path / "run-1" / "bank-0").iterdir())
        assert files[-1] == "round_0005.safetensors"
        assert len(files) <= 4

    def test_states_reach_back_to_the_older_of_two_checkpoints(self, config: Config, tmp_path: Path) -> None:
        """The server keeps the checkpoints of rounds 3 and 4 while the banks train round 5: it may ask for round 4
        again.
        """
        at = facts(tmp_path)
        first = self.rounds(config, at, 1, 5)
        assert same(first[3], train_round(request(config, 4), at))

    def test_runs_and_banks_have_states_of_their_own(self, config: Config, tmp_path: Path) -> None:
        train_round(request(config, 1, run="run-1"), facts(tmp_path, 0))
        train_round(request(config, 1, run="run-2"), facts(tmp_path, 1))
        assert {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors")} == {
            "run-1/bank-0", "run-2/bank-1",
        }  # fmt: skip

    @pytest.mark.parametrize("damage", [b"", b"not safetensors", b"\xff" * 500])
    def test_a_damaged_state_gives_way_to_an_older_one(self, config: Config, tmp_path: Path, damage: bytes) -> None:
        at = facts(tmp_path)
        self.rounds(config, at, 1, 2)
        (tmp_path / "run-1" / "bank-0" / "round_0002.safetensors").write_bytes(damage)
        damaged = train_round(request(config, 3), at)
        other = facts(tmp_path / "other")
        self.rounds(config, other, 1, 1)
        assert same(damaged, train_round(request(config, 3), other))

    def test_a_state_folder_that_cannot_be_written_is_a_disk_error(self, config: Config, tmp_path: Path) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("in the way")
        with pytest.raises(BankError) as error:
            train_round(request(config), facts(blocked / "states"))
        assert error.value.code == "disk"


class TestFigures:
    def test_what_a_bank_says_of_its_work(self, config: Config, tmp_path: Path) -> None:
        at = facts(tmp_path, banks=2)
        session = get_session(config)
        rows = bank_rows(config, at, session.tokenizer)
        reply = train_round(request(config), at)
        delta, figures = reply.delta, reply.figures
        assert delta.shape == (session.layout.size,)
        assert delta.dtype == np.float32
        assert reply.layout_id == session.layout.id
        assert reply.ledger is None, "a part of a simulated data set books no round without privacy"
        assert (figures.steps, figures.rows) == (2, 8)
        assert figures.bank_rows == len(rows.train) == 20 - figures.holdout_rows
        assert figures.answer_tokens < figures.tokens

    def test_the_held_out_loss_is_that_of_the_adapter_as_received(self, config: Config, tmp_path: Path) -> None:
        asked = request(config)
        session = get_session(config)
        given = asked.adapter + np.float32(0.05)
        figures = train_round(replace(asked, adapter=given), facts(tmp_path)).figures
        write_adapter(session.model, given)
        rows = bank_rows(config, facts(tmp_path), session.tokenizer)
        assert figures.holdout_rows == len(rows.holdout) == 1
        assert figures.holdout_loss == mean_loss(session.model, rows.holdout, config.train)

    def test_the_held_out_loss_is_measured_every_so_many_rounds(self, config: Config, tmp_path: Path) -> None:
        config = replace(config, train=replace(config.train, holdout_every=2))
        measured = [
            np.isfinite(train_round(request(config, number), facts(tmp_path)).figures.holdout_loss)
            for number in (1, 2, 3)
        ]
        assert measured == [True, False, True]

    def test_measuring_changes_no_delta(self, config: Config, tmp_path: Path) -> None:
        seldom = replace(config, train=replace(config.train, holdout_every=5))
        often = [train_round(request(config, number), facts(tmp_path / "often")) for number in (1, 2)]
        rarely = [train_round(request(seldom, number), facts(tmp_path / "rarely")) for number in (1, 2)]
        assert often[1].delta.tobytes() == rarely[1].delta.tobytes()

    def test_held_out_rows_are_never_trained_on(self, config: Config, tmp_path: Path) -> None:
        session = get_session(config)
        for index in range(3):
            rows = bank_rows(config, facts(tmp_path, index), session.tokenizer)
            assert {row.prompt_ids for row in rows.holdout}.isdisjoint(row.prompt_ids for row in rows.train)

    def test_a_bank_of_one_row_trains(self, config: Config, tmp_path: Path) -> None:
        folder = write_rows(tmp_path / "one", train=1)
        figures = train_round(request(config), own_rows(tmp_path / "states", folder)).figures
        assert (figures.rows, figures.steps, figures.holdout_rows, figures.bank_rows) == (2, 2, 0, 1)

    def test_max_rows_is_a_seeded_sample(self, config: Config) -> None:
        from data.rows import Row

        rows = [Row(f"fpb/train/{index:06d}", "fpb", f"{index}", "up") for index in range(30)]
        limited = replace(config, train=replace(config.train, max_rows=10, holdout_max_rows=0))
        one, two = (train_and_held_out(rows, limited, "bank-0")[0] for _ in range(2))
        assert one == two == sorted(one, key=lambda row: row.id)
        assert len(one) == 10
        assert one != train_and_held_out(rows, limited, "bank-1")[0]


class TestOwnFacts:
    """What the bank's node config says wins over what the server asks for."""

    def test_flowers_simulation(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("FEDFINLORA_BANK_STATE", str(tmp_path))
        assert bank_facts({"partition-id": 3, "num-partitions": 4}) == BankFacts("bank-3", 3, 4, "", tmp_path)

    def test_a_deployed_bank(self, tmp_path: Path) -> None:
        found = bank_facts({"bank": "Alpha.1", "data-path": str(tmp_path), "state-dir": "~/x", "num-partitions": 9})
        assert found == BankFacts("Alpha.1", 0, 0, str(tmp_path), Path.home() / "x")

    @pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "<b>", "x" * 65, "ä", "a\n"])
    def test_names_that_could_be_paths_or_markup_are_refused(self, name: str) -> None:
        with pytest.raises(BankError) as error:
            bank_facts({"bank": name})
        assert error.value.code == "config"

    def test_its_own_folder_wins_over_the_servers(self, config: Config, tmp_path: Path) -> None:
        own = write_rows(tmp_path / "own", train=5, word="own")
        at = own_rows(tmp_path, own)
        session = get_session(config)
        texts = [session.tokenizer.decode(row.prompt_ids) for row in bank_rows(config, at, session.tokenizer).train]
        assert len(texts) == 5
        assert all(" own " in text for text in texts)

    def test_its_own_folder_may_hold_plain_jsonl_files(self, config: Config, tmp_path: Path) -> None:
        write_lines(
            tmp_path / "own" / "desk.jsonl",
            [json.dumps({"context": f"Say {n}. Answer:", "target": "up"}) for n in range(3)],
        )
        session = get_session(config)
        assert len(bank_rows(config, own_rows(tmp_path, tmp_path / "own"), session.tokenizer).train) == 3


class TestRefusals:
    def code(self, asked: TrainRequest, at: BankFacts) -> str:
        with pytest.raises(BankError) as error:
            train_round(asked, at)
        return error.value.code

    def test_other_code_at_the_server(self, config: Config, tmp_path: Path) -> None:
        assert self.code(replace(request(config), source_sha256="0" * 64), facts(tmp_path)) == "source"

    def test_another_layout(self, config: Config, tmp_path: Path) -> None:
        asked = request(config)
        assert self.code(replace(asked, layout_id="0" * 16), facts(tmp_path)) == "layout"
        assert self.code(replace(asked, adapter=asked.adapter[:-1]), facts(tmp_path)) == "layout"

    def test_a_model_that_is_not_there(self, config: Config, tmp_path: Path) -> None:
        asked = request(config)
        missing = replace(config, model=replace(config.model, path=str(tmp_path / "nothing")))
        assert self.code(replace(asked, config=missing), facts(tmp_path)) == "model"

    @pytest.mark.parametrize(
        "content", [None, "", "\n\n", "no json\n", '{"context": "a"}\n', '{"context": "a", "target": ""}\n']
    )
    def test_no_usable_rows(self, config: Config, tmp_path: Path, content: str | None) -> None:
        (tmp_path / "own").mkdir()
        if content is not None:
            (tmp_path / "own" / "fpb_train.jsonl").write_text(content)
        assert self.code(request(config), own_rows(tmp_path, tmp_path / "own")) == "data"

    def test_more_banks_than_rows(self, config: Config, tmp_path: Path) -> None:
        assert self.code(request(config), facts(tmp_path, 0, 41)) == "data"

    def test_every_row_longer_than_the_context_window(self, config: Config, tmp_path: Path) -> None:
        short = replace(config, model=replace(config.model, context_tokens=10))
        assert self.code(request(short), facts(tmp_path)) == "data"

    def test_a_row_longer_than_the_context_window(self, config: Config, tmp_path: Path) -> None:
        lines = [
            json.dumps({"context": text, "target": "up"})
            for text in ("Short 1. Answer:", "x" * 200 + " Answer:", "Short 2. Answer:")
        ]
        write_lines(tmp_path / "own" / "fpb_train.jsonl", lines)
        limited = replace(
            config, model=replace(config.model, context_tokens=100), train=replace(config.train, holdout_max_rows=0)
        )
        at = own_rows(tmp_path, tmp_path / "own")
        session = get_session(limited)
        rows = bank_rows(limited, at, session.tokenizer)
        assert (len(rows.train), rows.skipped) == (2, 1)
        stop = replace(limited, dataset=replace(config.dataset, on_bad_row="stop"))
        assert len(bank_rows(stop, at, session.tokenizer).train) == 2, (
            "no server asks a bank whether one of its rows is too long"
        )

    def test_a_loss_that_is_not_finite(self, config: Config, tmp_path: Path) -> None:
        asked = request(config)
        assert self.code(replace(asked, adapter=np.full_like(asked.adapter, 1e30)), facts(tmp_path)) == "diverged"

    def test_a_refusal_writes_no_state(self, config: Config, tmp_path: Path) -> None:
        asked = request(config)
        self.code(replace(asked, adapter=np.full_like(asked.adapter, 1e30)), facts(tmp_path))
        assert not list(tmp_path.rglob("*.safetensors"))


class TestRequests:
    """What a bank takes from the network, and what not."""

    def test_round_trip(self, config: Config) -> None:
        asked = request(config, 4)
        found = unpack_request(pack_request(asked))
        assert found.adapter.tobytes() == asked.adapter.tobytes()
        assert replace(found, adapter=asked.adapter) == asked

    @pytest.mark.parametrize(
        ("key", "value", "code"),
        [
            ("config", "{", "config"),
            ("config", "[]", "config"),
            ("config", '{"model": {"nmae": "x"}}', "config"),
            ("config", '{"seed": -1}', "config"),
            ("run", "../../etc", "config"),
            ("run", "/etc", "config"),
            ("run", "..", "config"),
            ("run", "", "config"),
            ("round", "two", "config"),
            ("round", 0, "config"),
            ("round", 99, "config"),
        ],
    )
    def test_what_is_not_a_request_is_refused(self, config: Config, key: str, value: Any, code: str) -> None:
        content = pack_request(request(config))
        content.config_records["request"] = ConfigRecord(dict(content.config_records["request"]) | {key: value})
        with pytest.raises(BankError) as error:
            unpack_request(content)
        assert error.value.code == code

    @pytest.mark.parametrize("key", ["config", "run", "round", "layout-id", "source-sha256"])
    def test_a_missing_value_is_refused(self, config: Config, key: str) -> None:
        content = pack_request(request(config))
        values = dict(content.config_records["request"])
        del values[key]
        content.config_records["request"] = ConfigRecord(values)
        with pytest.raises(BankError):
            unpack_request(content)

    @pytest.mark.parametrize(
        ("make", "code"),
        [
            (lambda v: v.astype(np.float64), "layout"),
            (lambda v: v.reshape(2, -1), "layout"),
            (lambda v: np.where(np.arange(len(v)) == 3, np.nan, v).astype(np.float32), "adapter"),
            (lambda v: np.full(len(v), np.inf, np.float32), "adapter"),
        ],
        ids=["float64", "matrix", "NaN", "Inf"],
    )
    def test_an_unusable_adapter_is_refused(self, config: Config, make: Any, code: str) -> None:
        asked = request(config)
        content = pack_request(asked)
        content.array_records["adapter"] = ArrayRecord({"vector": to_array(make(asked.adapter))})
        with pytest.raises(BankError) as error:
            unpack_request(content)
        assert error.value.code == code


class TestApp:
    """Through the ClientApp: in every case a reply with a code."""

    def ask(self, node_config: dict[str, Any], message_type: str, content: RecordDict) -> Message:
        grid = FakeGrid({7: node_config})
        [message_id] = grid.push_messages([Message(content, 7, message_type)])
        [reply] = grid.pull_messages([message_id])
        assert not reply.has_error(), reply.error
        return reply

    def test_hello_says_name_and_code_and_nothing_else(self) -> None:
        reply = self.ask({"partition-id": 2, "num-partitions": 3}, "query", RecordDict())
        assert dict(reply.content["reply"]) == {"status": "ok", "bank": "bank-2", "source-sha256": source_fingerprint()}
        assert len(reply.content) == 1

    @pytest.mark.parametrize("message_type", ["query", "train"])
    @pytest.mark.parametrize(
        "node_config",
        [
            {"bank": "a/b"},
            {"partition-id": "secret-7731"},
            {"num-partitions": "secret-7731"},
            {"bank": "", "data-path": "/secret-7731"},
        ],
        ids=str,
    )
    def test_a_wrong_node_config_is_a_code(self, node_config: dict[str, Any], message_type: str) -> None:
        head = self.ask(node_config, message_type, RecordDict()).content["reply"]
        assert head["status"] == "error"
        assert str(head["code"]) in SAFE_REASONS
        assert "7731" not in str(dict(head))

    def test_an_empty_train_message_is_a_config_error(self) -> None:
        head = self.ask({}, "train", RecordDict()).content["reply"]
        assert (head["status"], head["code"]) == ("error", "config")

    def test_the_whole_way(self, config: Config, tmp_path: Path) -> None:
        reply = self.ask({"state-dir": str(tmp_path)}, "train", pack_request(request(config)))
        assert reply.content["reply"]["status"] == "ok"
        direct = train_round(request(config), facts(tmp_path / "other", 0, 1))
        assert reply.content["delta"]["vector"].data == direct.delta.tobytes()


@as_an_ordinary_user()
def test_a_file_that_may_not_be_read_is_a_data_error(config: Config, tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "own")
    (folder / "train" / "fpb_train.jsonl").chmod(0)
    with pytest.raises(BankError):
        train_round(request(config), own_rows(tmp_path, folder))
