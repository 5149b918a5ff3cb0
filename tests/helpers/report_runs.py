"""Run folders as finished runs leave them, made up for the tests of the report, and the structure of the page made of
them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from fedfinlora.config.values import build, to_plain
from fedfinlora.report import BenchmarkInfo, write_report

GROUP_KEYS = {
    "general": ("fpb", "fiqa", "tfns", "nwgi", "headline", "ner"),
    "certificate": ("cfa_level1", "cfa_level2", "cfa_level3", "cpa_reg"),
    "reporting": ("xbrl_finer", "xbrl_fnxl", "xbrl_term"),
    "analysis": (
        "xbrl_tags_extract",
        "xbrl_value_extract",
        "xbrl_formula_extract",
        "xbrl_formula_calc_extract",
        "financebench",
        "formula",
    ),
}
BERTSCORE_KEYS = ("xbrl_term", "financebench")
ACCURACY_KEYS = [key for keys in GROUP_KEYS.values() for key in keys if key not in BERTSCORE_KEYS]
VOID_TAGS = {"meta", "input", "link", "br", "circle", "rect", "line", "polyline", "polygon", "path"}


def catalogue() -> list[BenchmarkInfo]:
    return [
        BenchmarkInfo(
            key,
            key.upper(),
            group,
            {"Base": (None if key in BERTSCORE_KEYS else 40.0, 0.5), "LoRA 8-bit": (80.0, 0.9)},
            notes="A flaw.",
        )
        for group, keys in GROUP_KEYS.items()
        for key in keys
    ]


def metrics(accuracy: float, n: int = 24) -> dict[str, Any]:
    spread = 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 0.01) / n)
    return {
        "n": n,
        "unparsed": 3,
        "unparsed_share": 3 / n,
        "accuracy": accuracy,
        "accuracy_ci95": [max(accuracy - spread, 0.0), min(accuracy + spread, 1.0)],
        "f1_macro": accuracy,
        "f1_weighted": accuracy,
        "finlora_accuracy": accuracy,
        "finlora_f1": 2 * accuracy / (1 + accuracy),
        "finlora_ambiguous": 1,
    }


def bertscore_metrics(f1: float, n: int = 24) -> dict[str, Any]:
    return {
        "n": n,
        "unparsed": 0,
        "bertscore_precision": f1,
        "bertscore_recall": f1,
        "bertscore_f1": f1,
        "bertscore_model": "all-MiniLM-L6-v2",
        "bertscore_layer": 5,
    }


LABELS = ("negative", "neutral", "positive")


def detailed(accuracy: float, n: int = 24) -> dict[str, Any]:
    """Metrics with everything that a benchmark with a closed set of labels may have."""
    right = round(accuracy * n / 3)
    wrong = n // 3 - right - 1
    counts = [
        [right if row == column else wrong if column == (row + 1) % 3 else 0 for column in range(3)] + [0, 1]
        for row in range(3)
    ]
    classes = [
        {
            "label": label,
            "support": n // 3,
            "answered": n // 3,
            "precision": accuracy,
            "recall": accuracy,
            "f1": accuracy,
        }
        for label in LABELS
    ]
    return {
        **metrics(accuracy, n),
        "matthews": accuracy / 2,
        "matthews_ci95": [accuracy / 2 - 0.1, accuracy / 2 + 0.1],
        "finlora_accuracy_ci95": [accuracy - 0.1, accuracy + 0.1],
        "labels_accuracy": 0.625,
        "labels_accuracy_ci95": [0.5, 0.75],
        "too_long": 0,
        "decoding": {"rows_checked": 4, "rows_differ": 1},
        "classes": classes,
        "confusion": {"labels": list(LABELS), "answers": [*LABELS, "other", "unparsed"], "counts": counts},
    }


def records(benchmark: str, n: int = 24) -> list[dict[str, Any]]:
    """Rows of an evaluation: a third right, a third wrong, a third unparsed and long."""
    outputs = ("neutral", "positive", "I cannot say <script>. " * 120)
    return [
        {
            "id": f"{benchmark}/test/{index:06d}",
            "prompt_sha256": "ab" * 32,
            "target": "neutral",
            "output": outputs[index % 3],
            "parsed": (None if index % 3 == 2 else outputs[index % 3]),
            "correct": index % 3 == 0,
            "finlora_correct": index % 3 == 0,
            "finlora_ambiguous": False,
        }
        for index in range(n)
    ]


def add_evaluations(folder: Path) -> Path:
    """Give a run the eval/ folder that its scores come from, with all optional figures, and validation scores by
    round.
    """
    result = json.loads((folder / "result.json").read_text())
    for label, scores in result["scores"].items():
        for key in ACCURACY_KEYS:
            scores[key] = detailed(scores[key]["accuracy"])
        place = folder / "eval" / label
        place.mkdir(parents=True)
        for key in scores:
            lines = "".join(json.dumps(record) + "\n" for record in records(key))
            (place / f"{key}.jsonl").write_text(lines, encoding="utf-8")
        summary = {
            "label": label,
            "synthetic": False,
            "scores": scores,
            "skipped": {},
            "groups": {
                "general": {
                    "score": 0.5,
                    "score_ci95": [0.4, 0.6],
                    "finlora_score": 0.5,
                    "benchmarks": [],
                    "missing": [],
                }
            },
            "seconds": dict.fromkeys(scores, 2.0),
            "peak_cache_gib": 0.5,
        }
        (place / "metrics.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        score = 0.5 - 0.1 * abs(line["round"] - 2)
        line["validation"] = {"score": score, "scores": {}, "best": line["round"] <= 2}
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def all_scores(accuracy: float) -> dict[str, Any]:
    accuracies = {key: metrics(min(accuracy + 0.02 * (index % 5), 1.0)) for index, key in enumerate(ACCURACY_KEYS)}
    return {**accuracies, **{key: bertscore_metrics(0.3 + accuracy / 2) for key in BERTSCORE_KEYS}}


def round_record(number: int, banks: int, reason: str = "") -> dict[str, Any]:
    """One line of rounds.jsonl; with a reason, the last bank is rejected."""
    replies = [
        {
            "bank": f"bank-{index}",
            "status": "ok",
            "code": "",
            "reason": "",
            "rows": 160,
            "steps": 10,
            "tokens": 9000 + 100 * index,
            "answer_tokens": 320,
            "train_loss": 2.4 / number + 0.1 * index,
            "holdout_loss": 2.6 / number + 0.15 * index,
            "holdout_rows": 16,
            "delta_norm": 0.8,
            "bytes_up": 1_843_200,
            "bytes_down": 1_843_200,
        }
        for index in range(banks)
    ]
    if reason:
        replies[-1] |= {
            "status": "rejected",
            "code": "norm",
            "reason": reason,
            "train_loss": None,
            "holdout_loss": None,
        }
    return {
        "round": number,
        "status": "ok",
        "banks": replies,
        "train_loss": 2.4 / number,
        "holdout_loss": 2.6 / number,
        "update_norm": 0.7,
        "bytes_up": 1_843_200 * banks,
        "bytes_down": 1_843_200 * banks,
        "adapter_sha256": "ab" * 32,
        "scores": {"fpb": metrics(0.2 * number), "fiqa": metrics(0.15 * number)} if number % 2 else {},
        "timings": {
            "total_s": 12.1,
            "train_s": 11.0,
            "aggregate_s": 0.01,
            "evaluate_s": 0.0,
            "banks": {f"bank-{index}": {"train_s": 5.5 + index, "tokens_per_s": 800.0} for index in range(banks)},
        },
    }


def make_run(
    folder: Path,
    mode: str = "federated",
    base: float | None = 0.2,
    final: float | None = 0.45,
    rounds: int = 3,
    banks: int = 2,
    result: Mapping[str, Any] | None = None,
    reason: str = "",
) -> Path:
    """A complete run folder, as a finished run leaves it; `result` replaces single entries of result.json."""
    folder.mkdir(parents=True)
    scores = {label: all_scores(value) for label, value in (("base", base), ("final", final)) if value is not None}
    values = {
        "schema_version": 1,
        "mode": mode,
        "status": "completed",
        "run": folder.name,
        "model": "smollm2-135m",
        "peft": "lora",
        "strategy": "fedavg",
        "rounds": rounds,
        "banks": banks,
        "seed": 0,
        "rows_trained": 160 * rounds * banks,
        "tokens_trained": 9000 * rounds * banks,
        "wall_s": {"total": 171.0, "train": 96.0, "evaluate": 70.0, "aggregate": 0.1},
        "bytes_up": 1_843_200 * rounds * banks,
        "bytes_down": 1_843_200 * rounds * banks,
        "privacy": None,
        "scores": scores,
        "skipped": {},
        "synthetic": False,
        "config_sha256": "cd" * 32,
        "finished_at": "2025-11-23T01:00:00Z",
        **(result or {}),
    }
    (folder / "result.json").write_text(json.dumps(values), encoding="utf-8")
    records = [round_record(number, banks, reason if number == rounds else "") for number in range(1, rounds + 1)]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    config = to_plain(
        build({"num_server_rounds": rounds + 1, "run_name": folder.name, "dataset": {"tasks": ["fpb", "fiqa"]}})
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    manifest = {
        "versions": {"torch": "2.13.0"},
        "python": "3.11",
        "seed": 0,
        "source_sha256": "ef" * 32,
        "data_sha256": {"a": "01"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """The structure of a page: its tags in order, its attributes, its text; raises when tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def element(html: str, beginning: str) -> str:
    """The HTML of one section or row, from `beginning` to where its kind of element ends next."""
    tag = re.match(r"<(\w+)", beginning)
    assert tag
    return beginning + html.split(beginning, 1)[1].split(f"</{tag[1]}>")[0]


def report(tmp_path: Path, *runs: Path) -> str:
    return write_report(runs, tmp_path / "report.html", catalogue()).read_text(encoding="utf-8")
