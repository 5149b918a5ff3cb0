"""Write docs/results.md, and its short tables in README.md, from the JSON files under docs: no number is typed in.

    python -m benchmarks.results                      the whole page, every section from its folder in docs/results (and
    docs/private)
    python -m benchmarks.results --keep sentiment federated=RUN centralised=RUN [local-0=RUN …]
    python -m benchmarks.results --keep all scores=RUN federated=RUN centralised=RUN --names fed-final=federated
    pooled-final=centralised
    python -m benchmarks.results --keep filings scores=RUN NAME=RUN … --names …
    python -m benchmarks.results --keep pass run=RUN          (demo likewise; tried with any names)
    python -m benchmarks.results --keep speed train=FILE evaluate=FILE …     (round with round=FILE; banks with
    load=FILE [crowd=RUN])

--keep puts what a section needs of finished runs and measurements into docs/results/SECTION, with their commands and
commits, in the place of what is there. RUN is a run's folder, FILE what `bench NAME --json FILE` wrote. A section whose
figures are not there is docs/results/SECTION.json: the text of its measurement, from a time when figures were not kept.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from benchmarks import answer_space, curriculum, flare_results, resources
from benchmarks.attack_results import attacks_section
from benchmarks.cost_results import deployed_round, many_banks, speed
from benchmarks.experts_results import experts_section
from benchmarks.grid_results import grid_section
from benchmarks.private_results import (
    noise_curve,
    origins,
    private_chart,
    private_short,
    private_table,
    private_words,
    read_cells,
)
from benchmarks.provenance import shown_command
from benchmarks.score_results import (
    FILINGS,
    LIMITS,
    PAIRED_FILE,
    all_benchmarks,
    comparison,
    demo,
    filings,
    full_pass,
    paired,
    tried,
)
from benchmarks.zoo_results import zoo_section
from fedfinlora.files import read_json, write_json
from fedfinlora.run.evaluation import METRICS_FILE

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NAMES_FILE = "names.json"
KEPT_OF_MANIFEST = ("command", "git_commit", "cpus")
KEPT_OF_CONFIG = ("dataset", "evaluation", "strategy", "train")
NOT_KEPT_OF_METRICS = ("classes", "confusion")
"""Answers of rows."""

SECTIONS = {
    "sentiment": "Four banks, four sentiment benchmarks",
    "tried": "What each setting gave",
    "grid": "What federating costs: rules, rounds and seeds",
    "attacks": "What dishonest banks do to each rule",
    "zoo": "PEFT methods at equal rows, bytes and steps",
    "experts": "One adapter a task, one for all, and routers",
    "all": "Every benchmark that has rows",
    "filings": "Where FinLoRA's federation lost 43 points: XBRL tags and values",
    "flare": "FLARE",
    "curriculum": "A curriculum of two stages, and its controls",
    "private": "What privacy costs",
    "pass": "A full pass over the benchmarks",
    "answer-space": "Where the answer begins",
    "speed": "Speed",
    "resources": "What runs cost",
    "round": "A deployed round, without its training",
    "banks": "Many banks",
    "demo": "The demonstration",
}
"""Section -> heading, in the order of docs/results.md."""
OF_GRIDS = ("grid", "attacks", "zoo", "experts", "curriculum", "private")
"""Kept cell by cell, by `benchmarks.grid`, `attacks`, `zoo`, `experts`, `curriculum` and `private_grid`."""

CHARTS = {
    "privacy.svg": ("Mean accuracy by epsilon", private_chart),
    "privacy-noise.svg": ("Mean accuracy by signal to noise", noise_curve),
}


def main() -> None:
    """Keep what is given, then write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="WORD",
        help="SECTION NAME=RUN …: keep these runs' figures for a section",
    )
    options.add_argument("--names", nargs="*", default=[], metavar="LABEL=NAME", help="what the tables call a label")
    chosen = options.parse_args()
    can_keep = [one for one in SECTIONS if one not in OF_GRIDS]
    if chosen.keep:
        section, *given = chosen.keep
        if section not in can_keep or not all("=" in word for word in given):
            options.error(f"--keep takes a section ({', '.join(can_keep)}) and NAME=RUN or NAME=FILE.")
        keep(section, {name: Path(place) for name, place in (word.split("=", 1) for word in given)}, chosen.names)
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")


def keep(section: str, given: Mapping[str, Path], names: list[str], docs: Path = DOCS) -> None:
    """Put what a section needs of runs and measurements into docs/results/SECTION."""
    folder = docs / "results" / section
    shutil.rmtree(folder, ignore_errors=True)
    for name, place in given.items():
        if place.is_dir():
            _keep_run(place, folder / name)
        else:
            figures = read_json(place)
            write_json(folder / f"{name}.json", figures | {"command": shown_command(figures["command"])})
    labels = dict(word.split("=", 1) for word in names)
    if labels:
        write_json(folder / NAMES_FILE, labels)
    label_of = {name: label for label, name in labels.items()}
    if section == "filings" and {"federated", "centralised"} <= set(label_of):
        figures = paired(given["scores"], label_of["centralised"], label_of["federated"], FILINGS)
        write_json(folder / "scores" / PAIRED_FILE, figures)
    (docs / "results" / f"{section}.json").unlink(missing_ok=True)


def _keep_run(run: Path, folder: Path) -> None:
    """Result, rounds, metrics and the settings that are shown; of the manifest the command, without places of one
    machine, and the commit.
    """
    manifest, config = read_json(run / "manifest.json"), yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    manifest = {key: manifest[key] for key in KEPT_OF_MANIFEST}
    config = {key: config[key] for key in KEPT_OF_CONFIG} | {"dataset": {"tasks": config["dataset"]["tasks"]}}
    write_json(folder / "manifest.json", manifest | {"command": shown_command(manifest["command"])})
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_json(folder / "result.json", read_json(run / "result.json"))
    if (run / "rounds.jsonl").is_file():
        shutil.copyfile(run / "rounds.jsonl", folder / "rounds.jsonl")
    for file in sorted((run / "eval").glob(f"*/{METRICS_FILE}")):
        metrics = read_json(file)
        scores = {
            key: {name: value for name, value in one.items() if name not in NOT_KEPT_OF_METRICS}
            for key, one in metrics["scores"].items()
        }
        write_json(folder / "eval" / file.parent.name / METRICS_FILE, metrics | {"scores": scores})


def _runs(folder: Path, *without: str) -> list[Path]:
    return sorted(run for run in folder.iterdir() if run.is_dir() and run.name not in without)


def _names(folder: Path) -> dict[str, str]:
    return dict(read_json(folder / NAMES_FILE)) if (folder / NAMES_FILE).is_file() else {}


MAKERS: dict[str, Callable[[Path], str]] = {
    "sentiment": lambda at: (
        f"{comparison(at / 'federated', at / 'centralised', _runs(at, 'federated', 'centralised'))}\n\n{LIMITS}"
    ),
    "tried": lambda at: tried(_runs(at)),
    "grid": grid_section,
    "attacks": attacks_section,
    "zoo": zoo_section,
    "experts": experts_section,
    "all": lambda at: all_benchmarks(at / "scores", _names(at), _runs(at, "scores")),
    "filings": lambda at: filings(at / "scores", _names(at), _runs(at, "scores")),
    "flare": lambda at: flare_results.section(read_json(at / "figures.json")),
    "pass": lambda at: full_pass(at / "run"),
    "speed": lambda at: speed([read_json(file) for file in sorted(at.glob("*.json"))]),
    "answer-space": lambda at: answer_space.section(read_json(at / "figures.json")),
    "resources": lambda at: resources.section(read_json(at / "figures.json")),
    "round": lambda at: deployed_round(read_json(at / "round.json")),
    "banks": lambda at: many_banks(read_json(at / "load.json"), at / "crowd" if (at / "crowd").is_dir() else None),
    "demo": lambda at: demo(at / "run"),
    "curriculum": curriculum.section,
}
"""Section -> its text, from its folder in docs/results."""


def section_of(name: str, docs: Path = DOCS) -> str:
    """A section's text; "" where there is nothing of it."""
    folder, text = docs / "results" / name, docs / "results" / f"{name}.json"
    if name == "private":
        cells = read_cells(docs / "private")
        shown = [f"![{title}]({file})" for file, (title, chart) in CHARTS.items() if cells and chart(cells)]
        return (
            "\n".join([private_table(cells), "", *shown, "", private_words(cells), "", *origins(cells)])
            if cells
            else ""
        )
    if folder.is_dir():
        return MAKERS[name](folder)
    return "\n".join(read_json(text)["text"]) if text.is_file() else ""


def pages(docs: Path = DOCS, readme: Path = ROOT / "README.md") -> dict[Path, str]:
    """Every file that the command writes -> its text."""
    texts = {name: text for name in SECTIONS if (text := section_of(name, docs))}
    as_text = [SECTIONS[name] for name in texts if (docs / "results" / f"{name}.json").is_file()]
    parts = [
        "# Results",
        "",
        "Generated by `python -m benchmarks.results` from docs/results and docs/private; do not edit.",
        "",
    ]
    if as_text:
        parts += [
            f"Measured before figures were kept, so that only the text is there to write again: {', '.join(as_text)}.",
            "",
        ]
    for name, text in texts.items():
        parts += [f"## {SECTIONS[name]}", "", f"<!-- {name}:start -->", text, f"<!-- {name}:end -->", ""]
    cells = read_cells(docs / "private")
    short = readme.read_text("utf-8")
    for name, block in {
        "results": texts.get("sentiment", "").split("\n\n- ")[0],  # without the commands and limits, which are there
        "privacy": private_short(cells) if cells else "",
    }.items():
        if block:
            short = _between(short, name, block)
    charts = {docs / file: picture for file, (_, chart) in CHARTS.items() if cells and (picture := chart(cells))}
    return {docs / "results.md": "\n".join(parts), readme: short, **charts}


def _between(text: str, name: str, block: str) -> str:
    marks = f"<!-- {name}:start -->\n", f"\n<!-- {name}:end -->"
    return re.sub(rf"{marks[0]}.*?{marks[1]}", lambda _: block.join(marks), text, flags=re.S)


if __name__ == "__main__":
    main()
