"""The tables of docs/results.md are made from run folders and measurements; here from real evaluations of the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import random_adapter, tiny_config
from tiny_runs import write_lines

from benchmarks.cost_results import deployed_round, many_banks, speed
from benchmarks.private_results import private_chart, private_short, private_table, private_words
from benchmarks.provenance import shown_command
from benchmarks.results import all_benchmarks, filings, metrics_of, with_sections
from eval.evaluate import evaluate_models
from eval.models import LocalModel
from fedfinlora.config import Config, DatasetConfig, EvaluationConfig
from fedfinlora.models import get_session, initial_adapter
from fedfinlora.runfolder import write_config, write_manifest, write_result

KEYS = ("fpb", "xbrl_tags_extract", "xbrl_value_extract")
FILES = {"fpb": "fpb_test", "xbrl_tags_extract": "xbrl_extract_tags_test", "xbrl_value_extract": "xbrl_extract_value_test"}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the base and two adapters that were never trained, as `evaluate` leaves it."""
    place = tmp_path_factory.mktemp("results")
    for key, name in FILES.items():
        target = "positive" if key == "fpb" else "us-gaap:Assets"
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
    result = {"mode": "evaluate", "status": "finished", "rows_trained": 12, "steps_trained": 3, "wall_s": {"total": 60.0}}
    write_result(run, result)
    return run


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
    score = metrics_of(scored)["fed-final"]["scores"]["fpb"]
    low, high = score["accuracy_ci95"]
    row = next(line for line in page.splitlines() if line.startswith("| FPB (3) |"))
    assert row.split("|")[3].strip().startswith(f"{100 * score['accuracy']:.1f} ({100 * low:.0f} to {100 * high:.0f})")


def test_filings_say_how_far_federated_is_from_centralised_on_the_same_rows(scored: Path) -> None:
    page = filings(scored, NAMES, [scored])
    assert page.count("| base |") == page.count("| federated |") == page.count("| centralised |") == 1
    assert "- Tag Extraction: federated is +0.0 points from centralised on the same rows" in page
    assert "scores 12 rows in 3 steps" in page
    assert "base 42.20, federated 47.62, centralised 90.98" in page


def test_only_the_sections_that_are_given_are_written_anew() -> None:
    page = with_sections("", {"demo": "old demo", "speed": "old speed"})
    page = with_sections(page, {"speed": "new speed"})
    assert "old demo" in page
    assert "new speed" in page
    assert "old speed" not in page
    assert page.index("## Speed") < page.index("## The demonstration")


def test_commands_are_shown_without_the_places_of_one_machine() -> None:
    command = (
        "python -m fedfinlora evaluate --base --adapter /tmp/x/pooled/adapters/final dataset.root=/home/me/finlora-few output_dir=/tmp/x "
        "run_name=scores overwrite=true evaluation.limit=50 start_adapter=/tmp/x/public/lora/adapters/final --json /tmp/x.json"
    )
    assert shown_command(command) == (
        "python -m fedfinlora evaluate --base --adapter pooled/adapters/final dataset.root=/data/finlora-few evaluation.limit=50 "
        "start_adapter=lora/adapters/final"
    )


def test_speed_names_benchmark_group_bound_and_what_differs() -> None:
    one = {
        "rows": 10, "prompt_tokens": 60.0, "read_tokens_per_row": 30.0, "ours_s_per_row": 0.1, "reference_s_per_row": 0.3, "ratio": 3.0,
        "products_s_per_row": 0.06, "differs": 1, "differs_row_by_row": 0, "compared": 8,
    }  # fmt: skip
    figures = {
        "bench": "evaluate", "command": "python -m fedfinlora bench evaluate --json /tmp/a.json", "git_commit": "abc", "ratio": 3.0,
        "ours": {"rows_per_s": 10.0}, "reference": {"name": "transformers generate", "rows_per_s": 3.3},
        "differs": {"outputs": 1, "row_by_row": 0, "of": 8}, "rows": 10, "benchmarks": {"fpb": one},
        "groups": {"classification": {**one, "bound": 5.0, "aim": 5.0, "ours_rows_per_s": 10.0, "reference_rows_per_s": 3.3}},
        "peak_cache_gib": 0.5, "cache_gib": 2.0, "peak_memory_gib": 3.0, "products_flop_per_s": 1.5e11, "dtype": "float32",
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
        "| classification | 3.00 | 5 | 5.0 | 10 rows a second | 3.3 rows a second | 1 of 8 outputs (0 row by row) | 10 |"
        in table
    )
    assert "| – FPB, 60 prompt tokens, 30 read | 3.00 | | 5.0 |" in table
    assert "| `bench train --rows xbrl` |" in table
    assert "- `python -m fedfinlora bench evaluate`, commit `abc`." in table
    assert "0.50 GiB of keys and values at most (limit 2), 3.0 GiB in all" in table
    again = {**figures, "benchmarks": {"fpb": {**one, "ours_s_per_row": 0.05, "ratio": 6.0, "differs": 0}}, "git_commit": "def"}
    table = speed([figures, again])
    assert "| – FPB, 60 prompt tokens, 30 read | 6.00 |" in table, "measured again: the later one counts"
    assert "| classification | 6.00 | 5 | 5.0 | 20 rows a second |" in table, "and the group is made anew"
    assert table.count("FPB") == 1
    assert "commit `abc`" in table
    assert "commit `def`" in table


def private_run(
    place: Path, mode: str, epsilon: float, frozen: bool, accuracy: float, *, start: bool = False, sigma: float = 0.0
) -> Path:
    """A run's folder as far as the table of what privacy costs reads it; with start, that of `evaluate` on what the others began from."""
    import numpy as np
    from safetensors.numpy import save_file

    (place / "adapters" / "final").mkdir(parents=True)
    tensors = {"layer.lora_A.weight": np.zeros((2, 8), np.float32), "layer.lora_B.weight": np.zeros((4, 2), np.float32)}
    save_file(tensors, place / "adapters" / "final" / "adapter_model.safetensors")
    config = {
        "privacy": {"mode": mode, "epsilon": epsilon, "noise_multiplier": sigma}, "peft": {"freeze_a": frozen, "rank": 2, "target_modules": ["v_proj"]},
        "train": {"epochs": 1.0}, "num_server_rounds": 20,
    }  # fmt: skip
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    scores = {"final": {"fpb": {"n": 100, "accuracy": accuracy, "matthews": 0.25}}}
    (place / "result.json").write_text(
        json.dumps(
            {"scores": scores, "rounds": 20, "banks": 4, "rows_trained": 1958, "mode": "evaluate" if start else "federated"}
        )
    )
    banks = {"a": {"delta": 1e-3, "epsilon_planned": 0.012}, "b": {"delta": 1e-2, "epsilon_planned": 0.01}}
    (place / "privacy.json").write_text(json.dumps({"banks": banks}))
    return place


def test_what_privacy_costs_is_ordered_and_comes_from_the_runs(tmp_path: Path) -> None:
    runs = [
        private_run(tmp_path / "public", "none", 0.0, False, 0.4, start=True),
        private_run(tmp_path / "one", "example", 1.0, True, 0.3),
        private_run(tmp_path / "eight", "example", 8.0, False, 0.5),
        private_run(tmp_path / "open", "none", 0.0, False, 0.5),
    ]
    assert "draw" not in private_words(runs)
    for number in range(2):
        runs.append(private_run(tmp_path / f"noise-{number}", "example", 0.0, False, 0.35 + number / 10, sigma=20.0))
    lines = private_table(runs).splitlines()
    assert lines[0].split(" | ")[0] == "| epsilon"
    assert lines[2] == "| none | LoRA, rank 2 on v_proj | 24 | – | 50.0 | 50.0 (±9.8) | 0.25 |"
    assert lines[3].startswith("| 8 | LoRA, rank 2 on v_proj | 24 | 0.38 to 0.45 | 50.0 |"), "both banks' sigmas"
    assert lines[4].startswith("| 1 | FFA-LoRA, rank 2 on v_proj | 8 |"), "A is not sent"
    assert lines[5] == "| 0 | LoRA, rank 2 on v_proj | – | – | 40.0 | 40.0 (±9.6) | 0.25 |", "nothing of a bank is in it"
    words = private_words(runs)
    assert "At sigma 20 (epsilon 0.012) noise is all that moves the adapter" in words
    assert "draws of it gave mean accuracies of LoRA 35.0, 45.0." in words
    assert "4 banks" in words
    assert "5.0 % of a bank's rows, 24 on average; 20 rounds of one step each, 1,958 rows in all" in words
    short = private_short(runs)
    assert short.startswith(
        "Mean accuracy of FPB, % (±10). LoRA: without privacy 50.0, epsilon 8 50.0, the public start 40.0. FFA-LoRA: epsilon 1 30.0."
    )
    assert short.endswith("Noise alone gives 35.0 to 45.0.")
    assert "epsilon 8" in private_chart(runs)
    assert "public start" in private_chart(runs)


def test_a_deployed_round_shows_what_a_worker_saves() -> None:
    rounds = [{"overhead_s": seconds, "load_s": seconds / 2} for seconds in (20.0, 3.0)]
    figures = {
        "rounds": {"worker": rounds, "no worker": [rounds[0], {"overhead_s": 18.0, "load_s": 9.0}]}, "machine": {"cpus": 2}, "model": "smollm2-135m", "quantization": "nf4",
        "ours": {"overhead_s": 3.0}, "reference": {"overhead_s": 18.0}, "command": "python -m fedfinlora bench round --json /tmp/a.json", "git_commit": "abc",
    }  # fmt: skip
    text = deployed_round(figures)
    assert "| 2 | 3.0 s | 1.5 s | 18.0 s | 9.0 s |" in text
    assert "3.0 s a round pass beside training with workers and 18.0 s without" in text
    assert text.endswith("- `python -m fedfinlora bench round`, commit `abc`.")


def test_many_banks_show_seconds_and_memory_by_their_number() -> None:
    run = {
        "banks": 10, "adapter_bytes": 2e7, "round_s": [4.0, 6.0], "aggregate_s": [1.0, 1.5], "bytes_up": 4e8, "bytes_down": 1e8, "server_beyond_start_adapters": 3.5,
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
