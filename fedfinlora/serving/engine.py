"""The decoding loop of `serve`: requests join a batch between two tokens and leave it when they end (Yu et al. 2022).

One thread owns the model. A request is read by itself; its keys and values then join those of the other rows, padded on
the left. Every step gives each row one token, which depends on the others by floating-point rounding alone.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.serving.many_adapters import ManyAdapters

log = logging.getLogger(__name__)


class Busy(UserError):
    """As many requests wait as may wait."""


@dataclass
class Request:
    """What is asked, and where the answer goes."""

    prompt: Sequence[int]
    """Token ids."""
    adapter: str
    """"" is the base model."""
    most_tokens: int
    temperature: float = 0.0
    """0: the most probable token."""
    top_p: float = 1.0
    seed: int | None = None
    tokens: queue.SimpleQueue[int | str] = field(default_factory=queue.SimpleQueue)
    """Token ids as they come; then why it ended: "stop", "length", "cancelled" or "failed"."""
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Row:
    request: Request
    slot: int
    length: int
    """Tokens whose keys and values are kept."""
    last: int
    """The newest token, which the next step reads."""
    count: int = 1
    generator: Any = None


class Engine:
    """Decodes for many requests at a time, on a thread of its own."""

    def __init__(
        self, model: Any, adapters: ManyAdapters, end_ids: Sequence[int], most_rows: int, most_waiting: int
    ) -> None:
        """`most_rows` are decoded at a time, `most_waiting` wait for their turn; more are refused (`Busy`)."""
        self._model, self._adapters, self._end_ids = model, adapters, set(end_ids)
        self._most_rows, self._most_waiting = most_rows, most_waiting
        self._waiting: deque[Request] = deque()
        self._rows: list[_Row] = []
        self._cache: Any = None
        self._mask: Any = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="decoding", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Ask for an answer. Busy where too many wait."""
        with self._changed:
            if self._closed:
                raise Busy("The server ends.")
            if len(self._waiting) >= self._most_waiting:
                raise Busy(f"{self._most_waiting} requests wait already. Try again later.")
            self._waiting.append(request)
            self._changed.notify()

    def close(self) -> None:
        """End the thread; requests that are not done end as cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        import torch

        with torch.inference_mode():
            while True:
                with self._changed:
                    while not (self._closed or self._rows or self._waiting):
                        self._changed.wait()
                    if self._closed:
                        break
                try:
                    self._admit()
                    if self._rows:
                        self._step()
                except Exception:
                    log.exception("decoding failed")
                    self._end_rows("failed")
        self._end_rows("cancelled")
        for request in self._waiting:  # nothing is added once the engine is closed
            request.tokens.put("cancelled")

    def _admit(self) -> None:
        """Read the prompts of those whose turn it is, in their order, while there are rows and slots for them."""
        while self._waiting and len(self._rows) < self._most_rows:
            request = self._waiting[0]
            if request.cancelled.is_set():
                self._waiting.popleft()
                request.tokens.put("cancelled")
                continue
            slot = self._adapters.slot(request.adapter, {row.request.adapter for row in self._rows})
            if slot is None:
                return
            self._waiting.popleft()
            try:
                self._read(request, slot)
            except Exception:
                log.exception("a prompt could not be read")
                request.tokens.put("failed")

    def _read(self, request: Request, slot: int) -> None:
        import torch
        from transformers import DynamicCache

        device = self._model.device
        cache = DynamicCache()
        self._adapters.choose([slot])
        ids = torch.tensor([list(request.prompt)], device=device)
        logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        row = _Row(request, slot, len(request.prompt), 0)
        if request.temperature > 0:
            row.generator = torch.Generator(device=device)
            if request.seed is not None:
                row.generator.manual_seed(request.seed)
        row.last = self._pick(row, logits)
        if self._give(row):
            return
        mask = torch.ones(1, row.length, dtype=torch.long, device=device)
        self._cache, self._mask = (cache, mask) if not self._rows else self._joined(cache, mask)
        self._rows.append(row)

    def _joined(self, cache: Any, mask: Any) -> tuple[Any, Any]:
        """The kept keys and values with those of one more row, all as long as the longest."""
        import torch
        from torch.nn.functional import pad

        length = max(self._mask.shape[1], mask.shape[1])

        def padded(kept: Any) -> Any:
            return pad(kept, (0, 0, length - kept.shape[-2], 0))

        for ours, new in zip(self._cache.layers, cache.layers, strict=True):
            ours.keys = torch.cat([padded(ours.keys), padded(new.keys)])
            ours.values = torch.cat([padded(ours.values), padded(new.values)])
        return self._cache, torch.cat([pad(each, (length - each.shape[1], 0)) for each in (self._mask, mask)])

    def _step(self) -> None:
        """One token for each row; rows that end leave."""
        import torch

        device = self._model.device
        self._adapters.choose([row.slot for row in self._rows])
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=1)
        logits = self._model(
            input_ids=torch.tensor([[row.last] for row in self._rows], device=device),
            position_ids=torch.tensor([[row.length] for row in self._rows], device=device),
            attention_mask=self._mask, past_key_values=self._cache, use_cache=True,
        ).logits[:, -1]  # fmt: skip
        best = logits.argmax(-1).tolist()
        stay = []
        for place, row in enumerate(self._rows):
            row.length += 1
            row.count += 1
            row.last = self._pick(row, logits[place]) if row.request.temperature > 0 else best[place]
            if not self._give(row):
                stay.append(place)
        if len(stay) < len(self._rows):
            self._keep(stay)

    def _keep(self, places: list[int]) -> None:
        """Let go of all rows but these, and of padding that none of them needs."""
        import torch

        self._rows = [self._rows[place] for place in places]
        if not places:
            self._cache = self._mask = None
            return
        chosen = torch.tensor(places, device=self._mask.device)
        start = self._mask.shape[1] - max(row.length for row in self._rows)
        self._mask = self._mask[chosen, start:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[chosen, :, start:], layer.values[chosen, :, start:]

    def _give(self, row: _Row) -> bool:
        """Pass the newest token on. Whether the row has ended."""
        request = row.request
        reason = "cancelled" if request.cancelled.is_set() else "stop" if row.last in self._end_ids else ""
        if not reason:
            request.tokens.put(row.last)
            reason = "length" if row.count >= request.most_tokens else ""
        if reason:
            request.tokens.put(reason)
        return bool(reason)

    def _pick(self, row: _Row, logits: Any) -> int:
        """The most probable token, or a sample of the smallest set of tokens that has top_p of the probability (nucleus
        sampling: Holtzman et al. 2020).
        """
        import torch

        request = row.request
        if request.temperature <= 0:
            return int(logits.argmax())
        probabilities, order = (logits.float() / request.temperature).softmax(-1).sort(descending=True)
        before = probabilities.cumsum(0) - probabilities
        probabilities[before >= request.top_p] = 0.0  # the first stays, unless top_p is 0
        return int(order[torch.multinomial(probabilities, 1, generator=row.generator)])

    def _end_rows(self, reason: str) -> None:
        """End what is being decoded; those that wait are answered next."""
        for row in self._rows:
            row.request.tokens.put(reason)
        self._rows, self._cache, self._mask = [], None, None
