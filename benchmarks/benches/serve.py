"""`bench serve`: eight adapters in one batch, next to one adapter for the whole batch and to PEFT's adapter switching.

The same prompts and the same number of tokens in each turn; the turns alternate. `ratio` is tokens a second with eight
adapters over those with one; PEFT answers the eight prompts one after the other, each with its own adapter.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.benches.paired import alternately, judged
from eval.decoding.plain_generation import generate_plainly
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import save_adapter
from fedfinlora.model.embedded import embedded_folder, is_embedded
from fedfinlora.model.loading import forget, get_session, load_base
from fedfinlora.model.quiet import quiet_libraries
from fedfinlora.seeds import generator
from fedfinlora.serving.engine import Engine, Request
from fedfinlora.serving.many_adapters import ManyAdapters

ADAPTERS, TOKENS, PROMPT_TOKENS, TURNS = 8, 16, 64, 5
"""Five turns give a spread (`judged` needs four)."""
SWITCHING_TURNS = 1
"""PEFT answers one prompt after the other, which takes as long as two turns: only in so many turns."""
NEVER = 5
"""A token that does not come: every answer has TOKENS tokens."""


def bench_serve(overrides: Sequence[str]) -> Mapping[str, Any]:
    """Tokens a second: {"ratio": eight over one, "ours": …, "reference": …}."""
    config = compose(["model.quantization=none", "peft=lora", *overrides])
    place = tempfile.TemporaryDirectory()
    folders = _adapters(config, Path(place.name))
    model, _ = load_base(config.model)
    plain = _plain(config, folders)
    configuration: Any = model.config
    draw = generator(0, "bench serve")
    prompts = [tuple(draw.integers(3, configuration.vocab_size, PROMPT_TOKENS).tolist()) for _ in range(ADAPTERS)]
    names = list(folders)
    engine = Engine(model, ManyAdapters(model, config.model.path, folders, ADAPTERS), [], ADAPTERS, ADAPTERS)
    ours: list[float] = []
    one: list[float] = []
    switching: list[float] = []
    try:
        for turn in range(-1, TURNS):  # the first warms up
            pair = alternately(
                turn,
                lambda: _served(engine, prompts, names),
                lambda: _served(engine, prompts, names[:1] * ADAPTERS),
            )
            if turn >= 0:
                ours.append(pair[0])
                one.append(pair[1])
                print(f"turn {turn + 1} of {TURNS}: {pair[0]:.1f} s, one adapter {pair[1]:.1f} s", file=sys.stderr)
            if 0 <= turn < SWITCHING_TURNS:
                switching.append(_switching(plain, prompts, names))
    finally:
        engine.close()
        place.cleanup()
    tokens = ADAPTERS * TOKENS
    return {
        **judged(ours, one),
        "ours": {"adapters": ADAPTERS, "tokens_per_s": tokens / statistics.median(ours)},
        "reference": {"name": "one adapter", "tokens_per_s": tokens / statistics.median(one)},
        "peft_switching": {
            "tokens_per_s": tokens / statistics.median(switching),
            "ratio": judged(ours[:SWITCHING_TURNS], switching)["ratio"],
        },
        "batch": ADAPTERS, "prompt_tokens": PROMPT_TOKENS, "new_tokens": TOKENS, "model": config.model.name,
    }  # fmt: skip


def _adapters(config: Config, folder: Path) -> dict[str, Path]:
    """Eight random adapters of the configured kind."""
    session = get_session(config)
    folders = {}
    for number in range(ADAPTERS):
        vector = generator(number, "bench serve adapter").normal(0.0, 0.02, session.layout.size)
        folders[f"adapter-{number}"] = folder / f"adapter-{number}"
        save_adapter(folder / f"adapter-{number}", vector.astype(np.float32), session.layout, config.peft, config.model)
    forget()
    return folders


def _plain(config: Config, folders: Mapping[str, Path]) -> Any:
    """Transformers' model with all adapters loaded by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = config.model.path
    base = AutoModelForCausalLM.from_pretrained(embedded_folder(path) if is_embedded(path) else path)
    (first, folder), *others = folders.items()
    with quiet_libraries():
        model = PeftModel.from_pretrained(base, folder, adapter_name=first)
        for name, other in others:
            model.load_adapter(other, adapter_name=name)
    return model.eval()


def _served(engine: Engine, prompts: Sequence[tuple[int, ...]], names: Sequence[str]) -> float:
    """Seconds until every prompt has its tokens."""
    requests = [Request(prompt, name, TOKENS) for prompt, name in zip(prompts, names, strict=True)]
    start = time.perf_counter()
    for request in requests:
        engine.submit(request)
    for request in requests:
        while isinstance(request.tokens.get(), int):
            pass
    return time.perf_counter() - start


def _switching(model: Any, prompts: Sequence[tuple[int, ...]], names: Sequence[str]) -> float:
    """Seconds of one prompt after the other, each with its own adapter."""
    start = time.perf_counter()
    for prompt, name in zip(prompts, names, strict=True):
        model.set_adapter(name)
        list(generate_plainly(model, [prompt], TOKENS, [NEVER]))
    return time.perf_counter() - start
