"""Several adapters on one base model, a different one for each row of a batch (S-LoRA: Sheng et al. 2024, section 4).

A of all adapters lie in one tensor a layer, (room + 1, rank, d_in), and B likewise, (room + 1, d_out, rank). A pass
takes each row's by its slot. Slot 0 is all zero: the base model alone. Ranks are padded with zeros, which changes no
product.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fedfinlora.errors import UserError
from fedfinlora.model.adapter_folder import base_name, same_base
from fedfinlora.model.plain_lora import PlainLora, plain_lora

if TYPE_CHECKING:
    from torch import nn

BASE_SLOT = 0


class ManyAdapters:
    """The adapters of a base model by name, `room` of them in memory at a time; the one not used longest makes room."""

    def __init__(self, model: nn.Module, base: str, folders: Mapping[str, Path], room: int) -> None:
        """Put room for adapters into the linear layers of `model`. UserError names an adapter that does not fit it."""
        self.folders = dict(folders)
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._room = room
        modules = dict(model.named_modules())
        shapes: dict[str, int] = {}
        for name, folder in self.folders.items():
            adapter = plain_lora(folder)
            made_for = base_name(folder)
            if made_for and not same_base(made_for, base):
                raise UserError(f"The adapter {name} in {folder} was made for {made_for}, and the base here is {base}.")
            for path, (a, b) in adapter.layers.items():
                weight: Any = getattr(modules.get(path), "weight", None)
                features = (getattr(modules.get(path), "in_features", 0), getattr(modules.get(path), "out_features", 0))
                if weight is None or features != (a.shape[1], b.shape[0]):
                    raise UserError(f"The adapter {name} in {folder} does not fit {base}: its layer {path}.")
                shapes[path] = max(shapes.get(path, 1), len(a))
        self._rows = Rows()
        self._layers: dict[str, Any] = {
            path: _row_lora(modules[path], rank, room + 1, self._rows) for path, rank in shapes.items()
        }
        for path, layer in self._layers.items():
            parent, _, last = path.rpartition(".")
            setattr(modules[parent], last, layer)

    def slot(self, name: str, in_use: Collection[str]) -> int | None:
        """The slot of an adapter, which is loaded if it is not in memory; "" is the base model. None while every slot
        belongs to an adapter in use.
        """
        if not name:
            return BASE_SLOT
        if name in self._slots:
            self._slots.move_to_end(name)
            return self._slots[name]
        if len(self._slots) < self._room:
            slot = len(self._slots) + 1
        else:
            idle = next((other for other in self._slots if other not in in_use), None)
            if idle is None:
                return None
            slot = self._slots.pop(idle)
        self._load(slot, plain_lora(self.folders[name]))
        self._slots[name] = slot
        return slot

    def choose(self, slots: Sequence[int]) -> None:
        """The slot of each row of the passes that follow."""
        import torch

        device = next(iter(self._layers.values())).a.device if self._layers else None
        self._rows.slots = torch.tensor(slots, device=device)
        self._rows.all_base = not any(slots)

    def _load(self, slot: int, adapter: PlainLora) -> None:
        import torch

        with torch.no_grad():
            for path, layer in self._layers.items():
                layer.a[slot].zero_()
                layer.b[slot].zero_()
                if path in adapter.layers:
                    a, b = (torch.from_numpy(each.copy()) for each in adapter.layers[path])
                    layer.a[slot, : len(a)] = a.to(layer.a)
                    layer.b[slot, :, : len(a)] = b.to(layer.b)


class Rows:
    """Which slot each row of a pass has: one object, shared by all layers."""

    slots: Any = None
    all_base: bool = True


def _row_lora(base: Any, rank: int, slots: int, rows: Rows) -> Any:
    """A linear layer that adds B A x of each row's own adapter."""
    import torch
    from torch import nn

    floating = base.weight.dtype if base.weight.is_floating_point() else torch.bfloat16
    kind = floating if base.weight.device.type != "cpu" else torch.float32

    class RowLora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = base
            self.register_buffer("a", torch.zeros(slots, rank, base.in_features, dtype=kind, device=base.weight.device))
            self.register_buffer(
                "b", torch.zeros(slots, base.out_features, rank, dtype=kind, device=base.weight.device)
            )

        def forward(self, x: Any) -> Any:
            """x: (rows, tokens, d_in) -> (rows, tokens, d_out)."""
            found = self.base(x)
            if rows.all_base:
                return found
            a, b = cast(Any, self.a)[rows.slots], cast(Any, self.b)[rows.slots]
            added = torch.bmm(torch.bmm(x.to(kind), a.transpose(1, 2)), b.transpose(1, 2))
            return found + added.to(found.dtype)

    return RowLora()
