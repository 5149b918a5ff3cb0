"""The page on a run's folder, made from the records themselves: `python -m benchmarks.run_reference >
docs/run-folder.md`.

Keys, types and meanings are the fields of `fedfinlora.run.records`, `fedfinlora.run.evaluation` and
`fedfinlora.provenance.lines` with the strings below them. A test compares docs/run-folder.md with this module's output.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from benchmarks.config_reference import meanings
from fedfinlora.run import contributions, evaluation, events, explanation, lineage, records

INTRODUCTION = f"""\
# The folder of a run

Made by `python -m benchmarks.run_reference > docs/run-folder.md`; do not edit.

| path | what it is |
|---|---|
| `config.yaml` | the resolved configuration (docs/configuration.md) |
| `manifest.json` | versions, and hashes of code, data and base model |
| `rounds.jsonl` | one `RoundLine` a line, added when the round is closed |
| `adapters/round_NNN/`, `adapters/best/`, `adapters/final/` | PEFT folders; the final one with its statement, bill of materials and signature |
| `eval/<label>/<benchmark>.jsonl` | one `RowRecord` a line; labels are `base`, `round_NNN`, `validation_round_NNN`, `final`, or a name of your own |
| `eval/<label>/metrics.json` | `Evaluation` |
| `privacy.json` | `PrivacyCard`, where privacy is on |
| `audit.json` | the last privacy audit, where there was one |
| `contributions.json`, `explain.json`, `lineage.json` | what `contributions`, `explain` and `forget` have computed |
| `provenance.jsonl` | the chain of what was asked and answered, one line a step (docs/security.md); `verify` checks it |
| `result.json` | `RunResult`, written when the run ends, however it ends |
| `report.html`, `tensorboard/` | for people |
| `progress.jsonl` | one event a line as it happens, for the display, `attach`, the status page and the Python API's `on_event` |
| `state/` | for resume, `stop` and the status page |

All text is UTF-8. JSON has neither NaN nor infinity: a number that was not measured, or is infinite, is `null`. A key marked *may be absent* is not
written while it has its default. This is version {records.SCHEMA_VERSION} of the format: newer versions may add keys, which readers leave aside, and
older folders lack some, which then have their defaults. In Python: `fedfinlora.run.records.read_rounds(folder)`, `read_result(folder)`,
`fedfinlora.run.evaluation.read_evaluation(folder, label)` and `read_records(file)` give the typed records.
"""
FILES: Sequence[tuple[str, Sequence[type[Any]]]] = (
    (
        "rounds.jsonl",
        (records.RoundLine, records.BankEntry, records.BankPrivacy, records.RoundPrivacy, records.Validation,
        records.RoundTimings, records.BankTimings, records.AverageLoss, records.FactorLength, records.Synchronisation),
    ),
    ("result.json", (records.RunResult, records.WallTimes, records.PrivacySummary)),
    ("privacy.json", (records.PrivacyCard, records.BankCard)),
    ("eval/<label>/<benchmark>.jsonl", (evaluation.RowRecord,)),
    ("progress.jsonl", (events.Event, *events.KINDS)),
    ("contributions.json", (contributions.Contributions, contributions.BankContribution)),
    ("explain.json", (explanation.Explanation, explanation.Cause)),
    ("lineage.json", (lineage.Lineage,)),
    (
        "eval/<label>/metrics.json",
        (
            evaluation.Evaluation, evaluation.BenchmarkMetrics, evaluation.Estimate, evaluation.ClassRow,
            evaluation.ConfusionMatrix,
            evaluation.DecodingCheck, evaluation.GroupMean, evaluation.Overall, evaluation.Work, evaluation.TokenCounts,
        ),
    ),
)  # fmt: skip


def main() -> None:
    """Print the page."""
    print(render(), end="")


def render() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for file, classes in FILES:
        parts.append(f"## `{file}`\n")
        parts += map(_section, classes)
    return "\n".join(parts)


def _section(cls: type[Any]) -> str:
    explained = meanings(cls)
    lines = [
        f"### {cls.__name__}",
        "",
        _one_line(inspect.getdoc(cls) or "") + (f" `event` is `{cls.event}`." if getattr(cls, "event", "") else ""),
        "",
        "| key | type | meaning |",
        "|---|---|---|",
    ]
    for field in dataclasses.fields(cls):
        if field.name not in explained:  # inherited
            continue
        absent = "may be absent" if field.metadata.get("omitted") else ""
        meaning = "; ".join(filter(None, (_one_line(explained[field.name]).rstrip("."), absent)))
        lines.append(f"| `{field.name}` | {_type(str(field.type))} | {meaning} |")
    return "\n".join([*lines, ""])


def _type(annotation: str) -> str:
    return f"`{annotation.replace('Mapping[', 'dict[').replace('|', chr(92) + '|')}`"


def _one_line(words: str) -> str:
    return " ".join(words.split())


if __name__ == "__main__":
    main()
