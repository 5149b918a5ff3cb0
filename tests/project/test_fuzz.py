"""The fuzz ring: for all that is in a file, a reply or a server's answer, it is read, or refused in one line. Longer:
`make fuzz`.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from fuzzing import TEXTS, changed, damaged, dumped, for_a_while
from hypothesis import strategies as st
from report_runs import make_run
from round_runs import Runs
from tiny_runs import SCORED, write_rows

from data.check import check_folder
from data.sources.files import SourceFile, read_file
from eval.remote.openai_faults import read_fault
from eval.remote.openai_form import MalformedReply, read_answer
from fedfinlora.cli import main
from fedfinlora.compose import compose
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Layout
from fedfinlora.model.adapter_folder import peft_settings, read_tensors
from fedfinlora.run.folder import read_config
from fedfinlora.wire.messages import (
    BankError,
    Figures,
    RejectedReply,
    TrainRequest,
    pack_reply,
    pack_request,
    unpack_reply,
    unpack_request,
)

pytestmark = pytest.mark.slow
ANSWER = {
    "model": "m",
    "choices": [{"finish_reason": "stop", "text": "up", "message": {"content": "up"}}],
    "usage": {"prompt_tokens": 1},
}


def tried(action: Callable[[], Any], kind: type[Exception]) -> tuple[Any, str]:
    """(what an action gives, ""), or (None, the refusal), which is one line; anything else that it raises goes
    through.
    """
    try:
        return action(), ""
    except kind as error:
        refusal = str(error)
    assert refusal
    assert "\n" not in refusal
    return None, refusal


ROWS: list[Any] = [
    {"context": "Is this up? Answer: ", "target": "positive"},
    {"context": "And this? Answer: ", "target": "negative", "issuer": "Acme"},
    {"messages": [{"role": "user", "content": "Up?"}, {"role": "assistant", "content": "positive"}]},
]
LINES = b"".join(dumped(row) + b"\n" for row in ROWS)
TABLE = b'context,target\r\nIs this up? Answer: ,positive\r\n"And, this?",negative\r\n'
FORMS: dict[str, bytes] = {
    "jsonl": LINES, "json": dumped(ROWS), "csv": TABLE, "tsv": TABLE.replace(b",", b"\t"),
    "jsonl.gz": gzip.compress(LINES), "parquet": b"PAR1PAR1",
}  # fmt: skip


class TestRowsAndFiles:
    def test_rows(self, tmp_path: Path) -> None:
        """Nothing that a file holds raises, and each line of JSON is a row or is named as a bad one."""

        def check(drawn: tuple[str, bytes]) -> None:
            ending, content = drawn
            file = tmp_path / f"fpb_train.{ending}"
            file.write_bytes(content)
            found = read_file(SourceFile(file, file.name, "train", task="fpb"))
            assert all(row.prompt.strip() and row.target.strip() for row in found.rows)
            assert all(bad.reason and "\n" not in bad.reason for bad in found.bad_rows)
            assert content.strip() == b"" or found.rows or found.bad_rows, "nothing is lost without a word"
            assert not (lines := [bad.line for bad in found.bad_rows]) or min(lines) >= 0
            if ending == "jsonl" and all(bad.line for bad in found.bad_rows):
                assert len(found.rows) + len(found.bad_rows) <= content.count(b"\n") + content.count(b"\r") + 1

        lines = st.lists(st.one_of(changed(ROWS[0]), changed(ROWS[2])).map(dumped), min_size=1, max_size=4)
        drawn = st.one_of(
            st.tuples(st.just("jsonl"), lines.map(b"\n".join)),
            st.tuples(st.just("json"), changed(ROWS).map(dumped)),
            *(st.tuples(st.just(ending), damaged(content)) for ending, content in FORMS.items()),
        )
        assert for_a_while(drawn, check) > 50

    def test_files(self, tmp_path: Path) -> None:
        """Every file of a folder, of any name, is read or named."""
        names = st.one_of(
            st.binary(min_size=1, max_size=12).map(lambda name: name.replace(b"/", b"-").replace(b"\0", b"0")),
            st.sampled_from(
                [
                    b"fpb_train.jsonl",
                    b"FPB_train.JSONL",
                    b"fpb_train.json",
                    b"fpb_test.csv",
                    b"train",
                    b".hidden",
                    b"-x",
                    b"a\nb.jsonl",
                ]
            ),
            st.tuples(st.sampled_from([b"fpb", b"headline", b"x"]), st.sampled_from(sorted(FORMS))).map(
                lambda pair: pair[0] + b"_train." + pair[1].encode()
            ),
        ).filter(lambda name: name not in (b".", b".."))
        kinds = st.sampled_from(["rows", "rows", "empty", "folder", "link", "pipe"])

        def check(drawn: list[tuple[bytes, str]]) -> None:
            root = tmp_path / "bank"
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            for name, kind in drawn:
                place = os.path.join(os.fsencode(root), name)
                if kind == "folder":
                    os.mkdir(place)
                elif kind == "link":
                    os.symlink(place, place)
                elif kind == "pipe":
                    os.mkfifo(place)
                else:
                    Path(os.fsdecode(place)).write_bytes(LINES if kind == "rows" else b"")
            report, _ = tried(lambda: check_folder(root, "jsonl"), UserError)
            if report is None:
                return
            doubles = {name for refused in report.refused for name in refused.names}
            listed = [file.name for file in report.files] + [entry.name for entry in report.not_read] + sorted(doubles)
            files = [name for name, kind in drawn if kind != "folder"]
            assert len(set(listed)) >= len(files), (drawn, listed)

        drawn = st.lists(st.tuples(names, kinds), max_size=4, unique_by=lambda pair: pair[0])
        assert for_a_while(drawn, check) > 50


class TestServersAnswers:
    def test_an_answer(self) -> None:
        def check(drawn: tuple[str, bytes]) -> None:
            api, content = drawn
            answer, _ = tried(lambda: read_answer(api, content, "secret-key"), MalformedReply)
            assert answer is None or answer.text.encode() is not None

        bodies = st.one_of(changed(ANSWER).map(dumped), damaged(dumped(ANSWER)))
        assert for_a_while(st.tuples(st.sampled_from(["completions", "chat"]), bodies), check) > 100

    def test_a_refusal(self) -> None:
        fault = {
            "error": {"message": "no", "code": "c", "param": "seed"},
            "detail": [{"loc": ["body", "seed"], "msg": "m"}],
        }

        def check(content: bytes) -> None:
            read_fault(content, "a prompt of some length", "secret-key").message.encode()

        assert for_a_while(st.one_of(changed(fault).map(dumped), damaged(dumped(fault))), check) > 100


class TestAdapterFolders:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        runs = Runs(write_rows(tmp_path_factory.mktemp("fuzz") / "rows"), tmp_path_factory.mktemp("fuzz-adapter"))
        return runs.start("run", rounds=1) / "adapters" / "final"

    def test_settings(self, folder: Path, tmp_path: Path) -> None:
        values = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        config = compose(["model=tiny-random"])
        copy = shutil.copytree(folder, tmp_path / "copy")

        def check(content: bytes) -> None:
            (copy / "adapter_config.json").write_bytes(content)
            found, refusal = tried(lambda: peft_settings(copy, config), UserError)
            assert found.rank > 0 if found else "adapter_config.json" in refusal

        whole = (folder / "adapter_config.json").read_bytes()
        assert for_a_while(st.one_of(changed(values).map(dumped), damaged(whole)), check) > 50

    def test_tensors(self, folder: Path, tmp_path: Path) -> None:
        whole = (folder / "adapter_model.safetensors").read_bytes()
        size = struct.unpack("<Q", whole[:8])[0]
        header = json.loads(whole[8 : 8 + size])
        copy = shutil.copytree(folder, tmp_path / "copy")

        def check(content: bytes) -> None:
            (copy / "adapter_model.safetensors").write_bytes(content)
            found, _ = tried(lambda: read_tensors(copy), UserError)
            assert found is None or found, "an adapter without tensors is refused"

        def with_header(values: Any) -> bytes:
            text = dumped(values)
            return struct.pack("<Q", len(text)) + text + whole[8 + size :]

        assert for_a_while(st.one_of(changed(header).map(with_header), damaged(whole)), check) > 50


class TestRunFolders:
    FILES = ("result.json", "rounds.jsonl", "manifest.json", "config.yaml")

    def test_the_report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = make_run(tmp_path / "run")
        whole = {name: (run / name).read_bytes() for name in self.FILES}

        @st.composite
        def files(draw: st.DrawFn) -> tuple[str, bytes]:
            name = draw(st.sampled_from(self.FILES))
            if name == "config.yaml" or draw(st.booleans()):
                return name, draw(damaged(whole[name]))
            if name == "rounds.jsonl":
                lines = [json.loads(line) for line in whole[name].splitlines()]
                place = draw(st.integers(0, len(lines) - 1))
                lines[place] = draw(changed(lines[place]))
                return name, b"".join(dumped(line) + b"\n" for line in lines)
            return name, dumped(draw(changed(json.loads(whole[name]))))

        def check(drawn: tuple[str, bytes]) -> None:
            name, content = drawn
            (run / name).write_bytes(content)
            status = main(["report", str(run), "--output", str(tmp_path / "report.html")])
            said = capsys.readouterr().err
            (run / name).write_bytes(whole[name])
            assert status == 0 or name in said, said
            assert "Traceback" not in said

        assert for_a_while(files(), check) > 20

    def test_the_configuration(self, tmp_path: Path) -> None:
        runs = Runs(write_rows(tmp_path / "rows"), tmp_path)
        run = runs.start("run", *SCORED, rounds=1)
        whole = (run / "config.yaml").read_bytes()

        def check(content: bytes) -> None:
            (run / "config.yaml").write_bytes(content)
            found, refusal = tried(lambda: read_config(run), UserError)
            assert found or "config.yaml" in refusal

        assert for_a_while(damaged(whole), check) > 50


class TestTheWire:
    @pytest.fixture(scope="class")
    def layout(self) -> Layout:
        from conftest import tiny_config

        from fedfinlora.model.loading import get_session

        return get_session(tiny_config()).layout

    def test_a_reply(self, layout: Layout) -> None:
        figures = Figures.withheld(1, 0.0, 1.0, 1.0, 0.1)
        good = pack_reply("north", layout.id, np.zeros(layout.size, np.float32), figures)

        def check(content: RecordDict) -> None:
            reply, refusal = tried(lambda: unpack_reply(content, layout, 0.0), RejectedReply)
            assert len(refusal) < 500
            assert reply is None or (np.isfinite(reply.delta).all() and reply.delta.shape == (layout.size,))

        assert for_a_while(self._records(good), check) > 100

    def test_a_request(self, layout: Layout) -> None:
        config = compose(["model=tiny-random"])
        good = pack_request(TrainRequest(config, "run", 1, layout.id, "0" * 64, np.zeros(layout.size, np.float32)))

        def check(content: RecordDict) -> None:
            request, _ = tried(lambda: unpack_request(content), BankError)
            assert request is None or 1 <= request.round <= request.config.num_server_rounds

        assert for_a_while(self._records(good), check) > 50

    @staticmethod
    def _records(good: RecordDict) -> st.SearchStrategy[RecordDict]:
        """A good message with one of its values replaced, removed or added."""
        scalars = st.one_of(TEXTS, st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), st.binary(max_size=4))
        arrays = st.builds(
            lambda dtype, shape, kind, data: Array(dtype, tuple(shape), kind, data),
            st.sampled_from(["float32", "float64", "int8", "object", "", "<f4"]),
            st.lists(st.integers(-1, 2**40), max_size=3),
            st.sampled_from(["numpy.ndarray", "fedfinlora.float32", ""]),
            st.binary(max_size=32),
        )

        @st.composite
        def record(draw: st.DrawFn) -> RecordDict:
            content = RecordDict({name: type(value)(dict(value)) for name, value in good.items()})  # type: ignore[arg-type]
            name = draw(st.sampled_from(sorted(content)))
            held: Any = content[name]
            key = draw(
                st.one_of(
                    st.sampled_from(sorted(held)), TEXTS.map(lambda text: text.encode("utf-8", "replace").decode())
                )
            )
            way = draw(st.sampled_from(["value", "value", "value", "key", "record", "more"]))
            if way == "record":
                del content[name]
            elif way == "more":
                content[draw(st.sampled_from(["x", "reply", "request", "figures"]))] = ConfigRecord({"y": 1})
            elif way == "key":
                held.pop(key, None)
            elif isinstance(held, ArrayRecord):
                held[key] = draw(arrays)
            elif isinstance(held, MetricRecord):
                held[key] = draw(st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats()))
            else:
                value = draw(scalars)
                held[key] = value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            return content

        return record()
