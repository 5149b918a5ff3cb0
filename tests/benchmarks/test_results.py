"""The tables of docs/results.md are made from run folders and measurements; here from real evaluations of the tiny
model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import random_adapter, tiny_config
from tiny_runs import write_lines

from benchmarks.cost_results import deployed_round, many_banks, speed
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
from benchmarks.results import DOCS, SECTIONS, keep, pages, section_of
from benchmarks.score_results import all_benchmarks, metrics_of
from eval.evaluate import evaluate_models
from eval.models import LocalModel
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.schema import Config
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.run.folder import write_config, write_manifest
from fedfinlora.run.records import RunResult, WallTimes, write_result

KEYS = ("fpb", "xbrl_tags_extract", "xbrl_value_extract")
FILES = {
    "fpb": "fpb_test",
    "xbrl_tags_extract": "xbrl_extract_tags_test",
    "xbrl_value_extract": "xbrl_extract_value_test",
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the base and two adapters that were never trained, as `evaluate` leaves it."""
    place = tmp_path_factory.mktemp("results")
    for key, name in FILES.items():
        target = {"fpb": "positive", "xbrl_tags_extract": "us-gaap:Assets"}.get(key, "352")
        lines = [json.dumps({"context": f"{key} {number} Answer: ", "target": target}) for number in range(4)]
        write_lines(place / "rows" / "test" / f"{name}.jsonl", lines)
    config: Config = tiny_config(
        dataset=DatasetConfig(source="finlora", root=str(place / "rows"), tasks=KEYS[:1]),
        evaluation=EvaluationConfig(benchmarks=KEYS, limit=3, reuse=False),
    )
    session = get_session(config)
    models = {"base": LocalModel(session, config, initial_adapter(session, config))}
    models |= {
        label: LocalModel(session, config, random_adapter(session.layout.size, seed))
        for seed, label in enumerate(("pooled-final", "fed-final"))
    }
    run = place / "scores"
    run.mkdir()
    write_config(run, config)
    write_manifest(run, config, {})
    evaluate_models(models, config, run)
    write_result(
        run, RunResult(mode="evaluate", status="finished", rows_trained=12, steps_trained=3, wall_s=WallTimes(60.0))
    )
    return run


_SECONDS = [{"overhead_s": seconds, "load_s": seconds / 2} for seconds in (20.0, 3.0)]
ROUND: dict[str, Any] = {
    "rounds": {"worker": _SECONDS, "no worker": [_SECONDS[0], {"overhead_s": 18.0, "load_s": 9.0}]},
    "machine": {"cpus": 2}, "model": "smollm2-135m", "quantization": "nf4",
    "ours": {"overhead_s": 3.0}, "reference": {"overhead_s": 18.0},
    "command": "python -m fedfinlora bench round --json /tmp/a.json", "git_commit": "abc",
}  # fmt: skip
NAMES = {"base": "base", "fed-final": "federated", "pooled-final": "centralised"}


def test_every_model_is_a_column_and_every_benchmark_a_row_of_both_tables(scored: Path) -> None:
    page = all_benchmarks(scored, NAMES, [scored])
    assert list(metrics_of(scored)) == ["base", "fed-final", "pooled-final"]
    assert page.count("| base | federated | centralised |") == 2
    for title in ("FPB (3)", "Tag Extraction (3)", "Value Extraction (3)"):
        assert page.count(f"| {title} |") == 2
    assert "No adapter was trained on Tag Extraction, Value Extraction." in page
    assert "Not scored: FiQA SA," in page


def test_figures_in_the_tables_are_those_of_the_metrics(scored: Path) -> None:
    page = all_benchmarks(scored, NAMES, [scored])
    score = metrics_of(scored)["fed-final"].scores["fpb"]
    low, high = score.bounds("accuracy")
    row = next(line for line in page.splitlines() if line.startswith("| FPB (3) |"))
    assert (
        row.split("|")[3]
        .strip()
        .startswith(f"{100 * score.value('accuracy'):.1f} ({100 * low:.0f} to {100 * high:.0f})")
    )


@pytest.fixture(scope="module")
def kept(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A docs folder with what the sections need of the evaluation, and a bench's file."""
    docs = tmp_path_factory.mktemp("docs")
    (docs / "README.md").write_text("top\n<!-- results:start -->\nold\n<!-- results:end -->\nbottom\n")
    (docs / "private").mkdir()
    (docs / "results").mkdir()
    (docs / "results" / "filings.json").write_text(
        json.dumps({"section": "filings", "origins": [], "text": ["as it was", ""]})
    )
    (docs / "results" / "demo.json").write_text(
        json.dumps({"section": "demo", "origins": [], "text": ["old demo", "- `c`"]})
    )
    labels = [f"{label}={name}" for label, name in NAMES.items()]
    keep("filings", {"scores": scored, "trained": scored}, labels, docs)
    keep("all", {"scores": scored, "trained": scored}, labels, docs)
    (docs / "round.json").write_text(
        json.dumps(ROUND | {"command": "python -m fedfinlora bench round --json /tmp/a.json"})
    )
    keep("round", {"round": docs / "round.json"}, [], docs)
    return docs


def test_filings_compare_federated_with_centralised_on_the_same_rows(kept: Path) -> None:
    page = section_of("filings", kept)
    assert page.count("| base |") == page.count("| federated |") == page.count("| centralised |") == 1
    assert "- Tag Extraction: federated is +0.0 points from centralised on the same rows" in page
    assert "trained 12 rows in 3 steps" in page
    assert "base 42.20, federated 47.62, centralised 90.98" in page


def test_the_page_comes_from_what_is_kept_alone(scored: Path, kept: Path) -> None:
    """Kept figures give the tables that the runs give; a section without figures is the text of its measurement;
    nothing names a place.
    """
    assert section_of("all", kept) == all_benchmarks(scored, NAMES, [scored])
    written = pages(kept, kept / "README.md")
    page = written[kept / "results.md"]
    assert "old demo" in page
    assert "as it was" not in page
    assert "only the text is there to write again: The demonstration." in page
    assert page.index("## Every benchmark") < page.index("## Where FinLoRA's") < page.index("## A deployed round")
    assert written[kept / "README.md"] == (kept / "README.md").read_text(), "no sentiment and no privacy: it stays"
    files = [file for file in (kept / "results").rglob("*") if file.is_file()]
    assert not [file for file in files if str(scored) in file.read_text() or file.name == "predictions.jsonl"]
    assert "confusion" not in (kept / "results" / "all" / "scores" / "eval" / "base" / "metrics.json").read_text()


def test_the_committed_page_is_what_the_command_writes() -> None:
    for file, text in pages().items():
        assert file.read_text("utf-8") == text, f"{file.name}: run `python -m benchmarks.results`"


def test_every_section_kept_as_text_has_its_commands_and_commits() -> None:
    for file in (DOCS / "results").glob("*.json"):
        found = json.loads(file.read_text("utf-8"))
        assert (found["section"], bool(found["origins"])) == (file.stem, True)
        text = "\n".join(found["text"])
        assert all(f"`{one['command']}`, commit `{one['commit']}`" in text for one in found["origins"])
        assert file.stem in SECTIONS


def test_commands_are_shown_without_the_places_of_one_machine() -> None:
    command = (
        "python -m fedfinlora evaluate --base --adapter /tmp/x/pooled/adapters/final dataset.root=/home/me/finlora-few "
        "output_dir=/tmp/x "
        "run_name=scores overwrite=true evaluation.limit=50 start_adapter=/tmp/x/public/lora/adapters/final --json "
        "/tmp/x.json"
    )
    assert shown_command(command) == (
        "python -m fedfinlora evaluate --base --adapter pooled/adapters/final dataset.root=/data/finlora-few "
        "evaluation.limit=50 "
        "start_adapter=lora/adapters/final"
    )


def test_speed_names_benchmark_group_bound_and_what_differs() -> None:
    one = {
        "rows": 10, "prompt_tokens": 60.0, "read_tokens_per_row": 30.0, "ours_s_per_row": 0.1,
        "reference_s_per_row": 0.3, "ratio": 3.0,
        "products_s_per_row": 0.06, "differs": 1, "differs_row_by_row": 0, "compared": 8,
    }  # fmt: skip
    figures = {
        "bench": "evaluate", "command": "python -m fedfinlora bench evaluate --json /tmp/a.json", "git_commit": "abc",
        "ratio": 3.0,
        "ours": {"rows_per_s": 10.0}, "reference": {"name": "transformers generate", "rows_per_s": 3.3},
        "differs": {"outputs": 1, "row_by_row": 0, "of": 8}, "rows": 10, "benchmarks": {"fpb": one},
        "groups": {"classification": {**one, "bound": 5.0, "aim": 5.0, "ours_rows_per_s": 10.0,
        "reference_rows_per_s": 3.3}},
        "peak_cache_gib": 0.5, "cache_gib": 2.0, "peak_memory_gib": 3.0, "products_flop_per_s": 1.5e11,
        "dtype": "float32",
        "machine": {"cpus": 2, "gpu": ""},
    }  # fmt: skip
    filing = {
        **figures,
        "bench": "train",
        "command": "python -m fedfinlora bench train --rows xbrl",
        "groups": {},
        "benchmarks": {},
    }
    table = speed([figures, {key: value for key, value in filing.items() if key != "peak_cache_gib"}])
    assert (
        "| classification | 3.00 | 5 | 5.0 | 10 rows a second | 3.3 rows a second | 1 of 8 outputs (0 row by row) | "
        "10 "
        "|"
    ) in table
    assert "| – FPB, 60 prompt tokens, 30 read | 3.00 | | 5.0 |" in table
    assert "| `bench train --rows xbrl` |" in table
    assert "- `python -m fedfinlora bench evaluate`, commit `abc`." in table
    assert "0.50 GiB of keys and values at most (limit 2), 3.0 GiB in all" in table
    again = {
        **figures,
        "benchmarks": {"fpb": {**one, "ours_s_per_row": 0.05, "ratio": 6.0, "differs": 0}},
        "git_commit": "def",
    }
    table = speed([figures, again])
    assert "| – FPB, 60 prompt tokens, 30 read | 6.00 |" in table, "measured again: the later one counts"
    assert "| classification | 6.00 | 5 | 5.0 | 20 rows a second |" in table, "and the group is made again"
    assert table.count("FPB") == 1
    assert "commit `abc`" in table
    assert "commit `def`" in table


def private_cell(
    kind: str, seed: int, accuracy: float, *, adapter: str = "lora_xs", signal: float = 0.0
) -> dict[str, Any]:
    """The figures of one run, as benchmarks.private_grid writes them."""
    method = "lora_xs" if adapter == "lora_xs" else "lora"
    cell = {
        "adapter": adapter, "kind": kind, "seed": seed, "mean": accuracy, "mean_half_interval": 0.098, "minutes": 12.0,
        "parameters": 7680,
        "peft": {"method": method, "freeze_a": adapter == "ffa", "rank": 8, "target_modules": ["v_proj", "o_proj"]},
        "scores": {"fpb": {"n": 100, "accuracy": accuracy, "accuracy_ci95": [0.1, 0.9], "matthews": 0.2}},
        "command": f"python -m fedfinlora simulate seed={seed}", "commit": "abc",
        "machine": {"cpus": 2, "gpu": "", "platform": "x"},
    }  # fmt: skip
    if kind != "start":
        cell |= {"banks": 4, "rounds": 50, "steps": 50, "rows_processed": 6700}
    if signal:
        bank = {"bank": "bank-0", "noise_multiplier": 0.5, "epsilon_spent": 7.9, "epsilon_planned": 7.9, "delta": 1e-5}
        cell |= {
            "noise_to_signal": 0.75,
            "signal_to_noise": signal,
            "privacy": [bank, {**bank, "noise_multiplier": 0.64}],
        }
    return cell


def private_cells(folder: Path) -> list[Any]:
    """A grid of which two settings are finished, read from its files."""
    cells = [
        private_cell("start", 0, 0.4),
        private_cell("noise", 0, 0.38, signal=3.2),
        private_cell("3", 0, 0.6, signal=450.0),
        *(private_cell("none", seed, 0.7 + seed / 50) for seed in (1, 0)),
        *(private_cell("8", seed, 0.68 + seed / 50, signal=700.0) for seed in (0, 1)),
        private_cell("none", 0, 0.75, adapter="ffa"),
    ]
    folder.mkdir()
    for cell in cells:
        (folder / f"{cell['adapter']}-{cell['kind']}-{cell['seed']}.json").write_text(json.dumps(cell))
    return read_cells(folder)


def test_what_privacy_costs_is_ordered_and_comes_from_the_cells(tmp_path: Path) -> None:
    lines = private_table(private_cells(tmp_path / "private")).splitlines()
    xs = "LoRA-XS, rank 8 on v, o | 7,680"
    assert lines[2] == f"| without privacy | {xs} | – | – | – | 71.0 | 71.0 (70.0 to 72.0) | – | 0, 1 |"
    assert lines[3] == f"| 8 | {xs} | 0.50 to 0.64 | 0.75 C | 700 | 69.0 | 69.0 (68.0 to 70.0) | -2.0 | 0, 1 |"
    assert lines[4] == f"| 3 | {xs} | 0.50 to 0.64 | 0.75 C | 450 | 60.0 | 60.0 | -10.0 | 0 |", (
        "seed 0 against seed 0 alone"
    )
    assert lines[5].startswith(f"| noise alone | {xs} |")
    assert lines[6] == f"| public start | {xs} | – | – | – | 40.0 | 40.0 | – | 0 |"
    assert lines[7].startswith("| without privacy | FFA-LoRA, rank 8 on v, o |")


def test_words_on_privacy_say_which_aims_are_reached(tmp_path: Path) -> None:
    cells = private_cells(tmp_path / "private")
    words = private_words(cells)
    assert "4 banks with unequal shares, 50 rounds, 50 steps of each bank, 6,700 rows processed." in words
    assert (
        "71.0 without privacy, epsilon 8 -2.0 points (aim: at most 3 below; reached), epsilon 3 -10.0 points (aim: at "
        "most 6 below; missed)."
    ) in words
    assert "the largest epsilon spent by a row of any is 7.90" in words
    assert private_short(cells).startswith(
        "Mean accuracy of FPB, % (one run: ±10). LoRA-XS, rank 8 on v, o: without privacy 71.0, epsilon 8 69.0, "
        "epsilon 3 60.0, noise alone 38.0, public start 40.0."
    )
    assert len(origins(cells)) == len(cells)


def test_charts_on_privacy_show_every_setting(tmp_path: Path) -> None:
    cells = private_cells(tmp_path / "private")
    chart, curve = private_chart(cells), noise_curve(cells)
    assert all(words in chart for words in ("without privacy", "epsilon 8", "noise alone", "public start", "FFA-LoRA"))
    assert "mean accuracy by signal to noise: LoRA-XS, rank 8 on v, o from 38 % to 69 %." in curve
    assert noise_curve([cell for cell in cells if cell["kind"] == "none"]) == "", "nothing private, no curve"


def test_a_deployed_round_shows_what_a_worker_saves() -> None:
    text = deployed_round(ROUND)
    assert "| 2 | 3.0 s | 1.5 s | 18.0 s | 9.0 s |" in text
    assert "3.0 s a round pass outside training with workers and 18.0 s without" in text
    assert text.endswith("- `python -m fedfinlora bench round`, commit `abc`.")


def test_many_banks_show_seconds_and_memory_by_their_number() -> None:
    run = {
        "banks": 10, "adapter_bytes": 2e7, "round_s": [4.0, 6.0], "aggregate_s": [1.0, 1.5], "bytes_up": 4e8,
        "bytes_down": 1e8, "server_beyond_start_adapters": 3.5,
        "server_start_bytes": 100 * 2**20, "superlink_beyond_start_adapters": 12.0,
    }  # fmt: skip
    more = {**run, "banks": 100, "round_s": [60.0], "server_beyond_start_adapters": 3.6}
    text = many_banks(
        {"runs": [run, more], "cpus": 2, "command": "python -m benchmarks.load --banks 10", "git_commit": "abc"}, None
    )
    assert "| 10 | 5.0 s | 0.50 | 1.25 s | 0.50 GB | 3.5 | 12.0 |" in text
    assert "5,000,000 random numbers (20.0 MB)" in text
    assert "(0.50 s a bank with 10, 0.60 with 100)" in text
    assert text.endswith("- `python -m benchmarks.load --banks 10`, commit `abc`.")
