"""Adapters for other programs: plain LoRA computes what was trained, and llama.cpp's file has its order of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import set_random_adapter, tiny_config
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedfinlora.commands import export as command
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import frozen_tensors, read_adapter, save_adapter
from fedfinlora.model.embedded import embedded_folder
from fedfinlora.model.gguf_adapter import in_gguf_order
from fedfinlora.model.loading import get_session
from fedfinlora.model.plain_lora import plain_lora

BASE = "memory:tiny-random"


@pytest.fixture
def folder_of(tmp_path: Path) -> Any:
    """folder_of("rslora"): a PEFT folder of the tiny model with a random adapter of that method."""

    def make(method: str) -> Path:
        config = tiny_config(method=method)
        session = get_session(config)
        set_random_adapter(session, seed=3)
        folder = tmp_path / method
        vector = read_adapter(session.model)
        save_adapter(folder, vector, session.layout, config.peft, config.model, frozen_tensors(session.model))
        return folder

    return make


def logits(folder: Path) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(embedded_folder(BASE))
    model = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        return model(torch.arange(2, 34)[None]).logits[0]


@pytest.mark.parametrize("method", ["lora", "rslora", "lora_xs"])
def test_plain_lora_has_the_logits_of_what_was_trained(folder_of: Any, tmp_path: Path, method: str) -> None:
    folder = folder_of(method)
    plain_lora(folder).save(tmp_path / "plain")
    values = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"], values["use_rslora"]) == (4, 4, False)
    torch.testing.assert_close(logits(tmp_path / "plain"), logits(folder), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "gguf", "merged", "peft"])
def test_export_writes_a_checked_folder_and_the_command(
    folder_of: Any, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command.export(folder_of("rslora"), kind, out, "risk") == 0
    shown = capsys.readouterr().out
    written = json.loads((out / "export.json").read_text())
    assert written["for"] == kind
    assert kind == "peft" or written["logits_relative_difference"] < 1e-3
    expected = {
        "vllm": f"--max-lora-rank 8 --lora-modules risk={out}", "sglang": f"--lora-paths risk={out}",
        "gguf": f"--lora {out}/risk.gguf", "merged": f"vllm serve {out}", "peft": "PeftModel.from_pretrained",
    }  # fmt: skip
    assert expected[kind] in shown
    with pytest.raises(UserError, match="is there already"):
        command.export(tmp_path / "rslora", kind, out)


def test_dora_becomes_lora_as_far_as_the_rank_holds(folder_of: Any, tmp_path: Path) -> None:
    folder = folder_of("dora")
    differences = []
    for rank in (1, 4, 64):
        command.export(folder, "vllm", tmp_path / f"rank-{rank}", rank=rank)
        differences.append(json.loads((tmp_path / f"rank-{rank}" / "export.json").read_text()))
    figures = [each["logits_relative_difference"] for each in differences]
    assert figures == sorted(figures, reverse=True)
    assert figures[-1] < 1e-3, "the rank of the whole weight"


def test_gguf_has_the_adapters_product_in_llama_cpps_order(folder_of: Any, tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    folder = folder_of("lora")
    command.export(folder, "gguf", tmp_path / "out", "risk")
    tensors = {each.name: each.data for each in GGUFReader(tmp_path / "out" / "risk.gguf").tensors}
    config = AutoModelForCausalLM.from_pretrained(embedded_folder(BASE)).config
    plain = plain_lora(folder)
    assert len(tensors) == 2 * len(plain.layers)
    undo = LlamaTensorProcessor(config={})._reverse_permute_weights
    for path, (a, b) in plain.layers.items():
        number, module = path.split(".")[2], path.rpartition(".")[2]
        name = f"blk.{number}.{ {'q_proj': 'attn_q', 'v_proj': 'attn_v'}[module] }.weight"
        product = tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
        if module == "q_proj":
            product = undo(product, config.num_attention_heads, config.num_attention_heads)
        np.testing.assert_allclose(product, b @ a, rtol=1e-6, atol=1e-7)


def test_rows_of_grouped_keys_are_ordered_by_their_own_heads() -> None:
    class Heads:
        num_attention_heads, num_key_value_heads = 4, 2

    b = np.arange(8, dtype=np.float32)[:, None]
    assert in_gguf_order("x.k_proj", b, Heads).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert in_gguf_order("x.v_proj", b, Heads) is b


def damaged(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_cannot_be_exported_is_refused_by_name(folder_of: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no adapter.*Has the run ended"):
        command.export(tmp_path, "vllm", None)
    folder = folder_of("lora")
    with pytest.raises(UserError, match=r"Unknown program 'ollama'.*vllm"):
        command.export(folder, "ollama", None)
    damaged(folder, modules_to_save=["lm_head"])
    with pytest.raises(UserError, match="modules_to_save is set, which changes what the adapter computes"):
        command.export(folder, "sglang", tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing half-written is left"


@pytest.mark.parametrize("kind", ["peft", "vllm", "merged"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("rank", r"lora_[AB]\.weight has rank 4, and r is 16"),
        ("partner", r"is not whole: .*lora_B\.weight has no lora_A"),
        ("no weights", r"adapter_model\.safetensors is missing"),
        ("cut", r"is damaged"),
    ],
)
def test_an_adapter_that_is_not_whole_is_not_exported(
    folder_of: Any, tmp_path: Path, kind: str, damage: str, said: str
) -> None:
    folder = folder_of("lora")
    weights = folder / "adapter_model.safetensors"
    if damage == "rank":
        damaged(folder, r=16)
    elif damage == "partner":
        tensors = load_file(weights)
        del tensors[next(name for name in tensors if name.endswith("lora_A.weight"))]
        save_file(tensors, weights)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        weights.unlink()
    with pytest.raises(UserError, match=said):
        command.export(folder, kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_layer_without_tensors_is_named(folder_of: Any, tmp_path: Path) -> None:
    """And an empty folder of somebody's stays."""
    folder, out = folder_of("lora"), tmp_path / "out"
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    layer = next(iter(tensors)).split(".lora_")[0]
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(layer)}, weights)
    out.mkdir()
    with pytest.raises(UserError, match="lacks tensors of some layers"):
        command.export(folder, "vllm", out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["../../evil", "a=b", "..", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(folder_of: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="an adapter cannot be served as"):
        command.export(folder_of("lora"), "gguf", tmp_path / "out" / "x", name)
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_written_it_says_so(
    folder_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = folder_of("lora"), tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is there already"):
        command.export(folder, "peft", link)

    def full(*arguments: Any, **values: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setitem(command.KINDS, "merged", full)
    with pytest.raises(UserError, match="no space is left there"):
        command.export(folder, "merged", tmp_path / "out")
    command.export(folder, "peft", tmp_path / "private")
    assert {file.stat().st_mode & 0o077 for file in (tmp_path / "private").rglob("*")} == {0}
