"""What `bench gpu` checks before it measures anything: four layers with grouped heads against a float32 reference.

Every check is one number that must stay within its limit: a relative difference of norms, unless its name says
otherwise. bitsandbytes' layers are compared with a reference that holds the dequantized values, so what is left is the
rounding of the arithmetic. A gradient of many rows cancels, and rounding does not: where plain rows in transformers,
on the same device and layers, are further from float32 than the limit, ours may be ROOM times as far.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks.benches.gpu_reference import Reference, loaded_by_peft, reference_base, reference_of
from benchmarks.benches.gpu_setting import PRECISIONS, SMALL, config_of, free, rows_of
from benchmarks.benches.gpu_ties import tie_limit, where_they_part
from eval.decoding.generation import generate
from eval.decoding.labels import label_logprobs
from eval.decoding.plain_generation import generate_plainly
from eval.decoding.steps import LEAST_FIXED_STEPS
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import Vector, save_adapter, trainable, write_adapter
from fedfinlora.model.devices import pick_device
from fedfinlora.model.loading import Session, get_session, initial_adapter
from fedfinlora.model.packing import Example, make_pack, split_rows
from fedfinlora.model.quantized import unpack_on_gpus
from fedfinlora.privacy.mechanism import answer_means, pack_units, token_losses, tokens_of
from fedfinlora.privacy.per_example import keeping, norms_of, unit_gradients
from fedfinlora.privacy.unit_passes import repeated_tokens, shared_products, spans_of_lengths
from fedfinlora.seeds import generator
from fedfinlora.train.gradient_step import answer_loss
from fedfinlora.train.memory import checkpoint_first, decoder_layers, own_checkpointing

FLOAT32_LIMIT, LOW_PRECISION_LIMIT = 1e-4, 2e-2
ROOM = 1.5
PLAIN_LIMIT = 0.1
"""Farthest that plain rows in transformers may be from float32."""
CPU_SHARE, GPU_SHARE = 0.08, 0.3
"""Of the lengths of `gpu_setting.SETS`."""
CPU_ROWS = (0, 1, 4, 8, 9, 10, 12)
"""Of the mixed set on a CPU: short rows with and without a common instruction, questions on one report, a report."""
UNITS, ANSWER_BUDGET = 5, LEAST_FIXED_STEPS + 2
"""The budget leaves room for steps of fixed shape."""


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    value: float
    limit: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """False for NaN too."""
        return self.value <= self.limit

    def shown(self) -> dict[str, Any]:
        """Plain values for JSON, null for what is not finite."""
        return {**asdict(self), "value": self.value if math.isfinite(self.value) else None, "ok": self.ok}


def check_precision(precision: str, device: str, seed: int = 0) -> list[Check]:
    """All checks of one of PRECISIONS on a device."""
    config = config_of(SMALL, precision, device, seed=seed)
    limit = FLOAT32_LIMIT if precision == "fp32" else LOW_PRECISION_LIMIT
    session = get_session(config)
    adapter = moved_adapter(session, config)
    cpu = session.device.type == "cpu"
    vocabulary = cast(Any, session.model).config.vocab_size
    rows = rows_of("mixed", vocabulary, seed, CPU_SHARE if cpu else GPU_SHARE)
    rows = tuple(rows[number] for number in CPU_ROWS) if cpu else rows
    reference = reference_of(session, reference_base(session), adapter)
    found = [
        *_losses_and_gradients(session, reference, rows, limit),
        *_unit_norms(session, reference, rows[:UNITS], limit),
        *_generation(session, reference, rows),
        _labels(session, reference, rows[:UNITS], limit),
        *_saved(session, config, adapter, reference, rows[0], limit),
        *([_int8_alone(config, session.device)] if precision == "int8" else []),
        *([_unpacked(session, rows[0], limit)] if precision == "nf4" else []),
    ]
    return [replace(check, name=f"{precision}: {check.name}") for check in found]


def check_frozen_a(device: str) -> list[Check]:
    """peft.freeze_a: A is never sent, so every device must draw the same bytes."""
    frozen = []
    for place in (device, "cpu"):
        session = get_session(config_of(SMALL, "fp32", place, freeze_a=True))
        frozen.append(dict(session.frozen))
        free(session.device)
    one, other = frozen
    differing = sum(not np.array_equal(one[name], other[name]) for name in one)
    return [Check("frozen A: tensors that differ between this device and the CPU", differing, 0, f"of {len(one)}")]


def moved_adapter(session: Session, config: Config) -> Vector:
    """The run's start moved by a little noise, written into the model: with B zero the gradient of A is zero too."""
    start = initial_adapter(session, config)
    start += generator(config.seed, "bench gpu adapter").normal(0.0, 0.02, start.size).astype(start.dtype)
    write_adapter(session.model, start)
    return start


def _losses_and_gradients(
    session: Session, reference: Reference, rows: Sequence[Example], limit: float
) -> Iterator[Check]:
    """Packed, separate and checkpointed passes: their loss and their gradient."""
    answers = sum(len(row.answer_ids) for row in rows)
    expected = reference.row_losses(rows).sum() / answers
    expected_gradient = reference.gradient(expected)
    model, device = session.model, session.device
    layers = decoder_layers(model)

    def taken(packs: Sequence[Sequence[Example]], checkpointed: int = 0) -> tuple[float, torch.Tensor]:
        with own_checkpointing(layers), training(model):
            checkpoint_first(layers, checkpointed)
            total = 0.0
            for pack in packs:
                loss = answer_loss(model, make_pack(pack, device)) / answers
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            return total, gradient_of(model)

    plain = plain_gradient(session, rows, answers)
    by_rounding = distance(plain, expected_gradient)
    room = max(limit, ROOM * by_rounding)
    packs = list(split_rows(rows, 4096))
    packed, packed_gradient = taken(packs)
    separate, separate_gradient = taken([[row] for row in rows])
    _, checkpointed_gradient = taken(packs, len(layers))
    yield Check("gradient of plain rows in transformers", by_rounding, PLAIN_LIMIT)
    yield Check("packed loss", abs(packed / float(expected.detach()) - 1), limit)
    yield Check("packed gradient", distance(packed_gradient, expected_gradient), room)
    yield Check("separate loss", abs(separate / float(expected.detach()) - 1), limit)
    yield Check("separate gradient", distance(separate_gradient, expected_gradient), room)
    yield Check("gradient with checkpointed layers", distance(checkpointed_gradient, packed_gradient), limit / 10)


def plain_gradient(session: Session, rows: Sequence[Example], answers: int) -> torch.Tensor:
    """(layout.size,) of the mean loss, row by row, with transformers' own attention."""
    call = cast(Callable[..., Any], session.model)
    with training(session.model):
        for row in rows:
            ids = torch.tensor([[*row.prompt_ids, *row.answer_ids]], device=session.device)
            logits = call(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, len(row.prompt_ids) :], reduction="sum")
            (loss / answers).backward()
        return gradient_of(session.model)


def _unit_norms(session: Session, reference: Reference, rows: Sequence[Example], limit: float) -> Iterator[Check]:
    """Norms of the rows' own gradients, which privacy=example clips: alone, among others, and by plain autograd."""
    model, device = session.model, session.device

    def by_hooks(units: Sequence[Sequence[Example]]) -> list[float]:
        with training(model), keeping(model) as kept:
            with shared_products(model, repeated_tokens([row for unit in units for row in unit])):
                pack = pack_units(units, device)
                (token_losses(model, pack) * answer_means(pack)).sum().backward()  # type: ignore[no-untyped-call]
            return norms_of(unit_gradients(kept, spans_of_lengths([tokens_of(unit) for unit in units])))

    def by_autograd(row: Example) -> float:
        with training(model):
            (answer_loss(model, make_pack([row], device)) / len(row.answer_ids)).backward()  # type: ignore[no-untyped-call]
            return float(gradient_of(model).norm())

    expected = [float(reference.gradient(reference.row_losses([row])[0] / len(row.answer_ids)).norm()) for row in rows]
    for name, norms in (
        ("unit norms among others", by_hooks([(row,) for row in rows])),
        ("unit norms alone", [by_hooks([(row,)])[0] for row in rows]),
        ("unit norms by autograd", [by_autograd(row) for row in rows]),
    ):
        yield Check(name, max(abs(one / other - 1) for one, other in zip(norms, expected, strict=True)), limit)


def _generation(session: Session, reference: Reference, rows: Sequence[Example]) -> Iterator[Check]:
    """Our decoding, in steps that grow and in steps of fixed shape (on CUDA: a graph), next to transformers'
    `generate`, row by row. Where they part it is wrong, unless the float32 reference itself has a near tie there.
    """
    prompts = [row.prompt_ids for row in rows]
    ends = [session.tokenizer.eos_token_id]
    theirs = list(generate_plainly(session.model, prompts, ANSWER_BUDGET, ends))
    for fixed, steps in ((False, "growing steps"), (True, "steps of fixed shape")):
        answers = generate(session.model, prompts, ANSWER_BUDGET, ends, fixed=fixed).answers
        with torch.no_grad():
            parts = [
                where_they_part(reference.logits, ends[0], prompt, answer.tokens, other)
                for prompt, answer, other in zip(prompts, answers, theirs, strict=True)
                if answer.tokens != other
            ]
        wrong = sum(not part.is_near_tie(tie_limit(session)) for part in parts)
        largest = max([part.gap for part in parts], default=0.0)
        note = f"{len(parts)} of {len(prompts)} answers part, by {largest:.2g} standard deviations at most"
        yield Check(f"answers in {steps} that part from generate without a near tie", wrong, 0, note)


def _labels(session: Session, reference: Reference, rows: Sequence[Example], limit: float) -> Check:
    """Log-probabilities of three labels of different lengths after each prompt."""
    labels = [rows[0].answer_ids[:1], rows[1].answer_ids[:2], rows[0].answer_ids + rows[1].answer_ids]
    prompts = [row.prompt_ids for row in rows]
    found = torch.tensor(label_logprobs(session.model, prompts, labels))
    with torch.no_grad():
        expected = torch.tensor(
            [[float(reference.answer_logprobs(prompt, label).sum()) for label in labels] for prompt in prompts]
        )
    return Check("label log-probabilities", distance(found, expected), limit)


def _saved(
    session: Session, config: Config, adapter: Vector, reference: Reference, row: Example, limit: float
) -> Iterator[Check]:
    """The saved folder in plain PEFT: the same numbers as the reference, and the logits of this device."""
    ids = torch.tensor([row.read_ids])
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folder = Path(scratch) / "adapter"
        save_adapter(folder, adapter, session.layout, config.peft, config.model, session.frozen)
        plain = loaded_by_peft(reference_base(session), folder)
        expected, found = reference.logits(ids), plain.logits(ids)
        here = cast(Callable[..., Any], session.model)(input_ids=ids.to(session.device), use_cache=False).logits
    yield Check("logits of the saved folder in plain PEFT", distance(found, expected), 0.0)
    yield Check("logits on this device", distance(here.float().cpu(), expected), limit)


def _int8_alone(config: Config, device: torch.device) -> Check:
    """Largest change of an int8 layer's output for one row when a row with outliers joins the batch."""
    from bitsandbytes.nn.modules import Linear8bitLt

    rng = torch.Generator().manual_seed(config.seed)
    layer = Linear8bitLt(256, 256, bias=False, has_fp16_weights=False, threshold=config.model.int8_threshold)
    layer.weight.data.normal_(0.0, 0.05, generator=rng)
    layer = layer.to(device).eval()
    rows = torch.randn(64, 256, generator=rng)
    rows[1, ::7] *= 60.0
    rows = rows.to(device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    with torch.no_grad():
        among, alone = layer(rows)[0], layer(rows[[0, *range(2, 64)]])[0]
    change = float((among.float() - alone.float()).abs().max())
    return Check("an int8 row's change when an outlier row joins (absolute)", change, 0.0)


def _unpacked(session: Session, row: Example, limit: float) -> Check:
    """Logits after the 4-bit weights have become ordinary ones (model.unpack), next to those before; the session's
    model stays so.
    """
    ids = torch.tensor([row.read_ids], device=session.device)
    base = cast(Any, session.model).get_base_model()
    with torch.no_grad():
        packed = base(input_ids=ids, use_cache=False).logits
        unpack_on_gpus(base, "yes")
        unpacked = base(input_ids=ids, use_cache=False).logits
    return Check("logits with unpacked weights", distance(unpacked, packed), limit)


class training:
    """train() inside, eval() and no gradients afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.model.train()

    def __exit__(self, *_: object) -> None:
        self.model.zero_grad(set_to_none=True)
        self.model.eval()


def gradient_of(model: nn.Module) -> torch.Tensor:
    """(layout.size,) float32 on the CPU: what lies in the trainable parameters' `grad`."""
    parts = [cast(torch.Tensor, parameter.grad).detach().float().flatten() for parameter in trainable(model).values()]
    return torch.cat(parts).cpu()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def correctness(device_name: str, precisions: Sequence[str] = tuple(PRECISIONS)) -> dict[str, Any]:
    """The section of `bench gpu`: all checks."""
    device = pick_device(device_name)
    checks = []
    for precision in precisions:
        checks += check_precision(precision, device_name)
        free(device)
    checks += check_frozen_a(device_name)
    return {"checks": [check.shown() for check in checks], "wrong": [check.name for check in checks if not check.ok]}
