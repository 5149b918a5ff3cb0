"""A run folder as the report needs it. Whatever is missing or broken becomes a sentence in `Run.missing`, not an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.report.markup import number
from fedfinlora.resuming import resumed_words

RUN_FILES = ("result.json", "rounds.jsonl", "config.yaml", "manifest.json", "progress.jsonl")

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run folder, read."""

    folder: Path
    result: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    privacy: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Metrics]]
    """Label ("base", "final", …) -> benchmark key -> metrics, without the scores by round."""
    skipped: Mapping[str, str]
    """Benchmark key -> why it was not scored."""
    missing: tuple[str, ...]
    """What the report cannot show, one sentence each."""
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Label -> all of eval/<label>/metrics.json: groups, seconds, speed."""

    @property
    def name(self) -> str:
        return str(self.result.get("run") or self.folder.name)

    @property
    def mode(self) -> str:
        return str(self.result.get("mode") or "federated")

    @property
    def status(self) -> str:
        return str(self.result.get("status") or "unfinished")

    @property
    def reason(self) -> str:
        return str(self.result.get("reason") or "")

    @property
    def model(self) -> str:
        """The base model as it was loaded, e.g. "smollm2-135m nf4"."""
        model = mapping(self.config.get("model"))
        quantization = str(model.get("quantization") or "")
        name = str(self.result.get("model") or model.get("name") or "unknown model")
        return name if quantization in ("", "none") else f"{name} {quantization}"

    @property
    def banks(self) -> list[str]:
        """The names of all banks that appear in any round, bank-2 before bank-10."""
        names = {bank_name(bank) for record in self.rounds for bank in banks_of(record)}
        return sorted(names, key=lambda name: ([int(part) for part in re.findall(r"[0-9]{1,18}", name)], name))

    def records(self, label: str, benchmark: str) -> Iterator[Mapping[str, Any]]:
        """The evaluated rows of one benchmark, one by one; lines that cannot be read are left out."""
        file = self.folder / "eval" / label / f"{benchmark}.jsonl"
        if not file.is_file():
            return
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, Mapping):
                    yield record


def of_a_round(label: str) -> bool:
    """Whether an evaluation is one of the scores by round ("round_002", "validation_round_002"), which the curves show."""
    return re.fullmatch(r"(\w+_)?round_[0-9]+", label) is not None


def round_number(record: Mapping[str, Any], default: int = 0) -> int:
    """The number of one line of rounds.jsonl."""
    return int(number(record.get("round")) or default)


def best_round(run: Run) -> int | None:
    """The best round on the validation rows; None where nothing was validated."""
    said = number(run.result.get("best_round"))
    best = [round_number(record) for record in run.rounds if mapping(record.get("validation")).get("best") is True]
    return int(said) if said is not None else best[-1] if best else None


def bank_name(bank: Mapping[str, Any]) -> str:
    return str(bank.get("bank", "?"))


def banks_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The banks of one line of rounds.jsonl."""
    banks = record.get("banks")
    return [bank for bank in banks if isinstance(bank, Mapping)] if isinstance(banks, list) else []


def timings_of(record: Mapping[str, Any], bank: str = "") -> Mapping[str, Any]:
    """The wall-clock figures of one round, or of one bank in it."""
    timings = mapping(record.get("timings"))
    return mapping(mapping(timings.get("banks")).get(bank)) if bank else timings


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
    result = _read_json(folder / "result.json", missing, "the run has not finished, or ended before it could write its result")
    rounds = _read_rounds(folder / "rounds.jsonl", missing, needed=result.get("mode") != "evaluate")
    config = _read_yaml(folder / "config.yaml", missing)
    manifest = _read_json(folder / "manifest.json", missing, "versions and hashes are not known")
    privacy = _read_json(folder / "privacy.json", missing) if (folder / "privacy.json").is_file() else {}
    evaluations = {file.parent.name: _read_json(file, missing) for file in sorted((folder / "eval").glob("*/metrics.json"))}
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
    result: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Metrics]], dict[str, str]]:
    """Scores and reasons from result.json, filled up from eval/<label>/metrics.json (a failed run may have only those)."""
    scores = {
        str(label): _mappings(metrics) for label, metrics in mapping(result.get("scores")).items() if not of_a_round(str(label))
    }
    skipped = {str(key): str(reason) for key, reason in mapping(result.get("skipped")).items()}
    for label, evaluation in evaluations.items():
        if not of_a_round(label):
            known = scores.setdefault(label, {})
            for key, metrics in _mappings(evaluation.get("scores")).items():
                known[key] = {**metrics, **known.get(key, {})}
        for key, reason in mapping(evaluation.get("skipped")).items():
            skipped.setdefault(str(key), str(reason))
    return scores, skipped


def _read_rounds(file: Path, missing: list[str], needed: bool) -> tuple[Mapping[str, Any], ...]:
    if not file.is_file():
        if needed:
            missing.append("rounds.jsonl is missing: there are no figures by round.")
        return ()
    rounds, broken = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, Mapping):
            rounds.append(record)
        else:
            broken += bool(line.strip())
    if broken:
        missing.append(f"rounds.jsonl: {broken} unreadable line(s) left out.")
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
    except (OSError, ValueError):
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
    except (OSError, ValueError, yaml.YAMLError):
        value = None
    if not isinstance(value, Mapping):
        missing.append("config.yaml cannot be read: the configuration is not known.")
        return {}
    return value


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> dict[str, Metrics]:
    return {str(key): item for key, item in mapping(value).items() if isinstance(item, Mapping)}
