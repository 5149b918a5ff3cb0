"""A run folder as the report needs it. Whatever is missing or broken becomes a sentence in `Run.missing`, not an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.resuming import resumed_words
from fedfinlora.run.evaluation import METRICS_FILE, BenchmarkMetrics, Evaluation, RowRecord, Scores, readable_records
from fedfinlora.run.records import CARD_FILE, RESULT_FILE, ROUNDS_FILE, PrivacyCard, RoundLine, RunResult, readable_rounds
from fedfinlora.run.typed import from_json

MOST_NAMED = 3
"""Values of rounds.jsonl that cannot be read."""
RUN_FILES = ("result.json", "rounds.jsonl", "config.yaml", "manifest.json", "progress.jsonl")


@dataclass(frozen=True)
class Run:
    """One run folder, read."""

    folder: Path
    result: RunResult
    """All defaults where the run has not finished."""
    rounds: tuple[RoundLine, ...]
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
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
        return self.result.status or "unfinished"

    @property
    def reason(self) -> str:
        return self.result.reason

    @property
    def model(self) -> str:
        """The base model as it was loaded, e.g. "smollm2-135m nf4"."""
        model = mapping(self.config.get("model"))
        quantization = str(model.get("quantization") or "")
        name = str(self.result.model or model.get("name") or "unknown model")
        return name if quantization in ("", "none") else f"{name} {quantization}"

    @property
    def banks(self) -> list[str]:
        """The names of all banks that appear in any round, bank-2 before bank-10."""
        names = {entry.bank for line in self.rounds for entry in line.banks}
        return sorted(names, key=lambda name: ([int(part) for part in re.findall(r"[0-9]{1,18}", name)], name))

    def records(self, label: str, benchmark: str) -> Iterator[RowRecord]:
        """The evaluated rows of one benchmark, one by one; lines that cannot be read are left out."""
        return readable_records(self.folder / "eval" / label / f"{benchmark}.jsonl")


def of_a_round(label: str) -> bool:
    """Whether an evaluation is one of the scores by round ("round_002", "validation_round_002"), which the curves show."""
    return re.fullmatch(r"(\w+_)?round_[0-9]+", label) is not None


def best_round(run: Run) -> int | None:
    """The best round on the validation rows; None where nothing was validated."""
    best = [line.round for line in run.rounds if line.validation is not None and line.validation.best]
    return run.result.best_round if run.result.best_round is not None else best[-1] if best else None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders; a folder that only holds run folders (one for each bank alone) stands for those in it."""
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
    result = _read_result(folder, missing)
    rounds = _read_rounds(folder, missing, needed=result.mode != "evaluate")
    config = _read_yaml(folder / "config.yaml", missing)
    manifest = _read_json(folder / "manifest.json", missing, "versions and hashes are not known")
    privacy = _read_card(folder, missing) if (folder / CARD_FILE).is_file() else None
    evaluations = {
        file.parent.name: _read_evaluation(file, missing) for file in sorted((folder / "eval").glob(f"*/{METRICS_FILE}"))
    }
    scores, skipped = _merged_scores(result, evaluations)
    missing += _resumed_words(folder)
    if not any(scores.values()):
        missing.append("There are no scores: no evaluation finished, or none was asked for.")
    return Run(folder, result, rounds, config, manifest, privacy, scores, skipped, tuple(missing), evaluations)


def _resumed_words(folder: Path) -> list[str]:
    try:
        return resumed_words(folder)
    except UserError as error:
        return [str(error)]


def _merged_scores(
    result: RunResult, evaluations: Mapping[str, Evaluation]
) -> tuple[dict[str, dict[str, BenchmarkMetrics]], dict[str, str]]:
    """Scores and reasons from result.json, filled up from eval/<label>/metrics.json (a failed run may have only those)."""
    scores = {label: dict(metrics) for label, metrics in result.scores.items() if not of_a_round(label)}
    skipped = dict(result.skipped)
    for label, evaluation in evaluations.items():
        if not of_a_round(label):
            known = scores.setdefault(label, {})
            known |= {key: metrics for key, metrics in evaluation.scores.items() if key not in known}
        for key, reason in evaluation.skipped.items():
            skipped.setdefault(key, reason)
    return scores, skipped


def _read_evaluation(file: Path, missing: list[str]) -> Evaluation:
    return from_json(Evaluation, _read_json(file, missing), f"eval/{file.parent.name}/{METRICS_FILE}", missing)


def _read_card(folder: Path, missing: list[str]) -> PrivacyCard:
    return from_json(PrivacyCard, _read_json(folder / CARD_FILE, missing), CARD_FILE, missing)


def _read_result(folder: Path, missing: list[str]) -> RunResult:
    values = _read_json(folder / RESULT_FILE, missing, "the run has not finished, or ended before it could write its result")
    return from_json(RunResult, values, RESULT_FILE, missing)


def _read_rounds(folder: Path, missing: list[str], needed: bool) -> tuple[RoundLine, ...]:
    if not (folder / ROUNDS_FILE).is_file():
        if needed:
            missing.append("rounds.jsonl is missing: there are no figures by round.")
        return ()
    problems: list[str] = []
    rounds = readable_rounds(folder, problems)
    missing += problems[:MOST_NAMED]
    if len(problems) > MOST_NAMED:
        missing.append(f"rounds.jsonl: {len(problems) - MOST_NAMED} more values or lines cannot be read.")
    if not rounds and needed:
        missing.append("rounds.jsonl has no round: the run ended before the first one closed.")
    return tuple(rounds)


def _read_json(file: Path, missing: list[str], meaning: str = "") -> Mapping[str, Any]:
    consequence = f": {meaning}." if meaning else "."
    if not file.is_file():
        missing.append(f"{file.name} is missing{consequence}")
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping):
        missing.append(f"{file.name} cannot be read{consequence}")
        return {}
    return value


def _read_yaml(file: Path, missing: list[str]) -> Mapping[str, Any]:
    import yaml

    if not file.is_file():
        missing.append("config.yaml is missing: the configuration is not known.")
        return {}
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        value = None
    if not isinstance(value, Mapping):
        missing.append("config.yaml cannot be read: the configuration is not known.")
        return {}
    return value


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}
