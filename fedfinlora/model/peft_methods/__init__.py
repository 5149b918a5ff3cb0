"""PEFT methods by name; docs/extending.md walks through adding one: a file with a `Lora`, listed here and in
`fedfinlora.config.peft.PEFT_METHODS`.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedfinlora.model.peft_methods.lora import Lora
from fedfinlora.model.peft_methods.lora_xs import LoraXs

METHODS: dict[str, Lora] = {
    "lora": Lora(),
    "qlora": Lora(),
    "dora": Lora({"use_dora": True}, "dora"),
    "rslora": Lora({"use_rslora": True}, "rslora"),
    "lora_xs": LoraXs(),
}


def method_of(names: Iterable[str]) -> Lora:
    """The method whose trained tensors have these saved names; LoRA where it is none's."""
    known = tuple(names)
    return next(
        (method for method in METHODS.values() if all(name.endswith(method.trained) for name in known)), METHODS["lora"]
    )
