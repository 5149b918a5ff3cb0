"""The server's and the evaluator's own functions, for `verify`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval.recompute import recompute_scores
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import Layout, frozen_sha256
from fedfinlora.model.adapter_folder import read_tensors
from fedfinlora.model.parts import Part, sent_part, trained_factor
from fedfinlora.privacy.accounting import Steps, epsilon
from fedfinlora.provenance.compared import Difference
from fedfinlora.provenance.rules import State
from fedfinlora.run.records import AverageLoss, BankEntry, BankTimings, RoundLine
from fedfinlora.wire.messages import Figures, Reply
from server_app.average_loss import average_loss, is_measured
from server_app.central_privacy import noise_of
from server_app.drift import RoundPlan, lost_in, plan_after
from server_app.factor_length import factor_ratios
from server_app.replies import replies_of
from server_app.rounds import line_of
from server_app.strategies import rule_of
from server_app.strategies.strategy import ServerState, Strategy, take_step
from server_app.taking_in import accepted_entry, timing_of


@dataclass
class ServerRules:
    """Without noise of the server's own, which is secret: such rounds cannot be computed again."""

    run: Path
    _layout: Layout | None = None
    """Of the run's adapter, as far as its saved adapters show."""

    def first_state(self, config: Config, adapter: Any, layout_id: str) -> ServerState:
        self.layout(layout_id)
        return ServerState(0, adapter, _rule(config).first_arrays(layout_id))

    def step(self, config: Config, state: State, replies: Sequence[Reply]) -> ServerState:
        assert isinstance(state, ServerState)
        rule = _rule(config)
        return take_step(rule, state, replies_of(replies, rule.weights(replies), self._layout))

    def part(self, config: Config, number: int, layout_id: str) -> Part | None:
        if not trained_factor(config.strategy.name, number):
            return None
        layout = self.layout(layout_id)
        return None if layout is None else sent_part(config.strategy.name, layout, number)

    def layout(self, layout_id: str) -> Layout | None:
        if self._layout is None:
            self._layout = saved_layout(self.run, layout_id)
        return self._layout

    def plan(self, config: Config, number: int, last: RoundLine | None) -> RoundPlan:
        return plan_after(last, number, config)

    def lost(self, number: int) -> frozenset[str]:
        return lost_in(self.run / "state", number)

    def average(self, config: Config, before: State, after: State, replies: Sequence[Reply]) -> AverageLoss | None:
        if not (config.strategy.measure_average and is_measured(after.round, config.num_server_rounds)):
            return None
        weights = self.weights(config, replies)
        ranks = config.strategy.declared_ranks()
        return average_loss(before.adapter, after.step_norm, replies, weights, self._layout, ranks=ranks)

    def factors(self, config: Config, before: State, layout_id: str, replies: Sequence[Reply]) -> dict[str, float]:
        layout, deltas = self.layout(layout_id), {reply.bank: reply.delta for reply in replies}
        if layout is None:
            return {}
        ranks = config.strategy.declared_ranks()
        return factor_ratios(before.adapter, sorted(deltas), layout, lambda bank, block: deltas[bank][block], ranks)

    def weights(self, config: Config, replies: Sequence[Reply]) -> list[float]:
        return _rule(config).weights(replies) or []

    def sampled(self, config: Config, banks: Sequence[str], number: int) -> list[str]:
        return _rule(config).sampled(banks, config.seed, number)

    def entry(self, reply: Reply) -> BankEntry:
        return accepted_entry(reply.bank, reply)

    def timing(self, figures: Figures) -> BankTimings:
        return timing_of(figures)

    def line(self, config: Config, number: int, entries: Sequence[BankEntry], replies: Sequence[Reply]) -> RoundLine:
        return line_of(number, entries, replies, config.privacy.mode == "bank")

    def least_spent(self, config: Config, rounds: int) -> tuple[float, float, float]:
        noise, delta = _noise(config)
        rate = config.strategy.fraction_train
        planned, spent = (epsilon([Steps(rate, noise, count)], delta) for count in (config.num_server_rounds, rounds))
        return planned, spent, delta

    def scores(self, run: Path, lines: Sequence[RoundLine]) -> Iterator[Difference | str]:
        return recompute_scores(run, lines)


def saved_layout(run: Path, layout_id: str) -> Layout | None:
    """The layout of this id, by a saved adapter of the run; None where none has it, as for LoRA-XS."""
    for folder in sorted((run / "adapters").glob("*")):
        with suppress(UserError):
            tensors = {name: tensor.numpy() for name, tensor in read_tensors(folder).items()}
            for frozen in ({}, {name: tensor for name, tensor in tensors.items() if ".lora_A." in name}):
                names = sorted(tensors.keys() - frozen.keys())
                layout = Layout(tuple(names), tuple(tensors[name].shape for name in names), frozen_sha256(frozen))
                if layout.id == layout_id:
                    return layout
    return None


@lru_cache(maxsize=4)
def _noise(config: Config) -> tuple[float, float]:
    return noise_of(config, config.banks)


def _rule(config: Config) -> Strategy:
    return rule_of(config.strategy, config.num_server_rounds)
