"""How a reply is put together from its pieces: the same as Flower does, with one array's pieces in memory at a time."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from fedfinlora.wire.vectors import PART_NUMBERS, from_arrays, to_arrays
from server_app.exchange import PROCESS_DIED
from server_app.guarded_grid import BANKS_CODES, NO_REPLY, Coming, as_reply, put_together
from server_app.taking_in import UNREADABLE

PIECE_BYTES = 2**18


def in_pieces(vector: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Coming:
    """A message with this vector as it comes in, everything of it there."""
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", PIECE_BYTES)
    for name in ("_node_id", "_run_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    content = RecordDict({"reply": ConfigRecord({"status": "ok"}), "delta": ArrayRecord(to_arrays(vector))})
    message = Message(content, 7, "train")
    message.metadata.__dict__["_message_id"] = message.object_id
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return Coming(message.object_id, [], 0, contents)


def numbers_of(message: Message, size: int) -> np.ndarray:
    return from_arrays(next(iter(message.content.array_records.values())), size)


def test_arrays_that_share_pieces_come_out_as_they_went_in(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = np.zeros(2 * PART_NUMBERS + 3, np.float32)  # nearly all pieces are equal, and Flower sends them once
    vector[5], vector[-1] = 1.0, -2.0
    coming = in_pieces(vector, monkeypatch)
    assert len(coming.contents) < 12
    assert numbers_of(put_together(coming), vector.size).tobytes() == vector.tobytes()
    assert not coming.contents


def test_a_piece_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    coming = in_pieces(np.arange(PART_NUMBERS, dtype=np.float32), monkeypatch)
    del coming.contents[max(coming.contents, key=lambda name: len(coming.contents[name]))]
    with pytest.raises(KeyError):
        put_together(coming)


def test_it_takes_less_than_one_array_beyond_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = np.random.default_rng(0).normal(size=6 * PART_NUMBERS).astype(np.float32)
    coming = in_pieces(vector, monkeypatch)
    tracemalloc.start()
    try:
        message = put_together(coming)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert numbers_of(message, vector.size).tobytes() == vector.tobytes()
    # The contents that were there before were not traced, so their going does not count against what came.
    assert now < 1.1 * vector.nbytes
    assert peak < vector.nbytes + 3 * 4 * PART_NUMBERS


def came(answers: str = "asked", **what: Any) -> Message:
    metadata = Metadata(
        run_id=1, message_id="", src_node_id=7, dst_node_id=1, reply_to_message_id=answers, group_id="",
        created_at=0.0, ttl=9.0,
        message_type="train",
    )  # fmt: skip
    return make_message(metadata=metadata, **what)


def test_an_error_from_a_bank_is_its_code_without_its_text() -> None:
    for code in BANKS_CODES:
        error = as_reply(came(error=Error(code, "Acme Corp will default")), "asked").error
        assert (error.code, error.reason) == (code, "")
    assert max(value for name, value in vars(ErrorCode).items() if name.isupper()) == max(BANKS_CODES)


@pytest.mark.parametrize(
    "message",
    [
        came(error=Error(PROCESS_DIED, "it ends the run of a simulation")),
        came(error=Error(UNREADABLE, "Acme Corp will default")),
        came(error=Error(-1, "Acme")),
        came("another", content=RecordDict()),
        RecordDict(),
    ],
    ids=["process died", "unreadable", "unknown", "another request", "no message"],
)
def test_what_is_no_reply_is_an_error_of_the_servers_own(message: Any) -> None:
    error = as_reply(message, "asked").error
    assert (error.code, error.reason) == (UNREADABLE, NO_REPLY)


def test_a_reply_goes_through() -> None:
    message = came(content=RecordDict({"reply": ConfigRecord({"status": "ok"})}))
    assert as_reply(message, "asked") is message
