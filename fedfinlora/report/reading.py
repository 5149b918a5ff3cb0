"""A run folder as the report needs it. What is missing or broken becomes a sentence in `Run.missing`, not an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError, plural
from fedfinlora.report.values import Values, parse_yaml, read_object
from fedfinlora.run.evaluation import METRICS_FILE, BenchmarkMetrics, Evaluation, RowRecord, Scores, readable_records
from fedfinlora.run.folder import flatten, read_config
from fedfinlora.run.records import (
    CARD_FILE,
    RESULT_FILE,
    ROUNDS_FILE,
    PrivacyCard,
    RoundLine,
    RunResult,
    readable_rounds,
)
from fedfinlora.run.resuming import resumed_words
from fedfinlora.run.typed import from_json

MOST_NAMED = 3
"""Values of rounds.jsonl that cannot be read."""
STATUSES = ("completed", "failed", "stopped")
"""Of a run that has ended."""
RUN_FILES = ("result.json", "rounds.jsonl", "config.yaml", "manifest.json", "progress.jsonl")


@dataclass(frozen=True)
class Run:
    folder: Path
    result: RunResult
    """All defaults where the run has not finished."""
    rounds: tuple[RoundLine, ...]
    config: Values
    """Dotted keys, as config.yaml has them."""
    manifest: Values
    privacy: PrivacyCard | None
    """None where there is no privacy."""
    scores: Mapping[str, Scores]
    """Label ("base", "final", …) -> benchmark key -> metrics, without the scores by round."""
    skipped: Mapping[str, str]
    """Benchmark key -> why it was not scored."""
    missing: tuple[str, ...]
    """What the report cannot show, one sentence each."""
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    """Label -> all of eval/<label>/metrics.json: groups, seconds, speed."""

    @property
    def name(self) -> str:
        return self.result.run or self.folder.name

    @property
    def mode(self) -> str:
        return self.result.mode or "federated"

    @property
    def status(self) -> str:
        """ "completed", "failed", "stopped", "unfinished", or "damaged" where result.json is there and does not say."""
        if self.result.status in STATUSES:
            return self.result.status
        return "damaged" if (self.folder / RESULT_FILE).is_file() else "unfinished"

    @property
    def reason(self) -> str:
        return self.result.reason

    @property
    def model(self) -> str:
        """The base model as it was loaded, e.g. "smollm2-135m nf4"."""
        known = self.settings.model if self.settings else ModelConfig("unknown model", quantization="none")
        name, quantization = self.result.model or known.name, self.result.quantization or known.quantization
        return name if quantization == "none" else f"{name} {quantization}"

    @cached_property
    def settings(self) -> Config | None:
        """config.yaml; None where it is missing, damaged or of another version."""
        try:
            return read_config(self.folder)
        except UserError:
            return None

    @property
    def banks(self) -> list[str]:
        """The names of all banks that appear in any round, bank-2 before bank-10."""
        names = {entry.bank for line in self.rounds for entry in line.banks}
        return sorted(names, key=lambda name: ([int(part) for part in re.findall(r"[0-9]{1,18}", name)], name))

    def records(self, label: str, benchmark: str) -> Iterator[RowRecord]:
        """The evaluated rows of one benchmark; lines that cannot be read are skipped."""
        return readable_records(self.folder / "eval" / label / f"{benchmark}.jsonl")


def of_a_round(label: str) -> bool:
    """Whether an evaluation is of one round ("round_002", "validation_round_002"): the curves show these."""
    return re.fullmatch(r"(\w+_)?round_[0-9]+", label) is not None


def best_round(run: Run) -> int | None:
    """The best round on the validation rows."""
    best = [line.round for line in run.rounds if line.validation is not None and line.validation.best]
    return run.result.best_round if run.result.best_round is not None else best[-1] if best else None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders; a folder of run folders means those in it."""
    if not paths:
        raise UserError("No run to report on. Name at least one run folder.")
    return [read_run(folder) for path in paths for folder in _run_folders(path)]


def _run_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder. Name a run folder, such as outputs/demo.")
    if _is_run(path):
        return [path]
    inside = sorted(child for child in path.iterdir() if child.is_dir() and _is_run(child))
    if not inside:
        raise UserError(f"{path} is not a run folder: it has none of {', '.join(RUN_FILES)}.")
    return inside


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in RUN_FILES)


def read_run(folder: Path) -> Run:
    """Read one run folder; unreadable parts are named in `missing`."""
    missing: list[str] = []
    unfinished = "the run has not finished, or ended before it could write its result"
    is_there = (folder / RESULT_FILE).is_file()
    told = read_object(folder / RESULT_FILE, missing, "how the run ended is not known" if is_there else unfinished)
    result = from_json(RunResult, told, RESULT_FILE, missing)
    rounds = _read_rounds(folder, missing, result)
    config = read_object(folder / "config.yaml", missing, "the configuration is not known", parse_yaml)
    manifest = flatten(read_object(folder / "manifest.json", missing, "versions and hashes are not known"))
    privacy = None
    if (folder / CARD_FILE).is_file():
        privacy = from_json(PrivacyCard, read_object(folder / CARD_FILE, missing), CARD_FILE, missing)
    evaluations = {
        file.parent.name: from_json(
            Evaluation, read_object(file, missing), f"eval/{file.parent.name}/{METRICS_FILE}", missing
        )
        for file in sorted((folder / "eval").glob(f"*/{METRICS_FILE}"))
    }
    scores, skipped = _merged_scores(result, evaluations, missing)
    try:
        missing += resumed_words(folder)
    except UserError as error:
        missing.append(str(error))
    if not any(scores.values()):
        missing.append("There are no scores: no evaluation finished, or none was asked for.")
    return Run(folder, result, rounds, config, manifest, privacy, scores, skipped, tuple(missing), evaluations)


def _merged_scores(
    result: RunResult, evaluations: Mapping[str, Evaluation], missing: list[str]
) -> tuple[dict[str, dict[str, BenchmarkMetrics]], dict[str, str]]:
    """From result.json, filled up from eval/<label>/metrics.json (all that a failed run has)."""
    scores = {label: dict(metrics) for label, metrics in result.scores.items() if not of_a_round(label)}
    skipped = dict(result.skipped)
    for label, evaluation in evaluations.items():
        if not of_a_round(label):
            known = scores.setdefault(label, {})
            if other := [key for key, metrics in evaluation.scores.items() if known.get(key, metrics) != metrics]:
                missing.append(
                    f"{RESULT_FILE} has other scores than eval/{label}/{METRICS_FILE} ({', '.join(other)}), and its "
                    "own are shown: one of the two files was changed. `verify` computes them again from the rows."
                )
            known |= {key: metrics for key, metrics in evaluation.scores.items() if key not in known}
        for key, reason in evaluation.skipped.items():
            skipped.setdefault(key, reason)
    return scores, skipped


def _read_rounds(folder: Path, missing: list[str], result: RunResult) -> tuple[RoundLine, ...]:
    if not (folder / ROUNDS_FILE).is_file():
        if result.mode != "evaluate":
            missing.append("rounds.jsonl is missing: there are no figures by round.")
        return ()
    problems: list[str] = []
    rounds = readable_rounds(folder, problems)
    missing += problems[:MOST_NAMED]
    if len(problems) > MOST_NAMED:
        missing.append(f"rounds.jsonl: {len(problems) - MOST_NAMED} more values or lines cannot be read.")
    by_number = {line.round: line for line in rounds}
    if result.mode == "federated" and result.rounds not in (None, len(by_number)):
        missing.append(f"{ROUNDS_FILE} has {plural(len(by_number), 'round')}, {RESULT_FILE} says {result.rounds}.")
    elif not rounds and result.mode != "evaluate":
        missing.append(f"{ROUNDS_FILE} has no round: the run ended before the first one closed.")
    if [line.round for line in rounds] != list(range(1, len(rounds) + 1)):
        missing.append(
            f"{ROUNDS_FILE} is damaged: its lines are not rounds 1 to {len(by_number)}, each once and in order. The "
            "last line of each round counts."
        )
    return tuple(by_number[number] for number in sorted(by_number))
