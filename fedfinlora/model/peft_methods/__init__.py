"""PEFT methods by name; docs/extending.md walks through adding one: a file with a `Lora`, listed here and in
`fedfinlora.config.peft.PEFT_METHODS`.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedfinlora.model.peft_methods.eva import Eva
from fedfinlora.model.peft_methods.hira import Hira
from fedfinlora.model.peft_methods.ir_qlora import IrQlora
from fedfinlora.model.peft_methods.loftq import Loftq
from fedfinlora.model.peft_methods.lora import Lora
from fedfinlora.model.peft_methods.lora_xs import LoraXs
from fedfinlora.model.peft_methods.miss import Miss
from fedfinlora.model.peft_methods.olora import Olora
from fedfinlora.model.peft_methods.pissa import Pissa
from fedfinlora.model.peft_methods.qalora import QaLora
from fedfinlora.model.peft_methods.shira import Shira
from fedfinlora.model.peft_methods.vera import Vera

METHODS: dict[str, Lora] = {
    "lora": Lora(),
    "qlora": Lora(),
    "dora": Lora({"use_dora": True}, "dora"),
    "rslora": Lora({"use_rslora": True}, "rslora"),
    "lora_xs": LoraXs(),
    "pissa": Pissa(),
    "olora": Olora(),
    "eva": Eva(),
    "loftq": Loftq(),
    "qalora": QaLora(),
    "ir_qlora": IrQlora(),
    "vera": Vera(),
    "miss": Miss(),
    "hira": Hira(saved_as="hira"),
    "shira": Shira(saved_as="shira"),
}


def method_of(names: Iterable[str]) -> Lora:
    """The method whose trained tensors have these saved names; LoRA where it is none's."""
    known = tuple(names)
    return next(
        (method for method in METHODS.values() if all(name.endswith(method.trained) for name in known)), METHODS["lora"]
    )
