"""The runs between a pooled and a federated one, for `explain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedfinlora.commands.baselines import centralized_run
from fedfinlora.commands.in_process import is_finished, train_here
from fedfinlora.commands.replayed import config_as_begun, read_kept_run, with_words
from fedfinlora.config.dataset import PartitionConfig
from fedfinlora.config.privacy import PrivacyConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import EXACT_RULES
from fedfinlora.errors import UserError
from fedfinlora.files import made_as, make_private, read_mapping, sha256_of, write_json
from fedfinlora.model.adapter import Vector
from fedfinlora.model.adapter_folder import WEIGHTS_FILE, peft_settings, read_tensors
from fedfinlora.run.folder import read_config
from fedfinlora.run.opening import differences
from fedfinlora.run.records import read_result

PRODUCT, EXACT = "product", "exact-mean"
"""A cause on its own, and the run that shows it."""
POOLED, STEPS, ONE_BANK, IID, OWN, FEDERATED = (
    "pooled",
    "fewer-steps",
    "one-bank",
    "iid-banks",
    "own-banks",
    "federated",
)
EXACT_TITLE = "the exact mean of the products B A, cut to the adapter's rank (strategy=flexlora)"
PAIR_FILE = "pair.json"
"""In the folder of an explanation: the two runs, and the SHA-256 of their adapters."""
FINAL = Path("adapters") / "final"
SAME = ("model.", "peft.", "seed", "dataset.", "start_adapter")
"""Keys that both runs must share for their difference to be that of federating."""


@dataclass(frozen=True)
class Change:
    """From the run before to this one."""

    name: str
    label: str
    """Of the run after the change."""
    title: str
    advice: str


CHANGES = (
    Change("steps", STEPS, "fewer steps one after the other, on larger batches (number of sequential steps)",
        "the number of sequential steps: take as many as the pooled run at equal rows, each on 1/banks of its rows "
        "(train.batch_rows=0, train.epochs as in the pooled run, train.steps_per_round times num_server_rounds its "
        "steps; experiment=sentiment_rounds is an example), or a server rule that goes further: strategy=fedadam, a "
        "Nesterov outer step (fedavgm), a larger strategy.server_learning_rate"),
    Change("optimiser", ONE_BANK, "the federation's optimiser and schedule on pooled rows",
        "tune strategy.server_learning_rate, strategy.schedule and train.learning_rate on public validation rows"),
    Change("averaging", IID, "dividing the rows among banks at random: local drift and the mean of A and B apart",
        "fewer local steps a round, or a rule that is exact on the product (peft.freeze_a=true, LoRA-XS)"),
    Change("skew", OWN, "the banks' own rows instead of random ones",
        "fewer local steps a round, train.proximal_mu above 0, or strategy=fedadam with train.steps_per_round=1"),
    Change("privacy", FEDERATED, "clipping and noise",
        "more rows a step, more rounds, a larger epsilon, fewer parameters (`privacy plan` shows the noise)"),
)  # fmt: skip


def adapter_sha256(folder: Path) -> str:
    """Of the tensors in an adapter's folder."""
    return sha256_of((folder / WEIGHTS_FILE).read_bytes())


@dataclass(frozen=True)
class Plan:
    """The two runs, and the configurations of those in between."""

    run: Path
    pooled: Path
    place: Path
    words: Sequence[str]

    def __post_init__(self) -> None:
        for folder, mode in ((self.run, "federated"), (self.pooled, "centralized")):
            result = read_result(folder)
            if (result.mode, result.status) != (mode, "completed"):
                raise UserError(f"{folder} is no completed {mode} run, but a {result.status} {result.mode} one.")
            peft_settings(folder / FINAL, config_as_begun(folder))
            read_tensors(folder / FINAL)  # what is damaged is known before anything is trained
        other = [line for line in differences(self.federated, self.centralized) if line.startswith(SAME)]
        if other:
            raise UserError(
                f"{self.run} and {self.pooled} differ in more than federating: {', '.join(other)}. Make the pooled run "
                "again with the federated run's words."
            )
        if self.federated.banks < 2:
            raise UserError(f"{self.run} has one bank: there is nothing that federating could have changed.")
        if self.federated.dataset.source == "jsonl":
            raise UserError(f"{self.run} is of banks with rows of their own, which cannot be dealt out again here.")

    def take_place(self) -> None:
        """Make the folder of what lies in between, for its owner alone. UserError where it holds something else than an
        explanation of these two runs, which is resumed.
        """
        pair = {
            name: [str(folder), adapter_sha256(folder / FINAL)]
            for name, folder in ((FEDERATED, self.run), (POOLED, self.pooled))
        }
        file = self.place / PAIR_FILE
        if file.is_file() and read_mapping(file) != pair:
            raise UserError(f"{self.place} has the explanation of other runs. Name another folder by --output FOLDER.")
        if not file.is_file() and self.place.exists() and (not self.place.is_dir() or any(self.place.iterdir())):
            raise UserError(f"{self.place} does not say whose explanation it is. Name a new folder by --output FOLDER.")
        make_private(self.place)
        with made_as(self.place):
            write_json(file, pair)

    @property
    def federated(self) -> Config:
        """Of the run, with the words that say what is scored."""
        return with_words(read_config(self.run), self.words)

    @property
    def centralized(self) -> Config:
        return read_config(self.pooled)

    def adapters(self, wanted: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
        """(label -> folder of a run; what could not be trained and why)."""
        found, unknown = {POOLED: self.pooled}, list[str]()
        makers: Mapping[str, Callable[[], Path]] = {
            "steps": self._fewer_steps, "optimiser": self._one_bank, "averaging": self._iid, "skew": self._own,
        }  # fmt: skip
        for change in CHANGES[:-1]:
            if change.name not in wanted or (change.name == "skew" and self.federated.partition.name == "iid"):
                continue
            try:
                print(f"training: {change.title}", flush=True)
                folder = makers[change.name]()
            except UserError as error:
                unknown.append(f"{change.name}: {error}")
                continue
            if folder != self.run:
                found[change.label] = folder
        found[FEDERATED] = self.run
        return found, unknown

    def exact_mean(self) -> tuple[Path | None, list[str]]:
        """(folder of the same run with the mean of the products B A, cut to the adapter's rank, in the place of that of
        A and B apart; why there is none). Only where the rule is that mean is nothing else different.
        """
        config, what = self.federated, "the bias of averaging A and B apart"
        strategy, peft = config.strategy, config.peft
        if strategy.name in (*EXACT_RULES, "flexlora", "rolora") or peft.freeze_a:
            return None, [f"{PRODUCT}: strategy={strategy.name} with peft={peft.method} has no such bias"]
        why = (
            f"{PRODUCT}: {what} shows in runs of strategy=fedavg with peft=lora, qlora or rslora and without privacy; "
            "rounds.jsonl has its norm in each round (average.bias)"
        )
        plain = strategy.name == "fedavg" and strategy.sync == "round" and peft.method in ("lora", "qlora", "rslora")
        if not plain or config.privacy.mode != "none":
            return None, [why]
        print(f"training: {EXACT_TITLE}", flush=True)
        exact = replace(config, strategy=replace(strategy, name="flexlora"))
        return train_here(self._between(exact, EXACT)), []

    def replayed(self) -> tuple[dict[str, Vector], list[str]]:
        """(label -> adapter of the run's recorded updates under another mean; why there is none)."""
        try:
            kept = read_kept_run(self.run, self.words)
        except UserError as error:
            return {}, [f"weighting: {error}"]
        other = "equal" if kept.config.strategy.weighting != "equal" else "rows"
        strategy = replace(kept.config.strategy, weighting=other, sizes=())
        changed = replace(kept, config=replace(kept.config, strategy=strategy))
        return {f"weights-{other}": changed.replay(kept.banks)}, []

    def _fewer_steps(self) -> Path:
        """Pooled rows, as many optimiser steps one after the other as a bank takes, each with all banks' rows."""
        config = self._between(replace(self._one(self.federated), strategy=self.centralized.strategy), STEPS)
        own, asked = self.centralized.train, config.train
        train = replace(
            own, epochs=asked.epochs, steps_per_round=asked.steps_per_round, batch_rows=asked.batch_rows,
            max_steps=asked.max_steps, max_rows=asked.max_rows,
        )  # fmt: skip
        config = replace(config, train=train)
        folder = self.place / STEPS
        return folder if is_finished(folder, config) else centralized_run(config)

    def _one_bank(self) -> Path:
        return train_here(self._between(self._one(self.federated), ONE_BANK))

    def _iid(self) -> Path:
        config = replace(self.federated, partition=PartitionConfig("iid"), privacy=PrivacyConfig())
        if (
            config == replace(self.federated, partition=PartitionConfig("iid"))
            and self.federated.partition.name == "iid"
        ):
            return self.run
        return train_here(self._between(config, IID))

    def _own(self) -> Path:
        """Without privacy: the run itself where it has none."""
        if self.federated.privacy.mode == "none":
            return self.run
        return train_here(self._between(replace(self.federated, privacy=PrivacyConfig()), OWN))

    def _one(self, config: Config) -> Config:
        """All rows at one bank, whose steps take as many rows as those of all banks together."""
        train, banks = config.train, config.banks
        return replace(
            config,
            banks=1,
            partition=PartitionConfig("iid"),
            privacy=PrivacyConfig(),
            train=replace(train, batch_rows=train.batch_rows * banks, max_rows=train.max_rows * banks),
            strategy=replace(config.strategy, weighting="rows", sizes=(), quorum=1, min_banks=0, fraction_train=1.0),
        )

    def _between(self, config: Config, label: str) -> Config:
        """A run in its own folder, scored with the others and not on its own."""
        scores = config.evaluation
        quiet = replace(scores, base=False, limit=1, round_limit=1) if scores.validation_rows else replace(
            scores, base=False, every=0, benchmarks=("none",)
        )  # fmt: skip
        strategy = replace(config.strategy, keep_deltas=False)
        return replace(
            config, output_dir=str(self.place), run_name=label, resume="", overwrite=True, evaluation=quiet,
            strategy=strategy,
        )  # fmt: skip
