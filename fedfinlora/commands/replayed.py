"""A run's rounds computed again from some of its kept updates: what `forget`, `contributions`, `clusters` and
`explain` share.

Later updates were computed from adapters of all banks: such a replay is of recorded updates, and the adapter of a run
without the other banks only where one round was all there was.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedfinlora.config.schema import Config
from fedfinlora.config.values import build, to_plain
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import read_mapping
from fedfinlora.model.adapter import Layout, Vector, norm, save_adapter
from fedfinlora.model.loading import Session, get_session
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.provenance.deltas import delta_file, start_file
from fedfinlora.run.checkpoint import adapter_checksum, load_checkpoint
from fedfinlora.run.folder import config_fingerprint, read_config
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.run.records import ROUNDS_FILE, BankEntry, RoundLine, read_result, read_rounds
from fedfinlora.wire.messages import Figures, Reply
from server_app.replies import Replies, replies_of
from server_app.strategies import rule_of
from server_app.strategies.strategy import ServerState, take_step

CHANGEABLE = ("evaluation", "model")
"""Groups of a run's configuration that words of these commands may change: what is scored, and where."""
FACTORS_AGAIN = ("flexlora", "flora", "residual", "rosa")
"""Rules that factor the mean product again after each round: a later update of A and B belongs to those factors."""
IN_TURN = ("rolora",)
"""Rules whose updates are of A and of B in turn."""


@dataclass(frozen=True)
class KeptRun:
    """A federated run whose updates were kept."""

    folder: Path
    config: Config
    start: Vector
    """(size,) float32: the adapter that the first round began with."""
    lines: tuple[RoundLine, ...]
    """Up to the round of adapters/final."""
    layout: Layout

    @property
    def banks(self) -> list[str]:
        """All banks with an accepted update, by name."""
        return sorted({entry.bank for line in self.lines for entry in line.banks if entry.is_ok})

    @property
    def is_one_shot(self) -> bool:
        """Whether no update was computed from an adapter that another update had a part in."""
        return sum(any(entry.is_ok for entry in line.banks) for line in self.lines) == 1

    def session(self) -> Session:
        """The base model with an adapter of this run's kind."""
        return get_session(self.config)

    def replay(self, banks: Collection[str]) -> Vector:
        """The adapter of these banks' updates: (size,) float32. A round with none of them leaves it as it was."""
        adapter = self.start
        for adapter, _ in self.rounds(banks):  # noqa: B007 - the last one counts
            pass
        return adapter

    def rounds(self, banks: Collection[str]) -> Iterator[tuple[Vector, Replies | None]]:
        """For each round the adapter that it begins with, (size,) float32, and these banks' updates, None where they
        have none in it; at the end the replayed adapter and None.
        """
        rule = rule_of(self.config.strategy, self.config.num_server_rounds)
        state = ServerState(0, self.start, rule.first_arrays(self.layout.id))
        for line in self.lines:
            found = [self._reply(line.round, entry) for entry in line.banks if entry.is_ok and entry.bank in banks]
            replies = replies_of(found, rule.weights(found), self.layout) if found else None
            yield state.adapter, replies
            state = replace(state, round=state.round + 1) if replies is None else take_step(rule, state, replies)
        yield state.adapter, None

    def save(self, folder: Path, adapter: Vector) -> None:
        """Write an adapter of this run's kind as a PEFT folder."""
        config = self.config
        is_whole = METHODS[config.peft.method].whole and not config.peft.freeze_a  # saved is what is trained
        frozen = None if is_whole else self.session().frozen
        save_adapter(folder, adapter, self.layout, config.peft, config.model, frozen)

    def _reply(self, number: int, entry: BankEntry) -> Reply:
        delta = _vector(delta_file(self.folder, number, entry.bank), self.layout.size)
        return Reply(entry.bank, delta, _figures(entry), norm(delta))


def read_kept_run(folder: Path, words: Sequence[str] = ()) -> KeptRun:
    """A run with its kept updates, its configuration changed by `words` (evaluation.…, model.…). UserError where it
    kept none, was private, or they do not give its adapter.
    """
    config = config_as_begun(folder)
    result = read_result(folder)
    if result.mode != "federated":
        raise UserError(f"{folder} is no federated run. Name one that `simulate` or a deployment has made.")
    if config.privacy.mode != "none":
        raise UserError(
            f"{folder} was made under privacy={config.privacy.mode}: its epsilon bounds what any row or bank can have "
            "changed, and its noise is not drawn again. Name a run with privacy=none, or train again."
        )
    if not config.strategy.keep_deltas or not start_file(folder).is_file():
        raise UserError(f"{folder} kept no updates. Run it again with strategy.keep_deltas=true.")
    final = result.final_round
    lines = tuple(line for line in read_rounds(folder) if final is None or line.round <= final)
    if not lines:
        raise UserError(f"{folder} has no finished round. Resume it first.")
    if final is not None and [line.round for line in lines] != list(range(1, final + 1)):
        raise UserError(
            f"{folder / ROUNDS_FILE} does not have each of the {final} rounds that result.json has. Bring it back."
        )
    layout_id = load_checkpoint(folder).layout_id
    layout = _layout(folder, config, layout_id)
    run = KeptRun(folder, with_words(config, words), _vector(start_file(folder), layout.size), lines, layout)
    _check_rule(run)
    _check(run)
    return run


def config_as_begun(folder: Path) -> Config:
    """A run's configuration. UserError where config.yaml is not the one that its result was made with: one that was cut
    may still be read, with defaults for what it lacks. A run of other code passes, since it has other settings.
    """
    config, made_with = read_config(folder), read_result(folder).config_sha256
    code = read_mapping(folder / "manifest.json").get("source_sha256")
    if made_with not in ("", config_fingerprint(config)) and code == source_fingerprint():
        raise UserError(f"{folder / 'config.yaml'} was changed after the run. Bring it back.")
    return config


def with_words(config: Config, words: Sequence[str]) -> Config:
    """A run's configuration with `evaluation.KEY=VALUE` and `model.KEY=VALUE` changed. ConfigError for other words."""
    import yaml

    values = to_plain(config)
    for word in words:
        key, is_set, value = word.partition("=")
        group, _, name = key.partition(".")
        if group not in CHANGEABLE or not is_set or name not in values[group]:
            raise ConfigError(
                f"{word!r}: only {' and '.join(f'{one}.KEY=VALUE' for one in CHANGEABLE)} can be changed here."
            )
        values[group][name] = yaml.safe_load(value)
    return build(values)


def _check_rule(run: KeptRun) -> None:
    """UserError for a rule whose recorded updates cannot be put together otherwise."""
    name = run.config.strategy.name
    if name in IN_TURN:
        raise UserError(
            f"{run.folder}: strategy={name} sends A and B in turn, which is not replayed here. Train again."
        )
    if name in FACTORS_AGAIN and not run.is_one_shot:
        raise UserError(
            f"{run.folder}: strategy={name} factors the adapter again after each round, and later updates belong to "
            "those factors: some banks' updates without the others' mean nothing. Train again without the bank."
        )


def _check(run: KeptRun) -> None:
    """UserError unless the replay of all banks is the run's own adapter, byte by byte."""
    made = adapter_checksum(run.replay(run.banks))
    if made != run.lines[-1].adapter_sha256:
        raise UserError(
            f"{run.folder}: its kept updates do not give its adapter (round {run.lines[-1].round}: {made[:16]} instead "
            f"of {run.lines[-1].adapter_sha256[:16]}). Check it with `python -m fedfinlora verify {run.folder}`."
        )


def _layout(folder: Path, config: Config, layout_id: str) -> Layout:
    """From the tensors that were saved where those are what is trained, else from the model."""
    from safetensors import SafetensorError, safe_open

    file = folder / "adapters" / "final" / "adapter_model.safetensors"
    if file.is_file():
        try:
            with safe_open(file, framework="numpy") as stream:
                shapes = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}). Bring it back.") from error
        found = Layout(tuple(sorted(shapes)), tuple(shapes[name] for name in sorted(shapes)))
        if found.id == layout_id:
            return found
    layout = get_session(config).layout
    if layout.id != layout_id:
        raise UserError(
            f"{folder}: its checkpoint is of another adapter than config.yaml says. Check it with `verify`."
        )
    return layout


def _vector(file: Path, size: int) -> Vector:
    """(size,) float32 of a kept file. UserError where it is not there, or of another size."""
    try:
        vector = np.fromfile(file, "<f4").astype(np.float32)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}. Bring the run's deltas back.") from error
    if vector.shape != (size,):
        raise UserError(f"{file} has {vector.size} numbers, the adapter {size}. Bring back a copy of it.")
    if not np.isfinite(vector).all():
        raise UserError(f"{file} is damaged: it has numbers that are not finite. Bring back a copy of it.")
    return vector


def _figures(entry: BankEntry) -> Figures:
    """What the bank reported, as far as rounds.jsonl has it."""
    names = ("rows", "steps", "tokens", "answer_tokens", "train_loss", "holdout_rows", "holdout_loss", "skipped_rows")
    known: dict[str, Any] = {name: getattr(entry, name) for name in names}
    known |= {name: math.nan for name, value in known.items() if value is None}
    return Figures(**known, train_s=0.0, load_s=0.0, bank_rows=entry.rows)
