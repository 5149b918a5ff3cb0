"""Kept answers: nothing is lost by a kill, nothing mixed between settings, and what cannot be written is reported in
one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSession, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from powers import as_an_ordinary_user

from data.catalog import BENCHMARKS
from data.rows import Row
from eval.answers import AnswerFile, ModelAnswer, prompt_id, read_answers, settings_id
from eval.models import LocalModel, weights_fingerprint
from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.model.loading import Session, get_session, initial_adapter
from fedfinlora.system.locks import wait_for

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"model": "a", "budget": 10}
AWKWARD = [
    "",
    "positive\nOutput",
    "é ü ß 中文 🙂",
    "\ud83d half",
    "\u2028\x85\x0b\r\n",
    '{"prompt": "x"}\\',
    "\x00",
    "nan",
]


def answer(text: str) -> ModelAnswer:
    return ModelAnswer(text, "end")


def written(path: Path, texts: list[str], settings: dict[str, Any] = SETTINGS) -> dict[str, ModelAnswer]:
    """A file with an answer a text; returns what it holds."""
    with AnswerFile(path, settings) as file:
        for number, text in enumerate(texts):
            file.add(prompt_id(str(number)), answer(text))
        return dict(file.known)


def opened(path: Path, settings: dict[str, Any] = SETTINGS) -> dict[str, ModelAnswer]:
    with AnswerFile(path, settings) as file:
        return dict(file.known)


# --- the file -------------------------------------------------------------------------------------


def test_a_file_that_is_reopened_holds_its_answers(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    kept = written(path, AWKWARD)
    assert [kept[prompt_id(str(number))].text for number in range(len(AWKWARD))] == AWKWARD
    assert opened(path) == read_answers(path) == kept
    assert path.read_bytes().count(b"\n") == len(AWKWARD) + 1


def test_no_file_holds_no_answers_and_looking_makes_none(tmp_path: Path) -> None:
    assert read_answers(tmp_path / "none") == {}
    assert list(tmp_path.iterdir()) == []


def test_an_answer_is_written_once_and_the_first_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    with AnswerFile(path, SETTINGS) as file:
        file.add("p", answer("first"))
        file.add("p", answer("second"))
    with AnswerFile(path, SETTINGS) as file:
        file.add("p", answer("third"))
    assert opened(path) == {"p": answer("first")}
    assert path.read_bytes().count(b"\n") == 2


def test_answers_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    with AnswerFile(path, SETTINGS) as file:
        file.add("p", answer("up"))
        assert read_answers(path) == {"p": answer("up")}


def test_other_settings_start_over(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    written(path, ["a", "b"])
    assert opened(path, {**SETTINGS, "budget": 11}) == {}
    assert read_answers(path) == {}
    assert opened(path) == {}, "and nothing of the former settings comes back"


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"\xff\xfe", b"not JSON\n", b"[]\n", b"null\n", b'{"prompt": "p", "answer": {}}\n']
)
def test_a_file_of_something_else_is_started_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "answers"
    path.write_bytes(content)
    assert opened(path) == {}
    kept = written(path, ["a"])
    assert opened(path) == kept


@pytest.mark.parametrize(
    "line", [b"[1]", b"{}", b'{"prompt": ["p"], "answer": {}}', b'{"prompt": "p", "answer": "x"}', b"\xff", b"{"]
)
def test_lines_that_are_no_answers_are_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "answers"
    kept = written(path, ["a"])
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert opened(path) == read_answers(path) == kept


@given(st.lists(st.text(st.characters(categories=None, exclude_categories=[]), max_size=8), max_size=4), st.data())
@settings(max_examples=40)
def test_any_text_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("texts") / "answers"
    assert opened(path) == {}
    kept = written(path, texts)
    assert opened(path) == kept
    assert [found.text for found in kept.values()] == texts


def test_a_file_cut_anywhere_continues_from_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    kept = written(path, AWKWARD[:5])
    content = path.read_bytes()
    lines = content.split(b"\n")
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = content[: cut + 1].count(b"\n")  # a line without its line end is whole too
        expected = dict(list(kept.items())[: max(0, whole - 1)])
        assert read_answers(path) == expected, cut
        with AnswerFile(path, SETTINGS) as file:
            assert file.known == expected, cut
            file.add("another", answer("é"))
        assert opened(path) == {**expected, "another": answer("é")}, cut
    assert len(lines) == 7


# --- two writers ----------------------------------------------------------------------------------


def test_two_writers_of_one_file_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    with AnswerFile(path, SETTINGS) as one, AnswerFile(path, SETTINGS) as other:
        for number in range(20):
            one.add(f"one {number}", answer("a" * number))
            other.add(f"other {number}", answer("b" * number))
            one.add(f"both {number}", answer("same"))
            other.add(f"both {number}", answer("same"))
    assert len(opened(path)) == 60


def test_who_opens_a_file_waits_until_another_has_begun_it(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    kept = written(tmp_path / "model", ["a"])
    known: list[dict[str, ModelAnswer]] = []
    with wait_for(tmp_path / "answers.lock", "The file"), open(path, "ab", buffering=0) as first:
        second = threading.Thread(target=lambda: known.append(opened(path)))
        second.start()
        second.join(0.1)
        assert second.is_alive()
        first.write((tmp_path / "model").read_bytes())
    second.join(10)
    assert known == [kept]
    assert not (tmp_path / "answers.lock").exists(), "nothing is left in a run's folder"


def test_processes_that_begin_a_file_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path, go = tmp_path / "answers", tmp_path / "go"
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom eval.answers import AnswerFile, ModelAnswer\n"
        "path, go, name = map(Path, sys.argv[1:])\nprint('ready', flush=True)\n"
        "while not go.exists():\n    pass\n"
        "with AnswerFile(path, {'model': 'a', 'budget': 10}) as file:\n"
        "    for number in range(300):\n        file.add(f'{name} {number}', ModelAnswer('x' * number))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(go), name], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for name in "abc"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go.touch()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    kept = opened(path)
    assert len(kept) == 900
    assert all(found == ModelAnswer("x" * int(prompt.split()[1])) for prompt, found in kept.items())


# --- what cannot be written -----------------------------------------------------------------------


def test_a_full_disk_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(UserError, match=r"Cannot write /dev/full: No space left.*evaluation\.answers_dir=FOLDER"):
        AnswerFile(Path("/dev/full"), SETTINGS)


def test_a_disk_that_fills_up_later_is_one_line_and_keeps_what_came(tmp_path: Path) -> None:
    path = tmp_path / "answers"

    class Short:
        """Writes half of what it is given, as a disk does whose last block is reached."""

        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def write(self, content: bytes) -> int:
            return int(self.stream.write(content[: len(content) // 2]))

        def close(self) -> None:
            self.stream.close()

    with AnswerFile(path, SETTINGS) as file:
        file.add("a", answer("whole"))
        file._stream = Short(file._stream)  # type: ignore[assignment]
        with pytest.raises(UserError, match=r"Cannot write .*No space left"):
            file.add("b", answer("half"))
    assert opened(path) == {"a": answer("whole")}


@pytest.mark.parametrize("obstacle", ["a file for a folder", "a folder for a file", "a closed folder"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / "folder" / "answers"
    if obstacle == "a file for a folder":
        path.parent.write_text("in the way")
    elif obstacle == "a folder for a file":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(mode=0o500)
    with as_an_ordinary_user(), pytest.raises(UserError, match=r"Cannot write .*answers: .*output_dir=FOLDER"):
        AnswerFile(path, SETTINGS)


# --- what tells answers apart ---------------------------------------------------------------------


def test_the_id_of_settings_depends_on_every_value_but_not_on_order() -> None:
    values = {"model": "a", "budget": 10, "ends": [1, 2], "stop": "exact", "adapter": "none"}
    assert settings_id(values) == settings_id(dict(reversed(values.items())))
    others = [
        {**values, "model": "b"}, {**values, "budget": 11}, {**values, "budget": "10"}, {**values, "ends": [2, 1]},
        {**values, "stop": "verdict"}, {**values, "adapter": "x"}, {**values, "more": None}, {},
        dict(list(values.items())[:4]),
    ]  # fmt: skip
    assert len({settings_id(other) for other in [values, *others]}) == len(others) + 1


def test_the_id_of_settings_changes_with_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings_id(SETTINGS)
    monkeypatch.setattr("eval.answers.FORMAT", 0)
    assert settings_id(SETTINGS) != before


def test_the_id_of_a_prompt_tells_texts_and_tokens_apart() -> None:
    prompts: list[Any] = ["", "1,2", "1", (1,), (12,), (1, 2), (2, 1), "a", "A"]
    assert len({prompt_id(prompt) for prompt in prompts}) == len(prompts) - 2, (
        "of those, 1 and 1,2 are texts and tokens at once"
    )
    assert prompt_id("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


CHANGES: dict[str, Callable[[], tuple[str, Any]]] = {
    "another benchmark's budget": lambda: ("xbrl_term", tiny_config()),
    "another label set": lambda: ("headline", tiny_config()),
    "another parser": lambda: ("nwgi", tiny_config()),
    "another stop": lambda: ("fpb", _with(stop="verdict")),
}


def _with(**values: Any) -> Any:
    config = tiny_config()
    return replace(config, evaluation=replace(config.evaluation, **values))


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_decides_an_answer_is_in_the_settings(tiny: Session, change: str) -> None:
    rows = [Row("a", "x", "up? ", "positive"), Row("b", "x", "down? ", "negative")]
    model = LocalModel.as_it_is(tiny, tiny_config())
    before = settings_id(model.settings(BENCHMARKS["fpb"], rows, labels=False))
    key, config = CHANGES[change]()
    assert settings_id(replace(model, config=config).settings(BENCHMARKS[key], rows, labels=False)) != before


def test_targets_count_where_a_row_may_stop_early(tiny: Session) -> None:
    """FinLoRA's label set is that of the evaluated rows, and it decides when nothing can change any more."""
    model = LocalModel.as_it_is(tiny, tiny_config())
    few, more = [Row("a", "x", "", "positive")], [Row("a", "x", "", "positive"), Row("b", "x", "", "neutral")]
    ids = {
        key: [
            settings_id(model.settings(BENCHMARKS[key], rows, labels=False)) for rows in (few, more, [*more, more[0]])
        ]
        for key in ("fpb", "xbrl_term")
    }
    assert ids["fpb"][0] != ids["fpb"][1] == ids["fpb"][2]
    assert len(set(ids["xbrl_term"])) == 1


def test_texts_and_labels_are_kept_apart(tiny: Session) -> None:
    model = LocalModel.as_it_is(tiny, tiny_config())
    assert model.settings(BENCHMARKS["fpb"], [], labels=True) != model.settings(BENCHMARKS["fpb"], [], labels=False)
    assert model.settings(BENCHMARKS["fpb"], [], labels=True) != model.settings(BENCHMARKS["ner"], [], labels=True)


def test_memory_and_pace_are_not_in_the_settings(tiny: Session) -> None:
    model = LocalModel.as_it_is(tiny, tiny_config())
    other = replace(model, config=_with(cache_gib=0.1, batch_tokens=7, reuse=False, answers_dir="elsewhere", limit=3))
    for labels in (True, False):
        assert model.settings(BENCHMARKS["fpb"], [], labels) == other.settings(BENCHMARKS["fpb"], [], labels)


# --- what tells models apart ----------------------------------------------------------------------


def peft_config(**values: Any) -> Any:
    return replace(tiny_config(), peft=PeftConfig(dropout=0.0, **values))


@pytest.mark.parametrize(
    "values", [{"rank": 4}, {"rank": 2, "alpha": 64}, {"method": "rslora", "target_modules": ("o_proj",)}]
)
def test_an_adapter_of_zeros_is_no_adapter_for_any_seed(values: dict[str, Any]) -> None:
    identities = []
    for seed in (0, 1):
        config = replace(peft_config(**values), seed=seed)
        session = get_session(config)
        identities.append(LocalModel(session, config, initial_adapter(session, config)).identity)
    assert identities[0] == identities[1]
    assert identities[0]["adapter"] == "none"
    assert "rank" not in identities[0]


def test_adapters_that_compute_otherwise_differ(session_of: MakeSession) -> None:
    session = session_of()
    one = LocalModel.as_it_is(session, tiny_config())
    changed = one.adapter.copy()
    changed[-1] = np.nextafter(changed[-1], np.float32(1))
    stronger = replace(tiny_config(), peft=replace(tiny_config().peft, alpha=16))
    models = [
        one,
        LocalModel(session, tiny_config(), changed),
        LocalModel(session, stronger, one.adapter),
        LocalModel(session, tiny_config(), np.zeros_like(one.adapter)),
    ]
    assert len({json.dumps(model.identity, sort_keys=True) for model in models}) == len(models)
    again = LocalModel(session, tiny_config(), one.adapter.copy())
    assert again.identity == one.identity


def test_dora_with_zero_b_is_distinguished_by_its_magnitudes(session_of: MakeSession) -> None:
    """DoRA computes with the norms of the base's weights, and not to the last bit what the base computes."""
    session = session_of("none", "dora")
    config = tiny_config("none", "dora")
    assert LocalModel(session, config, initial_adapter(session, config)).identity["adapter"] != "none"


def test_quantized_bases_differ(session_of: MakeSession) -> None:
    found = {
        LocalModel.as_it_is(session_of(name), tiny_config(name)).identity["quantization"]
        for name in ("none", "int8", "nf4")
    }
    assert found == {"none", "int8", "nf4"}


def test_the_fingerprint_of_a_folder_changes_when_a_file_changes(tiny: Session, tmp_path: Path) -> None:
    config = tiny_config()
    config = replace(config, model=replace(config.model, path=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    found = [weights_fingerprint(tiny, config)]
    (tmp_path / "README.md").write_text("about it")
    assert weights_fingerprint(tiny, config) == found[0]
    stamp = (tmp_path / "model.safetensors").stat()
    (tmp_path / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(tmp_path / "model.safetensors", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    found.append(weights_fingerprint(tiny, config))
    (tmp_path / "config.json").write_text("{ }")
    found.append(weights_fingerprint(tiny, config))
    (tmp_path / "more.safetensors").write_bytes(b"")
    found.append(weights_fingerprint(tiny, config))
    assert len(set(found)) == 4


def test_the_fingerprint_of_a_hub_model_is_its_commit(tiny: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(tiny_config(), model=replace(tiny_config().model, path="some/model", revision="main"))
    assert weights_fingerprint(tiny, config) == "main"
    monkeypatch.setattr(tiny.model.config, "_commit_hash", "abc", raising=False)
    assert weights_fingerprint(tiny, config) == "abc"
