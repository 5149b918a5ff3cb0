"""Adapter folders of other programs: what plain PEFT saves computes the same here, and what cannot is refused by its
key.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from routed import adapter_folder

from fedfinlora.config.model import ModelConfig
from fedfinlora.errors import UserError
from fedfinlora.files import sha256_of, write_json
from fedfinlora.model.adapter import load_adapter, write_adapter
from fedfinlora.model.adapter_folder import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    WEIGHTS_FILE,
    check_start,
    peft_settings,
    plain_name,
    read_tensors,
    same_base,
)

SaveFolder = Callable[..., Path]
TOKENS = list(range(40, 60))


def plain_base() -> Any:
    """The tiny random model as transformers alone loads it, float32."""
    from transformers import AutoModelForCausalLM

    from fedfinlora.model.embedded import embedded_folder

    return AutoModelForCausalLM.from_pretrained(embedded_folder("memory:tiny-random"), dtype="float32")


def logits_of(model: Any) -> np.ndarray[Any, Any]:
    """Shape (tokens, vocabulary), float32."""
    import torch

    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor([TOKENS])).logits[0])


@pytest.fixture
def save_folder(tmp_path: Path) -> SaveFolder:
    """save_folder(dtype, adapter_name, **lora): a folder that plain PEFT wrote, its tensors random and nowhere zero."""

    def save(dtype: str = "float32", adapter_name: str = "default", **lora: Any) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model

        settings = {
            "r": 4,
            "lora_alpha": 12,
            "lora_dropout": 0.1,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
        }
        torch.manual_seed(0)
        model = get_peft_model(plain_base(), LoraConfig(**{**settings, **lora}), adapter_name=adapter_name)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = (parameter.data + 0.2 * torch.randn_like(parameter)).to(getattr(torch, dtype))
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter" / ("" if adapter_name == "default" else adapter_name)

    return save


def edit(folder: Path, **values: Any) -> Path:
    """Set keys of adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def load_tensors(folder: Path) -> dict[str, Any]:
    """The stored tensors, copied: the file may be written over."""
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def save_tensors(folder: Path, tensors: dict[str, Any]) -> Path:
    from safetensors.torch import save_file

    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> Path:
    return save_tensors(folder, {rename(name): tensor for name, tensor in load_tensors(folder).items()})


def our_logits(folder: Path) -> np.ndarray[Any, Any]:
    """As `evaluate --adapter FOLDER` computes them: the folder's settings, a session, its tensors."""
    from fedfinlora.model.loading import get_session

    config = tiny_config()
    config = replace(config, peft=peft_settings(folder, config))
    session = get_session(config)
    write_adapter(session.model, load_adapter(folder, session.layout, config.model))
    return logits_of(session.model)


def plain_logits(folder: Path) -> np.ndarray[Any, Any]:
    from peft import PeftModel

    return logits_of(PeftModel.from_pretrained(plain_base(), str(folder)).eval())


# --- what plain PEFT saves computes the same here -------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_a_folder_of_plain_peft_gives_the_logits_of_plain_peft(
    save_folder: SaveFolder, method: str, dtype: str
) -> None:
    folder = save_folder(dtype, use_dora=method == "dora", use_rslora=method == "rslora")
    assert {str(tensor.dtype) for tensor in load_tensors(folder).values()} == {f"torch.{dtype}"}
    ours = our_logits(folder)
    np.testing.assert_allclose(ours, plain_logits(folder), rtol=1e-5, atol=1e-5)
    assert np.abs(ours - logits_of(plain_base())).max() > 1e-2, (
        "the adapter changes nothing, so the comparison shows nothing"
    )


@pytest.mark.parametrize(
    "targets",
    [
        "all-linear",
        r".*\.(q|k)_proj",
        r".*layers\.1\.self_attn\.(q|v)_proj",
        ["self_attn.q_proj", "mlp.up_proj"],
        ["model.layers.0.self_attn.o_proj", "up_proj"],
    ],
    ids=["all-linear", "pattern", "pattern of one layer", "paths", "path of one layer"],
)
def test_any_way_of_naming_target_modules_gives_the_logits_of_plain_peft(
    save_folder: SaveFolder, targets: str | list[str]
) -> None:
    folder = edit(save_folder(target_modules=targets), target_modules=targets)
    np.testing.assert_allclose(our_logits(folder), plain_logits(folder), rtol=1e-5, atol=1e-5)


def test_excluded_modules_get_no_adapter(save_folder: SaveFolder) -> None:
    folder = save_folder(exclude_modules=r".*layers\.0.*")
    np.testing.assert_allclose(our_logits(folder), plain_logits(folder), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".sentiment.weight"),
        lambda name: f"{name}.weight" if name.endswith("magnitude_vector") else name,
        lambda name: f"{name}.default.weight" if name.endswith("magnitude_vector") else name,
        lambda name: f"{name}.default" if name.endswith("magnitude_vector") else name,
        lambda name: name.removeprefix("base_model.model."),
    ],
    ids=["default", "other name", "magnitude.weight", "magnitude.default.weight", "magnitude.default", "no prefix"],
)
def test_tensor_names_of_other_versions_are_read(save_folder: SaveFolder, rename: Callable[[str], str]) -> None:
    folder = save_folder(use_dora=True)
    expected = plain_logits(folder)
    assert set(read_tensors(folder)) == {plain_name(name) for name in read_tensors(folder)}
    np.testing.assert_allclose(our_logits(rename_tensors(folder, rename)), expected, rtol=1e-5, atol=1e-5)


def test_settings_are_read_as_peft_wrote_them(save_folder: SaveFolder) -> None:
    settings = peft_settings(save_folder(use_rslora=True), tiny_config())
    assert (settings.method, settings.rank, settings.alpha, settings.dropout) == ("rslora", 4, 12, 0.1)
    assert settings.target_modules == ("q_proj", "v_proj")


def test_patterns_have_short_names_if_every_layer_has_them(save_folder: SaveFolder) -> None:
    folder = edit(save_folder(), target_modules=".*(q|v)_proj")
    assert peft_settings(folder, tiny_config()).target_modules == ("q_proj", "v_proj")
    folder = rename_tensors(folder, lambda name: name.replace("layers.0", "layers.7"))
    assert len(peft_settings(folder, tiny_config()).target_modules) == 4, "full paths"


def test_settings_of_the_published_adapters_are_read(save_folder: SaveFolder) -> None:
    """The keys that PEFT 0.10 wrote, with the values of FinLoRA's trainers."""
    folder = save_folder("float16", target_modules=["q_proj", "k_proj", "v_proj"])
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "alpha_pattern": {}, "auto_mapping": None,
                "base_model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
                "bias": "none", "fan_in_fan_out": None, "inference_mode": True, "init_lora_weights": True,
                "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
                "lora_alpha": 16, "lora_dropout": 0.05, "megatron_config": None, "megatron_core": "megatron.core",
                "modules_to_save": None, "peft_type": "LORA", "r": 4, "rank_pattern": {}, "revision": None,
                "target_modules": ["v_proj", "q_proj", "k_proj"], "task_type": "CAUSAL_LM", "use_dora": False,
                "use_rslora": False,
            }
        )
    )  # fmt: skip
    settings = peft_settings(folder, tiny_config())
    assert (settings.rank, settings.alpha, settings.target_modules) == (4, 16, ("k_proj", "q_proj", "v_proj"))


# --- what cannot be computed here is refused by its key -------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [0]),
        ("layers_to_transform", 1),
        ("use_qalora", True),
        ("trainable_token_indices", [5]),
        ("target_parameters", ["experts.down"]),
        ("layer_replication", [[0, 1]]),
        ("fan_in_fan_out", True),
        ("alora_invocation_tokens", [3]),
        ("arrow_config", {"top_k": 1}),
        ("a_key_of_a_later_version", {"strength": 2}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "loftq"),
        ("peft_type", "IA3"),
        ("task_type", "SEQ_CLS"),
        ("use_dora", "with use_rslora"),
        ("r", 0),
        ("r", None),
        ("r", "eight"),
        ("lora_alpha", 0.5),
        ("lora_alpha", True),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", [1]),
        ("target_modules", ""),
    ],
)
def test_a_setting_that_cannot_be_computed_is_refused_by_name(save_folder: SaveFolder, key: str, value: Any) -> None:
    folder = edit(save_folder(), **{key: value}, **({"use_rslora": True} if key == "use_dora" else {}))
    with pytest.raises(UserError, match=rf"adapter_config\.json.*{key}"):
        peft_settings(folder, tiny_config())


def test_infinite_numbers_in_the_settings_are_refused(save_folder: SaveFolder) -> None:
    for value in (float("inf"), float("nan")):
        with pytest.raises(UserError, match="lora_alpha"):
            peft_settings(edit(save_folder(), lora_alpha=value), tiny_config())


def test_a_pickle_is_refused_and_the_way_to_convert_it_works(save_folder: SaveFolder) -> None:
    import torch

    folder = save_folder()
    tensors = load_tensors(folder)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model\.bin, a pickle.*convert") as refused:
        read_tensors(folder)
    command = shlex.split(str(refused.value).split("in that folder: ")[1])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], cwd=folder, check=True)
    converted = load_tensors(folder)
    assert set(converted) == set(tensors)
    assert all(torch.equal(converted[name], tensor) for name, tensor in tensors.items())


def test_an_adapter_one_level_below_is_named(save_folder: SaveFolder) -> None:
    folder = save_folder(adapter_name="sentiment")
    assert peft_settings(folder, tiny_config()).rank == 4
    with pytest.raises(UserError, match="one level below: sentiment"):
        peft_settings(folder.parent, tiny_config())


def test_two_adapters_in_one_file_are_refused(save_folder: SaveFolder) -> None:
    folder = save_folder()
    tensors = load_tensors(folder)
    others = {name.replace(".weight", ".other.weight"): tensor + 1 for name, tensor in tensors.items()}
    save_tensors(folder, {**tensors, **others})
    with pytest.raises(UserError, match="two adapters"):
        read_tensors(folder)


@pytest.mark.parametrize(
    ("fault", "says"), [("nan", "not finite"), ("int", "int8"), ("full weights", "embed_tokens.weight is no")]
)
def test_tensors_that_are_no_adapters_are_refused(save_folder: SaveFolder, fault: str, says: str) -> None:
    import torch

    folder = save_folder()
    tensors = load_tensors(folder)
    first = next(iter(tensors))
    if fault == "nan":
        tensors[first][0, 0] = torch.nan
    elif fault == "int":
        tensors[first] = tensors[first].to(torch.int8)
    else:
        tensors["base_model.model.model.embed_tokens.weight"] = torch.ones(4, 4)
    save_tensors(folder, tensors)
    with pytest.raises(UserError, match=says):
        our_logits(folder)


# --- adapters of another base model ---------------------------------------------------------------


def test_another_base_whose_shapes_do_not_fit_is_an_error_with_both_names(save_folder: SaveFolder) -> None:
    folder = edit(save_folder(), base_model_name_or_path="meta-llama/Llama-3.1-8B-Instruct")
    save_tensors(folder, {name: tensor.repeat(2, 2) for name, tensor in load_tensors(folder).items()})
    with pytest.raises(UserError, match=r"does not fit.*has shape.*Llama-3\.1-8B-Instruct.*memory:tiny-random"):
        our_logits(folder)


def test_another_base_whose_shapes_fit_is_a_warning(save_folder: SaveFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedfinlora"):
        our_logits(edit(save_folder(), base_model_name_or_path="someone/another-tiny"))
    assert "someone/another-tiny" in caplog.text
    assert "memory:tiny-random" in caplog.text


@pytest.mark.parametrize("name", ["memory:tiny-random", None, ""])
def test_the_same_or_an_unnamed_base_is_no_warning(
    save_folder: SaveFolder, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fedfinlora"):
        our_logits(edit(save_folder(), base_model_name_or_path=name))
    assert "made for" not in caplog.text


def test_a_local_copy_is_the_same_base() -> None:
    assert same_base("meta-llama/Llama-3.1-8B-Instruct", "/models/llama-3.1-8b-instruct/")
    assert not same_base("meta-llama/Llama-3.1-8B-Instruct", ModelConfig().path)


@pytest.mark.parametrize("changed", [CONFIG_FILE, WEIGHTS_FILE])
def test_files_that_were_changed_after_their_run_are_refused(tmp_path: Path, changed: str) -> None:
    """Wherever an adapter's settings are read, also for a run or a stage that starts from it."""
    config = tiny_config()
    folder = adapter_folder(tmp_path / "final", 1)
    subject = [
        {"name": name, "digest": {"sha256": sha256_of((folder / name).read_bytes())}}
        for name in (CONFIG_FILE, WEIGHTS_FILE)
    ]
    write_json(folder / PROVENANCE_FILE, {"subject": subject})
    peft_settings(folder, config)
    other = adapter_folder(tmp_path / "other", 2, alpha=999)
    (folder / changed).write_bytes((other / changed).read_bytes())
    with pytest.raises(UserError, match=f"{changed} is not the file that provenance.json next to it speaks of"):
        check_start(replace(config, start_adapter=str(folder)))
    (folder / PROVENANCE_FILE).write_text("{}", "utf-8")
    with pytest.raises(UserError, match="is damaged: it names no files"):
        peft_settings(folder, config)
    (folder / PROVENANCE_FILE).unlink()
    assert peft_settings(folder, config).alpha == (999 if changed == CONFIG_FILE else config.peft.alpha)
