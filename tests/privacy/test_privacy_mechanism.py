"""A private step against plain autograd, row by row, and against Opacus."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import set_random_adapter, tiny_config

from fedfinlora.errors import UserError
from fedfinlora.model.adapter import trainable
from fedfinlora.model.loading import Session, get_session
from fedfinlora.model.packing import Example
from fedfinlora.privacy import first_round_check as the_self_test
from fedfinlora.privacy import mechanism as under_test
from fedfinlora.privacy.first_round_check import self_test, units_to_test
from fedfinlora.privacy.grid import Grid
from fedfinlora.privacy.mechanism import (
    NEIGHBOUR_SHARE,
    Mechanism,
    add_units,
    pack_units,
    private_passes,
    private_step,
    token_losses,
)
from fedfinlora.privacy.randomness import Stream, poisson_sample
from fedfinlora.train.memory import footprint

CLIP = 0.5
USED = CLIP * (1 - NEIGHBOUR_SHARE)
"""What a clipped gradient is scaled to."""
ROOMY = 2.0**40
MASKS = bytes(32)


def rows(count: int, seed: int = 0, vocabulary: int = 200) -> list[Example]:
    """Rows of different lengths that begin alike, as prompts do."""
    draw = np.random.default_rng(seed)
    start = tuple(draw.integers(3, vocabulary, 5).tolist())
    return [
        Example(
            start + tuple(draw.integers(3, vocabulary, draw.integers(2, 30)).tolist()),
            tuple(draw.integers(3, vocabulary, draw.integers(1, 4)).tolist()),
            number,
        )
        for number in range(count)
    ]


def session_of(quantization: str = "none", method: str = "lora") -> Session:
    session = get_session(tiny_config(quantization, method))
    set_random_adapter(session)
    return session


def mechanism_of(units: Sequence[Sequence[int]], **values: Any) -> Mechanism:
    given = {
        "clip_norm": CLIP,
        "sampling_rate": 1.0,
        "noise_multiplier": 0.0,
        "seed": 0,
        "bank": "b",
        "reproducible": True,
    }
    given |= {"expected_units": values.get("sampling_rate", 1.0) * len(units)}
    return Mechanism(units=tuple(map(tuple, units)), **{**given, **values})


def grid_of(session: Session, clip: float = CLIP) -> Grid:
    return Grid(clip, 0.0, session.layout.size, 1 - NEIGHBOUR_SHARE)


def zeros(session: Session) -> dict[str, Any]:
    import torch

    return {
        name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in trainable(session.model).items()
    }


def step(
    session: Session, examples: Sequence[Example], mechanism: Mechanism, batch_tokens: int = 4096, memory: float = ROOMY
) -> dict[str, Any]:
    """Gradients of one private step by name, as float64 arrays."""
    private_step(session.model, examples, mechanism, 0, batch_tokens, footprint(session.model), memory)
    found = {
        name: parameter.grad.double().numpy().copy()
        for name, parameter in trainable(session.model).items()
        if parameter.grad is not None
    }
    session.model.zero_grad(set_to_none=True)
    return found


def by_autograd(
    session: Session, units: Sequence[Sequence[Example]], clip: float
) -> tuple[dict[str, Any], list[float]]:
    """(sum of the clipped gradients, norms), each row alone in a padded-free pass by transformers and autograd."""
    import torch

    sums: dict[str, Any] = {}
    norms = []
    for unit in units:
        total: dict[str, Any] = {}
        for row in unit:
            ids = torch.tensor([list(row.prompt_ids + row.answer_ids)])
            logits = session.model(input_ids=ids).logits[0].double()
            first = len(row.prompt_ids)
            losses = [-logits[place - 1].log_softmax(-1)[ids[0, place]] for place in range(first, ids.shape[1])]
            (sum(losses) / len(losses)).backward()
            for name, parameter in trainable(session.model).items():
                assert parameter.grad is not None
                total[name] = total.get(name, 0.0) + parameter.grad.double().numpy()
            session.model.zero_grad(set_to_none=True)
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in total.values()))
        norms.append(norm)
        for name, gradient in total.items():
            sums[name] = sums.get(name, 0.0) + gradient * min(1.0, clip * (1 - NEIGHBOUR_SHARE) / norm)
    return sums, norms


def close(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = 1e-3) -> bool:
    difference = math.sqrt(sum(float(((ours[name] - theirs[name]) ** 2).sum()) for name in theirs))
    return difference <= tolerance * math.sqrt(sum(float((theirs[name] ** 2).sum()) for name in theirs))


@pytest.fixture(autouse=True)
def eval_mode() -> None:
    for quantization in ("none", "nf4", "int8"):
        get_session(tiny_config(quantization)).model.eval()


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_gradient_is_the_mean_of_the_clipped_gradients_of_rows_alone(quantization: str) -> None:
    session, examples = session_of(quantization), rows(9)
    sums, norms = by_autograd(session, [[example] for example in examples], CLIP)
    assert min(norms) < CLIP < max(norms) or min(norms) > CLIP, "some are clipped"
    ours = step(session, examples, mechanism_of([[place] for place in range(9)]))
    assert close(ours, {name: total / 9 for name, total in sums.items()})


def test_norms_are_those_of_all_tensors_together() -> None:
    session, examples = session_of(), rows(6)
    units = [[example] for example in examples]
    _, norms = add_units(session.model, list(enumerate(units)), grid_of(session), zeros(session), MASKS)
    assert norms == pytest.approx(by_autograd(session, units, CLIP)[1], rel=1e-4)


def test_a_customers_rows_are_clipped_together() -> None:
    session, examples = session_of(), rows(8)
    units = [[0, 3, 5], [1], [2, 4, 6, 7]]
    sums, norms = by_autograd(session, [[examples[place] for place in unit] for unit in units], CLIP)
    assert max(norms) > CLIP
    assert close(step(session, examples, mechanism_of(units)), {name: total / 3 for name, total in sums.items()})


@pytest.mark.parametrize("batch_tokens", [1, 40, 100])
def test_the_size_of_physical_batches_changes_nothing(batch_tokens: int) -> None:
    session, examples = session_of(), rows(12)
    how = mechanism_of([[place] for place in range(12)], noise_multiplier=0.7)
    assert close(step(session, examples, how, batch_tokens), step(session, examples, how), 1e-4)


def test_memory_splits_passes_and_changes_nothing() -> None:
    session, examples = session_of(), rows(12)
    how = mechanism_of([[place] for place in range(12)])
    units = [[example] for example in examples]
    small = footprint(session.model).pass_bytes(pack_units(units[:3], "cpu"), 0)
    passes = list(private_passes(session.model, list(enumerate(units)), 4096, footprint(session.model), small))
    assert len(passes) > 3
    assert sorted(row.index for part in passes for _, unit in part for row in unit) == list(range(12))
    assert close(step(session, examples, how, memory=small), step(session, examples, how), 1e-4)


def test_a_unit_is_never_cut() -> None:
    session, examples = session_of(), rows(12)
    units = [examples[:5], examples[5:6], examples[6:]]
    passes = list(private_passes(session.model, list(enumerate(units)), 1, footprint(session.model), 1.0))
    assert sorted(len(unit) for part in passes for _, unit in part) == [1, 5, 6]


def test_norms_agree_with_opacus() -> None:
    """Opacus's own hooks on PEFT's layers, rows of one length in one padded batch."""
    import torch
    from opacus import GradSampleModule

    session = session_of()
    draw = np.random.default_rng(1)
    examples = [
        Example(tuple(draw.integers(3, 200, 12).tolist()), tuple(draw.integers(3, 200, 2).tolist()), number)
        for number in range(5)
    ]
    units = [(number, [example]) for number, example in enumerate(examples)]
    _, ours = add_units(session.model, units, grid_of(session), zeros(session), MASKS)
    ids = torch.tensor([[*example.prompt_ids, *example.answer_ids] for example in examples])
    wrapped = GradSampleModule(session.model, loss_reduction="sum", strict=False)
    try:
        wrapped.train()  # Opacus keeps activations in training mode only; dropout is 0
        logits = wrapped(input_ids=ids).logits[:, 11:13]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 12:].flatten(), reduction="sum").div(
            2
        ).backward()
        squares = [parameter.grad_sample.flatten(1).square().sum(1) for parameter in trainable(session.model).values()]
        theirs = torch.stack(squares).sum(0).sqrt().tolist()
    finally:
        wrapped.to_standard_module()
        session.model.eval()
        session.model.zero_grad(set_to_none=True)
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_denominator_is_the_expected_size_for_any_sample() -> None:
    session, examples = session_of(), rows(10)
    how = mechanism_of([[place] for place in range(10)], sampling_rate=0.4, seed=1)
    drawn = poisson_sample(10, 0.4, Stream(how.keys(0).draws))
    assert len(drawn) != 4, "else the two denominators would be the same"
    sums, _ = by_autograd(session, [[examples[place]] for place in drawn], CLIP)
    assert close(step(session, examples, how), {name: total / 4.0 for name, total in sums.items()})


def test_an_empty_draw_is_noise_alone_and_noise_is_added_once() -> None:
    session, examples = session_of(), rows(10)
    how = mechanism_of([[place] for place in range(10)], sampling_rate=1e-9, noise_multiplier=2.0)
    gradient = np.concatenate([values.ravel() for values in step(session, examples, how).values()])
    assert gradient.std() * how.expected_units == pytest.approx(2.0 * CLIP, rel=0.05)
    assert abs(gradient.mean()) * how.expected_units < 0.1


def test_noise_does_not_depend_on_the_number_of_passes() -> None:
    session, examples = session_of(), rows(10)
    quiet = mechanism_of([[place] for place in range(10)])
    noisy = replace(quiet, noise_multiplier=1.0)
    for batch_tokens in (1, 4096):
        with_noise, without = (step(session, examples, how, batch_tokens) for how in (noisy, quiet))
        noise = np.concatenate([(with_noise[name] - without[name]).ravel() for name in without]) * 10
        assert noise.std() == pytest.approx(CLIP, rel=0.05)


def test_a_row_whose_gradient_overflows_is_dropped_and_spoils_no_other() -> None:
    import torch

    session, examples = session_of(), rows(6, vocabulary=100)
    poison = Example((150, *examples[2].prompt_ids), examples[2].answer_ids, 6)
    weight = session.model.get_input_embeddings().weight
    kept = weight[150].clone()
    units = [[place] for place in range(7)]
    try:
        with torch.no_grad():
            weight[150] = float("inf")
        how = mechanism_of(units)
        done = private_step(session.model, [*examples, poison], how, 0, 4096, footprint(session.model), ROOMY)
        ours = {
            name: parameter.grad.double().numpy() * 7
            for name, parameter in trainable(session.model).items()
            if parameter.grad is not None
        }
        session.model.zero_grad(set_to_none=True)
    finally:
        with torch.no_grad():
            weight[150] = kept
    assert [math.isfinite(norm) for norm in done.norms].count(False) == 1
    assert close(ours, by_autograd(session, [[example] for example in examples], CLIP)[0])


def test_no_unclipped_gradient_is_left_behind() -> None:
    session, examples = session_of(), rows(4)
    how = mechanism_of([[place] for place in range(4)], clip_norm=1e-3)
    total = math.sqrt(sum(float((gradient**2).sum()) for gradient in step(session, examples, how).values()))
    assert total <= 1e-3


def test_one_row_moves_the_sum_by_the_clip_norm_at_most() -> None:
    """Sensitivity: what adding or removing any one unit can do."""
    session, examples = session_of(), rows(8)
    everybody = step(session, examples, mechanism_of([[place] for place in range(8)]))
    for left_out in range(8):
        others = [[place] for place in range(8) if place != left_out]
        without = step(session, examples, mechanism_of(others))
        moved = math.sqrt(sum(float(((everybody[name] * 8 - without[name] * 7) ** 2).sum()) for name in everybody))
        assert moved <= CLIP


def test_the_self_test_reports_influence_of_other_rows_and_a_foreign_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, examples = session_of(), rows(6)
    units = [[example] for example in examples]
    assert self_test(session.model, units, CLIP) < 1e-3
    assert not session.model.training
    honest = the_self_test.unit_gradients

    def mixed(kept: Any, spans: Any) -> dict[str, Any]:
        return {name: found + 0.1 * found.sum(0, keepdim=True) for name, found in honest(kept, spans).items()}

    monkeypatch.setattr(
        the_self_test,
        "unit_gradients",
        lambda kept, spans: {name: found * 1.01 for name, found in honest(kept, spans).items()},
    )
    with pytest.raises(UserError, match="Nothing is sent"):
        self_test(session.model, units, CLIP)
    monkeypatch.setattr(
        the_self_test,
        "unit_gradients",
        lambda kept, spans: mixed(kept, spans) if len(spans) > 1 else honest(kept, spans),
    )
    assert self_test(session.model, units, CLIP) > NEIGHBOUR_SHARE, "units would then go one to a pass"
    assert all(parameter.grad is None for parameter in trainable(session.model).values())


def test_the_self_test_takes_units_from_the_shortest_to_the_longest() -> None:
    units = [[example] for example in rows(40)]
    lengths = sorted(under_test.tokens_of(unit) for unit in units)
    chosen = sorted(under_test.tokens_of(unit) for unit in units_to_test(units, 4096))
    assert len(chosen) == 8
    assert (chosen[0], chosen[-1]) == (lengths[0], lengths[-1])
    assert len(units_to_test(units, 0)) == 1
    assert len(units_to_test(units[:1], 4096)) == 1


def test_a_unit_alone_in_its_pass_is_bit_identical_among_any_others() -> None:
    session, examples = session_of(), rows(8)
    alone = mechanism_of([[place] for place in range(8)], alone=True, expected_units=1.0)
    everybody = step(session, examples, alone)
    without = step(session, examples, replace(alone, units=alone.units[:-1]))
    last = step(session, examples, replace(alone, units=alone.units[-1:]))
    for name in everybody:
        np.testing.assert_allclose(everybody[name] - without[name], last[name], atol=1e-6 * CLIP)


def test_a_step_whose_units_depend_on_others_runs_one_unit_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every adapter that the server sends: neighbours that count are noticed in the step itself, and then there are
    none.
    """
    session, examples = session_of(), rows(8)
    how = mechanism_of([[place] for place in range(8)])
    alone = step(session, examples, replace(how, alone=True))
    honest = under_test.unit_gradients

    def mixed(kept: Any, spans: Any) -> dict[str, Any]:
        found = honest(kept, spans)
        return {name: one + 0.1 * one.sum(0, keepdim=True) for name, one in found.items()} if len(spans) > 1 else found

    monkeypatch.setattr(under_test, "unit_gradients", mixed)
    found = step(session, examples, how)
    for name in alone:
        assert np.array_equal(found[name], alone[name])


def test_prefix_products_are_computed_once_and_change_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = session_of()
    draw = np.random.default_rng(3)
    start = tuple(draw.integers(3, 200, 40).tolist())
    examples = [replace(row, prompt_ids=start + row.prompt_ids) for row in rows(9)]
    repeated = under_test.repeated_tokens(examples)
    assert repeated is not None
    first, of_token = repeated
    tokens = [token for row in examples for token in row.read_ids]
    assert [tokens[first[number]] for number in of_token] == tokens
    assert len(first) < 0.6 * len(tokens)
    how = mechanism_of([[place] for place in range(9)])
    shared = step(session, examples, how)
    monkeypatch.setattr(under_test, "repeated_tokens", lambda rows: None)
    assert close(shared, step(session, examples, how), 1e-4)
    assert close(
        shared, {name: total / 9 for name, total in by_autograd(session, [[row] for row in examples], CLIP)[0].items()}
    )


def test_augmented_copies_are_averaged_inside_the_clip() -> None:
    """Without dropout all copies are alike, and their mean is the row's own gradient."""
    session, examples = session_of(), rows(5)
    how = mechanism_of([[place] for place in range(5)])
    assert close(step(session, examples, replace(how, augmentations=3)), step(session, examples, how), 1e-4)


def test_an_audits_canary_is_clipped_like_a_unit() -> None:
    session = session_of()
    canary = {name: total.float() + 1.0 for name, total in zeros(session).items()}
    how = mechanism_of([[0]], sampling_rate=1e-12, expected_units=1.0)
    private_step(session.model, rows(1), how, 0, 4096, footprint(session.model), ROOMY, extra=[canary])
    squares = sum(
        float(parameter.grad.double().square().sum())
        for parameter in trainable(session.model).values()
        if parameter.grad is not None
    )
    session.model.zero_grad(set_to_none=True)
    assert math.sqrt(squares) == pytest.approx(USED, rel=1e-3)


def test_what_is_sent_is_whole_steps_of_the_grid() -> None:
    session, examples = session_of(), rows(4)
    how = mechanism_of([[place] for place in range(4)], noise_multiplier=1.3, expected_units=1.0)
    grid = how.grid(session.layout.size)
    for gradient in step(session, examples, how).values():
        steps = gradient / grid.step
        assert np.abs(steps - np.rint(steps)).max() <= 2**-23 * np.abs(steps).max(), (
            "but for the float32 of the parameter"
        )


def test_tensors_that_are_no_linear_weights_are_refused() -> None:
    session = session_of(method="dora")
    with pytest.raises(UserError, match=r"linear layers only, not .*lora_magnitude_vector"):
        self_test(session.model, [[example] for example in rows(2)], CLIP)


def test_losses_are_those_of_the_packed_rows() -> None:
    session, examples = session_of(), rows(5)
    units = [[example] for example in examples]
    losses = token_losses(session.model, pack_units(units, "cpu")).detach().numpy()
    assert losses.shape == (sum(len(example.answer_ids) for example in examples),)
    assert np.isfinite(losses).all()
