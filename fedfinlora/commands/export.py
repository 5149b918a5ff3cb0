"""`export RUN --for vllm|sglang|gguf|merged|peft`: an adapter as another program reads it, and the command to serve it.

What is written is loaded again and compared with the adapter that was trained, logit by logit, before the command ends;
for `peft` it is the adapter's own two files, byte by byte.
"""

from __future__ import annotations

import errno
import shlex
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedfinlora.config.checks import folder_name_fault
from fedfinlora.config.model import ModelConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError, choose
from fedfinlora.files import made_as, make_private, sha256_of, write_bytes, write_json
from fedfinlora.model.adapter_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    base_name,
    check_factors,
    peft_settings,
    read_tensors,
    same_base,
)
from fedfinlora.model.embedded import embedded_folder, is_embedded
from fedfinlora.model.gguf_adapter import write_gguf
from fedfinlora.model.peft_methods.lora import MAGNITUDE
from fedfinlora.model.plain_lora import PlainLora, plain_lora
from fedfinlora.model.quantized import import_bitsandbytes
from fedfinlora.model.quiet import quiet_libraries
from fedfinlora.run.folder import read_config

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes."""
PROBE_TOKENS = 64
WIDEST_DIFFERENCE = 1e-3
"""Of a logit, relative to the largest change that the adapter makes of one: more is an error, but after DoRA's SVD."""


@dataclass(frozen=True)
class Export:
    """What one export needs: where from, where to, and under which name the adapter is served."""

    adapter: Path
    base: ModelConfig
    out: Path
    name: str
    rank: int

    @property
    def base_path(self) -> str:
        """The base model as another program finds it: a folder, or its id on the hub."""
        return str(embedded_folder(self.base.path)) if is_embedded(self.base.path) else self.base.path


def export(source: Path, kind: str, out: Path | None, name: str = "", rank: int = 64) -> int:
    """Write the adapter of a run (`adapters/final`) or of a PEFT folder for `kind`, and print how it is served."""
    write = KINDS[choose(kind, tuple(KINDS), "program")]
    task, run = _task(source, kind, out, name, rank)
    was_there = task.out.is_dir()
    make_private(task.out)
    try:
        with quiet_libraries(), made_as(task.out):
            command, difference = write(task)
            write_json(
                task.out / "export.json",
                {
                    "for": kind, "base": task.base.path, "adapter": task.name, "run": run,
                    "adapter_sha256": sha256_of((task.adapter / WEIGHTS_FILE).read_bytes()),
                    "logits_relative_difference": difference,
                },
            )  # fmt: skip
    except BaseException as error:
        for part in [*task.out.iterdir()] if was_there else [task.out]:
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        if is_full(error):
            said = f"Cannot write {task.out}: no space is left there. Free some, or name another folder with --out."
            raise UserError(said) from error
        raise
    if difference is not None:
        print(f"checked: its logits differ by {difference:.1e} of what the adapter changes")
    print(f"written: {task.out}")
    print(command)
    return 0


def _task(source: Path, kind: str, out: Path | None, name: str, rank: int) -> tuple[Export, str]:
    """(what to export, the name of its run or ""). UserError or ConfigError for what cannot be exported; nothing is
    written yet.
    """
    if rank < 1:
        raise ConfigError(f"--rank must be at least 1, not {rank}.")
    adapter = source if (source / CONFIG_FILE).is_file() else source / "adapters" / "final"
    if not (adapter / CONFIG_FILE).is_file():
        raise UserError(
            f"{source} has no adapter: neither {CONFIG_FILE} nor adapters/final is there. Has the run ended?"
        )
    made_for = base_name(adapter)
    run = next((folder for folder in adapter.absolute().parents if (folder / "config.yaml").is_file()), None)
    base = read_config(run).model if run else ModelConfig(name=Path(made_for).name, path=made_for)
    name = name or (run.name if run else adapter.absolute().name)
    if fault := "it has an equals sign" if "=" in name else folder_name_fault(name):
        raise ConfigError(f"--name: an adapter cannot be served as {name!r}: {fault}. Choose a plain name.")
    out = out or Path(f"{name}-for-{kind}")
    if (out.exists() or out.is_symlink()) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already. Name another folder with --out FOLDER.")
    peft_settings(adapter, Config())  # refuses by name what no program would compute as it was trained
    check_factors(adapter)
    if run and made_for and not same_base(made_for, base.path):
        raise UserError(f"{adapter} was made for {made_for}, its run's model is {base.path}. Bring its files back.")
    return Export(adapter, replace(base, quantization="none"), out, name, rank), run.name if run else ""


def _peft(task: Export) -> tuple[str, float | None]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        write_bytes(task.out / name, (task.adapter / name).read_bytes())
    base = f"AutoModelForCausalLM.from_pretrained({task.base_path!r})"
    return f"model = PeftModel.from_pretrained({base}, {str(task.out.absolute())!r})", None


def _plain(task: Export) -> tuple[PlainLora, float]:
    """Plain LoRA in the export's folder, compared with what was trained."""
    with_adapter = _with_adapter(task)
    trained = _logits(with_adapter)
    plain = plain_lora(task.adapter, with_adapter, task.rank)
    plain.save(task.out)
    is_dora = any(name.endswith(MAGNITUDE) for name in read_tensors(task.adapter))
    difference = _difference(trained, _logits(_with_adapter(task, task.out)), _logits(_base(task)))
    if not is_dora:
        _check(difference, task.out)
    return plain, difference


def _vllm(task: Export) -> tuple[str, float | None]:
    plain, difference = _plain(task)
    room = next((rank for rank in VLLM_RANKS if rank >= plain.rank), None)
    if room is None:
        raise UserError(
            f"vLLM takes ranks up to {VLLM_RANKS[-1]}, and the adapter has {plain.rank}. Take --for merged."
        )
    words = ["vllm", "serve", task.base_path, "--enable-lora", "--max-lora-rank", str(room)]
    return shlex.join([*words, "--lora-modules", f"{task.name}={task.out.absolute()}"]), difference


def _sglang(task: Export) -> tuple[str, float | None]:
    plain, difference = _plain(task)
    words = ["python", "-m", "sglang.launch_server", "--model-path", task.base_path, "--enable-lora"]
    return shlex.join(
        [*words, "--max-lora-rank", str(plain.rank), "--lora-paths", f"{task.name}={task.out.absolute()}"]
    ), difference


def _gguf(task: Export) -> tuple[str, float | None]:
    from transformers import AutoConfig

    plain, difference = _plain(task)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (task.out / name).unlink()
    file = task.out / f"{task.name}.gguf"
    write_gguf(file, plain, AutoConfig.from_pretrained(task.base_path))
    return shlex.join(["llama-server", "--model", "BASE.gguf", "--lora", str(file.absolute())]), difference


def _merged(task: Export) -> tuple[str, float | None]:
    from transformers import AutoTokenizer

    model = _with_adapter(task)
    trained = _logits(model)
    merged = model.merge_and_unload()
    difference = _difference(trained, _logits(merged), _logits(_base(task)))
    _check(difference, task.out)
    merged.save_pretrained(task.out)
    AutoTokenizer.from_pretrained(task.base_path).save_pretrained(task.out)
    return shlex.join(["vllm", "serve", str(task.out.absolute()), "--served-model-name", task.name]), difference


def is_full(error: BaseException) -> bool:
    """Whether a write ended for lack of space. safetensors says so in the text of an error of its own."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


KINDS: dict[str, Callable[[Export], tuple[str, float | None]]] = {
    "peft": _peft, "vllm": _vllm, "sglang": _sglang, "gguf": _gguf, "merged": _merged,
}  # fmt: skip
"""Program -> what writes its folder and gives the command that serves it, and the difference of its logits."""


def _base(task: Export) -> Any:
    """The base model, not quantized, as plain transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(task.base_path, dtype="auto").eval()


def _with_adapter(task: Export, folder: Path | None = None) -> Any:
    """The base model with the adapter, or with that in `folder`, as plain PEFT loads it."""
    import_bitsandbytes()
    from peft import PeftModel

    place = folder or task.adapter
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(_base(task), place).eval()
        except UserWarning as error:
            raise UserError(f"{place / WEIGHTS_FILE} lacks tensors of some layers. Bring the file back.") from error


def _logits(model: Any) -> Any:
    """Logits of a fixed sequence, (PROBE_TOKENS, vocabulary), float32."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (1, PROBE_TOKENS), generator=generator)
    with torch.no_grad():
        return model(tokens.to(model.device)).logits[0].float().cpu()


def _difference(trained: Any, exported: Any, base: Any) -> float:
    """The largest difference of a logit, relative to the largest change that the adapter makes of one."""
    change = float((trained - base).abs().max())
    return float((exported - trained).abs().max()) / max(change, 1e-30)


def _check(difference: float, out: Path) -> None:
    if not difference <= WIDEST_DIFFERENCE:
        raise UserError(
            f"What was written to {out} computes something else than the adapter: its logits differ by "
            f"{difference:.1e} of what the adapter changes. It was removed."
        )
