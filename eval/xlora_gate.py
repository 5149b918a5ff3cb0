"""X-LoRA: several LoRA adapters as one model, each token and layer by a trained gate (Buehler and Buehler 2024, arXiv
2402.07148, section 2; classifier and layers are PEFT's, `peft.tuners.xlora`).

A first pass without adapters gives each token's last hidden state h. The gate's weights of n adapters in layer l are
softmax(W_l h + b_l); in a second pass the layer's change is the sum of the adapters' changes under these weights. Only
W and b are trained, from zero: all adapters weigh the same at first. PEFT runs both passes without a cache; here the
keys and values of both are kept, so that evaluation reads and writes as for any other model, and 4-bit layers are
gated too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from eval.expert_adapters import experts_in
from fedfinlora.config.peft import PeftConfig
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, sha256_of, write_bytes, write_json
from fedfinlora.model.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from fedfinlora.model.attention import AttentionPlan
from fedfinlora.model.peft_methods.lora import Tensors
from fedfinlora.run.typed import from_json, to_json

if TYPE_CHECKING:
    import peft
    import torch
    from peft.tuners.xlora.classifier import XLoraClassifier
    from torch import nn

GATE_FILE = "gate.json"
WEIGHT, BIAS = (f"base_model.internal_xlora_classifier.layers.0.{name}" for name in ("weight", "bias"))
"""PEFT's names of the gate's tensors."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class GateRecord:
    """gate.json."""

    base: str
    """The base model (model.path)."""
    names: tuple[str, ...]
    adapters: tuple[str, ...]
    """What each is: `adapter_id`."""
    rows: int
    """That training took, repeats counted."""
    steps: int
    first_loss: float
    """Mean loss of an answer token in the first step, nats."""
    last_loss: float
    seed: int


@dataclass(frozen=True)
class Gate:
    """A trained gate and the adapters that it weighs, in their order."""

    weight: Array
    """(layers · adapters, hidden) float32: PEFT's order, adapters fastest."""
    bias: Array
    """(layers · adapters,) float32."""
    base: str
    """The base model (model.path)."""
    names: tuple[str, ...]
    adapters: tuple[str, ...]
    """What each is: `adapter_id`."""
    rows: int = 0
    """That training took, repeats counted."""
    steps: int = 0
    losses: tuple[float, float] = (0.0, 0.0)
    """Mean loss of an answer token in the first and in the last step, nats."""
    seed: int = 0

    @property
    def sha256(self) -> str:
        """Of its values."""
        return sha256_of(np.ascontiguousarray(self.weight, "<f4").tobytes() + self.bias.astype("<f4").tobytes())

    def save(self, folder: Path, places: Sequence[Path]) -> None:
        """Write the folder: PEFT's adapter_config.json (of type XLORA, with the adapters' `places`) and
        adapter_model.safetensors, and gate.json.
        """
        from safetensors.numpy import save

        tensors = {WEIGHT: np.ascontiguousarray(self.weight), BIAS: np.ascontiguousarray(self.bias)}
        write_bytes(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        config = xlora_config(len(self.names), self.weight.shape[1], [str(place) for place in places])
        values = config.to_dict() | {"base_model_name_or_path": self.base, "inference_mode": True}
        write_json(folder / CONFIG_FILE, {key: _plain(value) for key, value in values.items()})
        said = GateRecord(self.base, self.names, self.adapters, self.rows, self.steps, *self.losses, self.seed)
        write_json(folder / GATE_FILE, to_json(said))


def read_gate(folder: Path) -> Gate:
    """A gate's folder. UserError where it is none, or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / GATE_FILE).is_file():
        raise UserError(
            f"{folder} is no gate: {GATE_FILE} is missing. Train one with `python -m fedfinlora gate DIR --adapter …`."
        )
    try:
        said = from_json(GateRecord, read_json(folder / GATE_FILE), GATE_FILE)
        tensors = load_file(folder / WEIGHTS_FILE)
        weight, bias = tensors[WEIGHT], tensors[BIAS]
    except (UserError, OSError, SafetensorError, KeyError, TypeError, AttributeError) as error:
        # the last two: a type of number that NumPy does not have
        raise UserError(f"{folder} is a damaged gate ({str(error).rstrip('.')}). Train it again.") from error
    rows, hidden = weight.shape if weight.ndim == 2 else (0, 0)
    count = len(said.names)
    if not (rows and hidden and count == len(said.adapters) > 0 and rows % count == 0 and bias.shape == (rows,)):
        raise UserError(f"{folder} is a damaged gate: its tensors do not fit its adapters. Train it again.")
    if not all(tensor.dtype == np.float32 and np.isfinite(tensor).all() for tensor in (weight, bias)):
        raise UserError(f"{folder} is a damaged gate: its values are not all finite float32. Train it again.")
    losses = said.first_loss, said.last_loss
    return Gate(weight, bias, said.base, said.names, said.adapters, said.rows, said.steps, losses, said.seed)


def in_order_of(
    gate: Gate, folder: Path, adapters: Mapping[str, Path], settings: Mapping[str, PeftConfig]
) -> list[str]:
    """The labels of `adapters` (label -> PEFT folder) in the gate's order, `settings` being what each is computed with.
    UserError for a gate of other adapters, or of these with other settings.
    """
    label_of = {adapter_id(place, settings[label]): label for label, place in adapters.items()}
    if set(label_of) == set(gate.adapters):
        return [label_of[found] for found in gate.adapters]
    was = {found: name for found, name in zip(gate.adapters, gate.names, strict=True) if found not in label_of}
    extra, changed = list[str](), list[str]()
    for found, label in sorted(label_of.items(), key=lambda item: item[1]):
        if found in gate.adapters:
            continue
        tensors, _, own = found.partition(" ")
        same = next((other for other in was if other.partition(" ")[0] == tensors), "")
        if same:
            del was[same]
            changed.append(f"{label} is now {own}, and was {same.partition(' ')[2] or 'of unknown settings'}")
        else:
            extra.append(label)
    others = sorted(set(extra) & set(was.values()))
    extra, left = ([name for name in names if name not in others] for names in (extra, was.values()))
    faults = [f"it does not know {', '.join(extra)}"] if extra else []
    faults += [f"it weighs {', '.join(left)} too, which is not among --adapter"] if left else []
    faults += [f"{name} had other tensors" for name in others]
    raise UserError(f"{folder} is a gate for other adapters: {' and '.join([*faults, *changed])}. Train one for these.")


def adapter_id(folder: Path, peft: PeftConfig) -> str:
    """What an adapter computes: the SHA-256 of its tensors file, then what scales it and where it is, such as
    "… lora rank=8 alpha=16 on k_proj,q_proj".
    """
    tensors = sha256_of((folder / WEIGHTS_FILE).read_bytes())
    return f"{tensors} {peft.method} rank={peft.rank} alpha={peft.alpha} on {','.join(sorted(peft.target_modules))}"


def xlora_config(adapters: int, hidden: int, places: Sequence[str] = ()) -> peft.XLoraConfig:
    """The paper's gate: one linear layer, weights for each adapter in each layer."""
    from peft import XLoraConfig

    named = {str(number): place for number, place in enumerate(places or [""] * adapters)}
    return XLoraConfig(
        hidden_size=hidden, adapters=named, layerwise_scalings=True, xlora_depth=1, task_type="CAUSAL_LM"
    )


@contextmanager
def gated(
    model: nn.Module, adapters: Sequence[tuple[peft.LoraConfig, Tensors]], gate: Gate | None = None
) -> Iterator[Any]:
    """The session's model with the adapters under a gate, as a GatedModel in eval mode, of which only the gate is
    trained; afterwards the model is as it was. Without `gate` it is the untrained one. UserError where it does not fit.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from peft.tuners.xlora.classifier import XLoraClassifier
    from peft.tuners.xlora.layer import XLoraLinearLayer

    hidden = int(cast(Any, model).config.hidden_size)
    config = xlora_config(len(adapters), hidden)
    with experts_in(model, adapters) as names:
        cast(Any, model).base_model.set_adapter(names)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        device = next(model.parameters()).device
        with torch.random.fork_rng(devices=[]):
            classifier = XLoraClassifier(model, config, len(names), len(layers), device).float()
        linear = cast(Any, classifier.layers)[0]
        if gate is not None and tuple(gate.weight.shape) != tuple(linear.weight.shape):
            raise UserError(
                f"The gate has {gate.weight.shape[0]} outputs of {gate.weight.shape[1]} inputs, these adapters on this "
                f"model need {linear.weight.shape[0]} of {linear.weight.shape[1]}. Train a gate for them."
            )
        with torch.no_grad():
            for parameter, value in zip((linear.weight, linear.bias), _values(gate), strict=True):
                parameter.zero_() if value is None else parameter.copy_(torch.from_numpy(value))
        switch = SimpleNamespace(disabled=False, scalings=None)
        former = [vars(layer).get("forward") for layer in layers]
        for number, layer in enumerate(layers):
            own = XLoraLinearLayer(cast(Any, switch), cast(Any, layer), layer.forward, number, config)
            layer.forward = _with_scalings(own, switch)  # type: ignore[method-assign]
        try:
            yield gated_model(model, classifier, switch).eval()
        finally:
            for layer, forward in zip(layers, former, strict=True):
                vars(layer).pop("forward")
                if forward is not None:
                    layer.forward = forward  # type: ignore[method-assign]


def gated_model(model: nn.Module, classifier: XLoraClassifier, switch: SimpleNamespace) -> nn.Module:
    """Both passes as one module that is called like a causal language model of transformers."""
    from torch import nn as torch_nn

    class GatedModel(torch_nn.Module):
        """Keys and values are those of both passes: twice the layers, the second pass's behind the first's."""

        def __init__(self) -> None:
            super().__init__()
            self.adapted, self.gate = model, classifier
            self.layers = int(cast(Any, model).config.num_hidden_layers)
            self.config = copy.copy(cast(Any, model).config)
            self.config.num_hidden_layers = 2 * self.layers
            self.generation_config = cast(Any, model).generation_config
            self.dtype = cast(Any, model).dtype

        def forward(self, input_ids: torch.Tensor, plan: AttentionPlan | None = None, **how: Any) -> Any:
            """Logits as transformers gives them."""
            import torch

            base = cast(Any, model).get_base_model()
            decoder = getattr(base, base.base_model_prefix)
            keep = how.pop("logits_to_keep", 0)
            switch.disabled = True
            try:
                with torch.no_grad():
                    hidden = decoder(input_ids=input_ids, **how, **_with(plan)).last_hidden_state
            finally:
                switch.disabled = False
            seen = SimpleNamespace(hidden_states=(hidden.float(),))
            switch.scalings = self.gate(seen, input_ids=input_ids)
            second = None if plan is None else SecondPass(plan, self.layers)
            return base(input_ids=input_ids, logits_to_keep=keep, **how, **_with(second))

    return GatedModel()


class SecondPass:
    """The attention of the second pass: its layers are numbered behind those of the first."""

    def __init__(self, plan: AttentionPlan, layers: int) -> None:
        self.plan, self.layers = plan, layers

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """As `fedfinlora.model.attention.AttentionPlan`."""
        return self.plan.attend(self.layers + layer, query, key, value, scaling)


def _with(plan: AttentionPlan | None) -> dict[str, Any]:
    return {} if plan is None else {"plan": plan}


def _with_scalings(layer: Any, switch: SimpleNamespace) -> Any:
    """PEFT's gated layer under the weights of the pass: (1, T, layers, adapters)."""

    def forward(x: torch.Tensor, *args: Any, **how: Any) -> Any:
        scalings = None if switch.disabled else switch.scalings.to(x.device)
        return layer.forward(x, *args, scalings=scalings, **how)

    return forward


def _values(gate: Gate | None) -> tuple[Array | None, Array | None]:
    return (None, None) if gate is None else (np.array(gate.weight), np.array(gate.bias))


def _plain(value: Any) -> Any:
    """Of adapter_config.json: sets as sorted lists, enums as their values."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)
