"""The flat adapter vector: its layout, its trip into a model and back, and folders that plain PEFT loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import PAIRS, MakeSession, random_adapter, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from fedfinlora.config.peft import PEFT_METHODS
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import (
    Layout,
    layout_of,
    load_adapter,
    peft_config_values,
    read_adapter,
    save_adapter,
    saved_name,
    trainable,
    write_adapter,
)
from fedfinlora.model.peft_methods import METHODS

if TYPE_CHECKING:
    from fedfinlora.model.loading import Session

SMALL = Layout(("a", "b"), ((2, 3), (4,)))


def test_every_method_of_the_schema_exists_and_its_saved_form_is_read() -> None:
    assert set(METHODS) == set(PEFT_METHODS)
    assert all(METHODS[method.saved_as].saved_as == method.saved_as for method in METHODS.values())


def test_layout_gives_size_and_offsets() -> None:
    assert (SMALL.size, SMALL.offsets) == (10, (0, 6))
    assert (Layout((), ()).size, Layout((), ()).offsets) == (0, ())
    assert Layout(("one",), ((),)).size == 1


def test_layout_id_depends_on_names_shapes_and_order_only() -> None:
    assert SMALL.id == Layout(("a", "b"), ((2, 3), (4,))).id
    assert len(SMALL.id) == 16
    others = [
        Layout(("a", "c"), ((2, 3), (4,))),
        Layout(("a", "b"), ((3, 2), (4,))),
        Layout(("b", "a"), ((4,), (2, 3))),
        Layout(("a",), ((2, 3),)),
    ]
    assert len({SMALL.id, *(other.id for other in others)}) == 5


def test_views_are_views_in_the_right_places() -> None:
    vector = np.arange(10, dtype=np.float32)
    views = SMALL.views(vector)
    np.testing.assert_array_equal(views["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(views["b"], [6, 7, 8, 9])
    views["b"][0] = -1
    assert vector[6] == -1


@pytest.mark.parametrize("shape", [(9,), (11,), (10, 1), ()])
def test_views_refuse_a_vector_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="layout wants"):
        SMALL.views(np.zeros(shape, np.float32))


@given(st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), max_size=6))
def test_views_cover_every_number_once(shapes: list[tuple[int, ...]]) -> None:
    layout = Layout(tuple(f"tensor-{index}" for index in range(len(shapes))), tuple(shapes))
    vector = np.arange(layout.size, dtype=np.float32)
    views = layout.views(vector)
    joined = np.concatenate([views[name].reshape(-1) for name in layout.names]) if shapes else vector
    np.testing.assert_array_equal(joined, vector)


@pytest.mark.parametrize(("quantization", "method"), PAIRS)
def test_written_adapter_reads_back_to_the_byte(session_of: MakeSession, quantization: str, method: str) -> None:
    session = session_of(quantization, method)
    vector = random_adapter(session.layout.size, seed=5)
    write_adapter(session.model, vector)
    assert read_adapter(session.model).tobytes() == vector.tobytes()
    assert layout_of(session.model) == session.layout
    assert all(parameter.dtype.is_floating_point for parameter in trainable(session.model).values())


def test_a_read_adapter_is_a_copy(tiny: Session) -> None:
    before = read_adapter(tiny.model)
    changed = before.copy()
    before += 1
    np.testing.assert_array_equal(read_adapter(tiny.model), changed)


def test_writing_keeps_the_callers_vector_apart(tiny: Session) -> None:
    vector = random_adapter(tiny.layout.size)
    write_adapter(tiny.model, vector)
    vector[:] = 0
    assert np.abs(read_adapter(tiny.model)).min() > 0


@pytest.mark.parametrize(("quantization", "method"), PAIRS)
def test_layout_names_are_the_keys_that_peft_saves(session_of: MakeSession, quantization: str, method: str) -> None:
    import peft

    session = session_of(quantization, method)
    state = peft.get_peft_model_state_dict(session.model)
    assert sorted(state) == list(session.layout.names)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == dict(
        zip(session.layout.names, session.layout.shapes, strict=True)
    )
    views = session.layout.views(read_adapter(session.model))
    assert all(np.array_equal(views[name], tensor.numpy()) for name, tensor in state.items())


def test_saved_name_of_each_kind_of_parameter() -> None:
    start = "base_model.model.model.layers.0.self_attn.q_proj"
    assert saved_name(f"{start}.lora_A.default.weight") == f"{start}.lora_A.weight"
    assert saved_name(f"{start}.lora_magnitude_vector.default.weight") == f"{start}.lora_magnitude_vector"


def fresh_base(quantization: str) -> Any:
    """A base model that no session has touched: without quantization loaded by transformers alone."""
    from transformers import AutoModelForCausalLM

    from fedfinlora.model.embedded import embedded_folder
    from fedfinlora.model.loading import load_base

    if quantization != "none":
        return load_base(tiny_config(quantization).model)[0]
    return AutoModelForCausalLM.from_pretrained(embedded_folder("memory:tiny-random"), dtype="float32")


@pytest.mark.parametrize(("quantization", "method"), PAIRS)
def test_saved_folder_loads_in_plain_peft_with_equal_logits(
    session_of: MakeSession, tmp_path: Path, quantization: str, method: str
) -> None:
    import torch
    from peft import PeftModel

    session = session_of(quantization, method)
    config = tiny_config(quantization, method)
    token_ids = torch.arange(40, 60).unsqueeze(0)
    with torch.no_grad():
        ours = session.model(input_ids=token_ids).logits
        save_adapter(tmp_path, read_adapter(session.model), session.layout, config.peft, config.model)
        base = fresh_base(quantization)
        untouched = base(input_ids=token_ids).logits
        plain = PeftModel.from_pretrained(base, str(tmp_path)).eval()
        theirs = plain(input_ids=token_ids).logits
    assert not any(parameter.requires_grad for parameter in plain.parameters()), "saved for inference"
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    assert float((ours - untouched).abs().max()) > 1e-2, "the adapter changes nothing, so the comparison shows nothing"


@pytest.mark.parametrize(("quantization", "method"), PAIRS)
def test_saved_folder_loads_back_to_the_byte(
    session_of: MakeSession, tmp_path: Path, quantization: str, method: str
) -> None:
    session = session_of(quantization, method)
    config = tiny_config(quantization, method)
    vector = random_adapter(session.layout.size, seed=3)
    save_adapter(tmp_path / "new" / "folder", vector, session.layout, config.peft, config.model)
    assert load_adapter(tmp_path / "new" / "folder", session.layout).tobytes() == vector.tobytes()


def test_peft_configuration_carries_every_setting() -> None:
    config = tiny_config(method="rslora", dropout=0.25)
    values = peft_config_values(config.peft, config.model)
    assert (values["r"], values["lora_alpha"], values["lora_dropout"], values["target_modules"]) == (
        4,
        8,
        0.25,
        ["q_proj", "v_proj"],
    )
    assert (values["use_rslora"], values["use_dora"]) == (True, False)


def saved(folder: Path, layout: Layout) -> Path:
    config = tiny_config()
    save_adapter(folder, random_adapter(layout.size), layout, config.peft, config.model)
    return folder / "adapter_model.safetensors"


def test_folder_without_an_adapter_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no PEFT adapter"):
        load_adapter(tmp_path / "nowhere", SMALL)


@pytest.mark.parametrize(
    "other",
    [
        Layout(("a", "b"), ((3, 2), (4,))),
        Layout(("a", "c"), ((2, 3), (4,))),
        Layout(("a",), ((2, 3),)),
        Layout(("a", "b", "c"), ((2, 3), (4,), (1,))),
    ],
)
def test_adapter_of_another_layout_is_a_user_error(tmp_path: Path, other: Layout) -> None:
    saved(tmp_path, SMALL)
    with pytest.raises(UserError, match="does not fit"):
        load_adapter(tmp_path, other)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_damaged_file_is_a_user_error(tmp_path: Path, damage: str) -> None:
    file = saved(tmp_path, SMALL)
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-5], "empty": b"", "noise": b"\xff" * len(content)}[damage])
    with pytest.raises(UserError, match="damaged"):
        load_adapter(tmp_path, SMALL)


def test_an_adapter_saved_in_16_bits_loads_or_is_a_user_error(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    values = {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.full((4,), 0.5, dtype=torch.float16)}
    save_file(values, tmp_path / "adapter_model.safetensors")
    try:
        vector = load_adapter(tmp_path, SMALL)
    except UserError:
        return
    np.testing.assert_array_equal(vector, np.float32([1] * 6 + [0.5] * 4))


def test_an_adapter_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="Cannot write"):
        saved(tmp_path / "file" / "adapter", SMALL)
