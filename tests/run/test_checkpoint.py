"""What resume needs: a run that was killed at any moment resumes from the last round that was written whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.files import append_line, read_json, read_lines, write_bytes, write_json
from fedfinlora.run.checkpoint import (
    KEPT,
    Checkpoint,
    adapter_checksum,
    latest_round,
    load_checkpoint,
    restore_rounds,
    save_checkpoint,
)
from fedfinlora.run.folder import COMMAND_LOCK, config_fingerprint, new_run_folder, read_config, write_config
from fedfinlora.run.opening import open_run


def checkpoint(number: int, size: int = 6) -> Checkpoint:
    draw = np.random.default_rng(number)
    arrays = {"adapter": draw.normal(size=size).astype(np.float32), "velocity": draw.normal(size=size)}
    line = {"round": number, "status": "ok", "train_loss": 1.5, "banks": [{"bank": "münchen", "holdout_loss": None}]}
    return Checkpoint(number, "0123456789abcdef", arrays, line if number else {})


def same(found: Checkpoint, expected: Checkpoint) -> bool:
    return (
        (found.round, found.layout_id, dict(found.line)) == (expected.round, expected.layout_id, dict(expected.line))
        and set(found.arrays) == set(expected.arrays)
        and all(
            found.arrays[name].tobytes() == array.tobytes() and found.arrays[name].dtype == array.dtype
            for name, array in expected.arrays.items()
        )
    )


@pytest.mark.parametrize("number", [0, 1, 12])
def test_a_checkpoint_reads_back_to_the_byte(tmp_path: Path, number: int) -> None:
    save_checkpoint(tmp_path, checkpoint(number))
    assert same(load_checkpoint(tmp_path), checkpoint(number))
    assert latest_round(tmp_path) == number


def test_the_newest_checkpoint_is_taken_and_only_the_last_are_kept(tmp_path: Path) -> None:
    for number in range(12):
        save_checkpoint(tmp_path, checkpoint(number))
        assert same(load_checkpoint(tmp_path), checkpoint(number))
    kept = sorted(file.name for file in (tmp_path / "state").iterdir())
    assert kept == [f"round_{number:04d}.safetensors" for number in (10, 11)]
    assert len(kept) == KEPT
    assert latest_round(tmp_path) == 11


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "one bit", "no metadata", "bad line"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    from safetensors.numpy import save

    for number in (1, 2):
        save_checkpoint(tmp_path, checkpoint(number))
    newest = tmp_path / "state" / "round_0002.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "one bit": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
            "noise": b"\xff" * len(content),
            "no metadata": save({"adapter": np.zeros(3, np.float32)}),
            "bad line": save({"adapter": np.zeros(3, np.float32)}, {"round": "2", "layout-id": "x", "line": "{"}),
        }[damage]
    )
    assert same(load_checkpoint(tmp_path), checkpoint(1))


def test_no_checkpoint_is_a_user_error_that_says_what_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is none"):
        load_checkpoint(tmp_path)
    assert latest_round(tmp_path) == -1
    save_checkpoint(tmp_path, checkpoint(3))
    (tmp_path / "state" / "round_0003.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"damaged: round_0003"):
        load_checkpoint(tmp_path)


def test_leftovers_of_an_interrupted_write_are_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    (tmp_path / "state" / ".round_0002.safetensors.77.tmp").write_bytes(b"half")
    assert load_checkpoint(tmp_path).round == 1
    assert latest_round(tmp_path) == 1


# --- rounds.jsonl ---------------------------------------------------------------------------------


def rounds_of(run: Path) -> list[int]:
    return [line["round"] for line in read_lines(run / "rounds.jsonl")]


@pytest.mark.parametrize("written", [[1, 2], [1, 2, 3], [1, 2, 3, 4]])
def test_restored_rounds_end_with_the_checkpoint(tmp_path: Path, written: list[int]) -> None:
    for number in written:
        append_line(tmp_path / "rounds.jsonl", checkpoint(number).line)
    restore_rounds(tmp_path, checkpoint(3))
    assert rounds_of(tmp_path) == [number for number in written if number < 3] + [3]
    assert read_lines(tmp_path / "rounds.jsonl")[-1] == checkpoint(3).line


@pytest.mark.parametrize("written", [[], [1]])
def test_lost_rounds_are_an_error_unless_only_an_older_checkpoint_exists(tmp_path: Path, written: list[int]) -> None:
    for number in written:
        append_line(tmp_path / "rounds.jsonl", checkpoint(number).line)
    with pytest.raises(
        UserError,
        match=(
            r"rounds\.jsonl is damaged: it ends with round .*, and the checkpoint is of "
            r"round 3"
        ),
    ):
        restore_rounds(tmp_path, checkpoint(3))
    assert rounds_of(tmp_path) == written
    save_checkpoint(tmp_path, checkpoint(2))
    if written:
        restore_rounds(tmp_path, checkpoint(3))
        assert rounds_of(tmp_path) == [1, 2, 3]
    else:
        with pytest.raises(UserError, match=r"rounds\.jsonl is damaged"):
            restore_rounds(tmp_path, checkpoint(3))


def test_restoring_the_start_gives_no_rounds(tmp_path: Path) -> None:
    append_line(tmp_path / "rounds.jsonl", checkpoint(1).line)
    restore_rounds(tmp_path, checkpoint(0))
    assert rounds_of(tmp_path) == []


def test_a_line_cut_off_at_any_byte_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "rounds.jsonl"
    append_line(file, {"round": 1})
    whole = file.read_bytes()
    last = (json.dumps(checkpoint(2).line, ensure_ascii=False)).encode()
    assert len(last) > len(last.decode()), "the line has characters of two bytes"
    for length in range(len(last) + 1):
        file.write_bytes(whole + last[:length])
        assert rounds_of(tmp_path) == [1], f"cut after {length} bytes"
    restore_rounds(tmp_path, checkpoint(2))
    assert rounds_of(tmp_path) == [1, 2]


def test_damage_in_the_middle_is_a_user_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(UserError, match=r"rounds\.jsonl, line 2 is damaged"):
        read_lines(tmp_path / "rounds.jsonl")


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "rounds.jsonl") == []


# --- writing --------------------------------------------------------------------------------------


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("no folder")
    return folder / "file" / "run"


def test_writing_where_no_folder_can_be_is_a_user_error(tmp_path: Path) -> None:
    run = below_a_file(tmp_path)
    for write in (
        lambda: save_checkpoint(run, checkpoint(1)),
        lambda: write_bytes(run / "x", b""),
        lambda: write_json(run / "x.json", {}),
        lambda: append_line(run / "rounds.jsonl", {}),
        lambda: write_config(run, Config()),
        lambda: new_run_folder(Config(output_dir=str(tmp_path / "file"), run_name="run")),
    ):
        with pytest.raises(UserError, match=r"Cannot write .*output_dir="):
            write()


def test_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    (tmp_path / "rounds.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"No space left.*output_dir="):
        append_line(tmp_path / "rounds.jsonl", {"round": 1})


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_bytes(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_json_with_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a finite number"):
        write_json(tmp_path / "result.json", {"loss": float("nan")})
    assert not (tmp_path / "result.json").exists()


def test_missing_and_damaged_json_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "result.json")
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "result.json")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [1", b"3", b"", b"- 1"])
def test_a_damaged_configuration_of_a_run_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError):
        read_config(tmp_path)


def test_adapter_checksum_is_of_the_little_endian_bytes() -> None:
    vector = np.float32([1.0, -2.0])
    expected = hashlib.sha256(bytes.fromhex("0000803f000000c0")).hexdigest()
    assert adapter_checksum(vector) == expected
    assert adapter_checksum(vector.astype(">f4")) == expected


# --- run folders ----------------------------------------------------------------------------------


def config_in(folder: Path, **values: Any) -> Config:
    return Config(output_dir=str(folder), run_name="run", **values)


def test_a_run_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    run = open_run(config_in(tmp_path), 2, "federated").folder
    (run / "rounds.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"resume=.*run_name=.*overwrite=true"):
        open_run(config_in(tmp_path), 2, "federated")
    assert open_run(config_in(tmp_path, overwrite=True), 2, "federated").folder == run
    assert not (run / "rounds.jsonl").exists()


def files_of(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != COMMAND_LOCK.name}


def test_a_folder_in_use_is_neither_resumed_nor_overwritten(tmp_path: Path) -> None:
    first = open_run(config_in(tmp_path), 2, "federated")
    save_checkpoint(first.folder, checkpoint(1))
    before = files_of(first.folder)
    for config in (config_in(tmp_path, resume=str(first.folder)), config_in(tmp_path, overwrite=True)):
        with pytest.raises(UserError, match=f"The run {first.folder} is in use: process {os.getpid()} on "):
            open_run(config, 2, "federated")
    assert files_of(first.folder) == before
    with first.held():
        pass
    assert open_run(config_in(tmp_path, resume=str(first.folder)), 2, "federated").checkpoint is not None


def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not the folder of a run"):
        open_run(config_in(tmp_path, overwrite=True), 2, "federated")
    assert (tmp_path / "run" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc"])
def test_a_run_name_is_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="plain folder name"):
        new_run_folder(Config(output_dir=str(tmp_path), run_name=name))


def test_a_run_named_as_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("of mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"notes is a file, not a run's folder. Choose another run_name="):
            new_run_folder(Config(output_dir=str(tmp_path), run_name="notes", overwrite=overwrite))
    assert (tmp_path / "notes").read_text() == "of mine"


def test_a_resumed_run_continues_under_its_own_name_from_its_checkpoint(tmp_path: Path) -> None:
    config = config_in(tmp_path, seed=4)
    first = open_run(config, 3, "federated")
    append_line(first.folder / "rounds.jsonl", checkpoint(1).line)
    assert (first.config.banks, first.checkpoint) == (3, None)
    save_checkpoint(first.folder, checkpoint(2))
    with first.held():
        pass
    again = open_run(config_in(tmp_path, seed=4, resume=str(first.folder)), 3, "federated")
    assert (again.folder, again.run_id, again.config) == (first.folder, first.run_id, first.config)
    assert again.checkpoint is not None
    assert same(again.checkpoint, checkpoint(2))
    assert rounds_of(first.folder) == [1, 2]


def test_resuming_with_another_configuration_names_the_differences(tmp_path: Path) -> None:
    run = open_run(config_in(tmp_path), 2, "federated").folder
    save_checkpoint(run, checkpoint(1))
    other = config_in(tmp_path, seed=9, peft=PeftConfig(rank=3), resume=str(run))
    with pytest.raises(UserError, match=r"peft\.rank: 8 -> 3, seed: 0 -> 9"):
        open_run(other, 2, "federated")


def test_resuming_what_is_no_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run's folder"):
        open_run(config_in(tmp_path, resume=str(tmp_path)), 2, "federated")


def test_the_fingerprint_ignores_where_a_run_lies_and_nothing_else(tmp_path: Path) -> None:
    one = config_fingerprint(Config())
    assert one == config_fingerprint(Config(output_dir="elsewhere", run_name="x", resume="y", overwrite=True))
    assert len({one, config_fingerprint(Config(seed=1)), config_fingerprint(Config(peft=PeftConfig(rank=3)))}) == 3
