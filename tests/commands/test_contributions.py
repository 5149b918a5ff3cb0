"""What kept updates tell: `forget`, `contributions` and `explain` on runs of the tiny model, and their arithmetic."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from round_runs import Runs
from tiny_runs import adapter_bytes, overrides, rounds_bytes, write_rows

from eval.metrics.row_values import RowValues, contrasts
from fedfinlora import cli
from fedfinlora.commands.contributions import LOCAL, label_of, summed_up
from fedfinlora.commands.explain_runs import Plan
from fedfinlora.commands.forget import without_bank
from fedfinlora.commands.in_process import train_here
from fedfinlora.commands.replayed import KeptRun, read_kept_run, with_words
from fedfinlora.commands.shapley import combination
from fedfinlora.compose import compose
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import read_json
from fedfinlora.model.adapter import load_adapter, norm
from fedfinlora.model.adapter_folder import WEIGHTS_FILE
from fedfinlora.model.loading import get_session
from fedfinlora.provenance.deltas import delta_file
from fedfinlora.report.contributions import contributions_table, contributions_view, notes
from fedfinlora.run.contributions import CONTRIBUTIONS_FILE, read_contributions
from fedfinlora.run.folder import read_config
from fedfinlora.run.lineage import EXACT, LINEAGE_FILE, REPLAY, Lineage
from fedfinlora.run.records import read_rounds
from fedfinlora.run.typed import from_json

BANKS = ["bank-0", "bank-1", "bank-2"]
SCORED = (
    "evaluation=default", "evaluation.benchmarks=[fpb]", "evaluation.limit=0", "evaluation.base=false",
    "train.holdout_max_rows=0", "strategy.keep_deltas=true", "partition=dirichlet",
)  # fmt: skip
Made = Callable[..., Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    write_rows(folder / "rows", train=40, test=9)
    return folder


@pytest.fixture(scope="module")
def made(place: Path) -> Made:
    """Makes a run of three banks, each once."""

    def make(name: str, *more: str, rounds: int = 2) -> Path:
        words = overrides(place / "rows", place, *SCORED, *more, name=name, rounds=rounds, banks=3)
        return train_here(compose([*words, f"evaluation.answers_dir={place / 'answers'}"]))

    return make


@pytest.fixture(scope="module")
def two_rounds(made: Made) -> Path:
    return made("two")


# --- replays --------------------------------------------------------------------------------------


def test_training_here_gives_the_bytes_of_any_federation(place: Path, two_rounds: Path) -> None:
    other = Runs(place / "rows", place / "other").start("two", *SCORED, banks=3)
    assert rounds_bytes(other) == rounds_bytes(two_rounds)
    assert adapter_bytes(other) == adapter_bytes(two_rounds)


def test_all_banks_replayed_are_the_run_and_nobody_is_its_start(two_rounds: Path) -> None:
    run = read_kept_run(two_rounds)
    session = get_session(run.config)
    final = load_adapter(two_rounds / "adapters" / "final", session.layout)
    assert run.banks == BANKS
    assert run.layout == session.layout
    assert np.array_equal(run.replay(BANKS), final)
    assert np.array_equal(run.replay([]), run.start)


def test_a_replay_without_a_bank_is_the_mean_of_the_others(made: Made) -> None:
    run = read_kept_run(made("one", rounds=1))
    size, [line] = run.layout.size, run.lines
    deltas = {bank: np.fromfile(delta_file(run.folder, 1, bank), "<f4") for bank in BANKS}
    rows = {entry.bank: entry.rows for entry in line.banks}
    others = ("bank-0", "bank-2")
    mean = sum(rows[bank] * deltas[bank].astype(np.float64) for bank in others) / sum(rows[bank] for bank in others)
    lineage, adapter = without_bank(run, "bank-1")
    assert adapter.shape == (size,)
    np.testing.assert_allclose(adapter, run.start + mean, rtol=0, atol=1e-7)
    assert (lineage.kind, lineage.updates_influenced) == (EXACT, 0), "one round: no update knows of the bank"


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("no-deltas", ["strategy.keep_deltas=false"], "strategy.keep_deltas=true"),
        ("private", ["privacy=example", "privacy.epsilon=8"], "privacy=example"),
    ],
)
def test_runs_that_cannot_be_replayed_say_why(
    made: Made, place: Path, name: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place / name
    if name == "private":  # its configuration decides before anything else is read
        shutil.copytree(made("two"), run)
        text = (run / "config.yaml").read_text("utf-8")
        text = text.replace("mode: none", "mode: example").replace("noise_multiplier: 0.0", "noise_multiplier: 1.0")
        (run / "config.yaml").write_text(text, "utf-8")
    else:
        made(name, *words)
    assert cli.main(["forget", str(run), "--bank", "bank-1"]) == 1
    assert said in capsys.readouterr().err


def test_a_damaged_delta_and_a_strange_bank_are_named(
    two_rounds: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place / "damaged"
    shutil.copytree(two_rounds, run)
    file = delta_file(run, 2, "bank-1")
    delta = np.fromfile(file, "<f4")
    delta[7] = np.nan
    delta.tofile(file)
    assert cli.main(["forget", str(run), "--bank", "bank-0"]) == 1
    assert f"{file} is damaged: it has numbers that are not finite." in capsys.readouterr().err
    assert cli.main(["forget", str(two_rounds), "--bank", "../../x\x1b[31m"]) == 1
    assert "has no accepted update" in (said := capsys.readouterr().err)
    assert "\x1b" not in said


def test_rules_that_factor_again_are_replayed_for_one_round_only(made: Made) -> None:
    assert read_kept_run(made("flex-one", "strategy=flexlora", rounds=1)).banks == BANKS
    for name in ("flexlora", "rolora"):
        with pytest.raises(UserError, match=f"strategy={name}"):
            read_kept_run(made(name, f"strategy={name}"))


def test_a_changed_delta_is_found_before_anything_is_computed(two_rounds: Path, place: Path) -> None:
    run = place / "changed"
    shutil.copytree(two_rounds, run)
    file = delta_file(run, 1, "bank-2")
    file.write_bytes(bytes(4) + file.read_bytes()[4:])
    with pytest.raises(UserError, match="do not give its adapter"):
        read_kept_run(run)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"bank-2\.f32 has"):
        read_kept_run(run)
    file.unlink()
    with pytest.raises(UserError, match=r"bank-2\.f32 cannot be read"):
        read_kept_run(run)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("rounds cut", r"does not have each of the 2 rounds"),
        ("config cut", r"config\.yaml was changed after the run"),
        ("weights cut", r"adapter_model\.safetensors is damaged"),
    ],
)
def test_a_run_that_is_not_whole_is_not_replayed(two_rounds: Path, tmp_path: Path, damage: str, said: str) -> None:
    run = Path(shutil.copytree(two_rounds, tmp_path / "run"))
    name = {"rounds cut": "rounds.jsonl", "config cut": "config.yaml"}.get(damage, "adapters/final/" + WEIGHTS_FILE)
    content = (run / name).read_bytes()
    cut = content.index(b"\nseed:") + 1 if damage == "config cut" else len(content) * 3 // 4
    (run / name).write_bytes(content[:cut])
    with pytest.raises(UserError, match=said):
        read_kept_run(run)


def test_words_change_what_is_scored_and_nothing_else(two_rounds: Path) -> None:
    config = read_kept_run(two_rounds).config
    assert with_words(config, ["evaluation.limit=3"]).evaluation.limit == 3
    for word in ("train.epochs=3", "evaluation.nothing=3", "evaluation.limit"):
        with pytest.raises(ConfigError, match="only"):
            with_words(config, [word])


# --- forget ---------------------------------------------------------------------------------------


def test_forget_writes_a_folder_with_lineage_and_leaves_the_run(
    two_rounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in two_rounds.rglob("*")}
    assert cli.main(["forget", str(two_rounds), "--bank", "bank-1", "--evaluate", "evaluation.limit=4"]) == 0
    shown = capsys.readouterr().out
    assert "replay of recorded updates: 2 updates of other banks" in shown
    assert {file: file.stat().st_mtime_ns for file in two_rounds.rglob("*")} == before
    folder = two_rounds.parent / "two-without-bank-1"
    lineage = from_json(Lineage, read_json(folder / LINEAGE_FILE), LINEAGE_FILE)
    assert (lineage.run, lineage.without, lineage.kind) == ("two", ("bank-1",), REPLAY)
    run = read_kept_run(two_rounds)
    adapter = load_adapter(folder / "adapters" / "final", run.layout)
    assert lineage.distance == pytest.approx(norm(adapter - run.replay(BANKS)))
    assert lineage.relative_distance is not None and 0 < lineage.relative_distance < 2  # noqa: PT018
    result = read_json(folder / "result.json")
    assert result["scores"]["final"]["fpb"]["n"] == result["scores"]["before"]["fpb"]["n"] == 4
    assert (folder / "report.html").is_file()


def test_forget_refuses_unknown_and_only_banks(two_rounds: Path) -> None:
    run = read_kept_run(two_rounds)
    with pytest.raises(UserError, match="'north' has no accepted update"):
        without_bank(run, "north")
    alone = replace(run, lines=tuple(replace(line, banks=line.banks[:1]) for line in run.lines))
    with pytest.raises(UserError, match="only bank"):
        without_bank(alone, alone.banks[0])


# --- contributions --------------------------------------------------------------------------------


def rows(right: str) -> dict[str, RowValues]:
    return {"fpb": RowValues("rows", tuple(float(one) for one in right), (1,) * len(right))}


def test_figures_follow_from_the_rows(two_rounds: Path) -> None:
    run: KeptRun = read_kept_run(two_rounds)
    players = combination(run.banks, 0, 0)
    scored = {label_of(one, run.banks): rows(("11" * len(one)).ljust(8, "0")) for one in players.coalitions}
    scored[LOCAL + "bank-1"] = rows("11110000")
    found = summed_up(run, players, scored)
    assert [round(one.shapley.value or 0, 6) for one in found.banks] == [0.25] * 3, "alike banks share alike"
    assert (found.first_score.value, found.score.value, found.coalitions) == (0.0, 0.75, 8)
    assert [one.leave_one_out.value for one in found.banks] == [0.25] * 3
    assert [one.gain_over_local and one.gain_over_local.value for one in found.banks] == [None, 0.25, None]
    low, high = found.banks[0].shapley.low, found.banks[0].shapley.high
    assert low is not None and high is not None and 0 < low < 0.25 < high  # noqa: PT018
    table = contributions_table(found)
    assert table.rows[1][2].startswith("+25.0 (")
    assert table.rows[1][3].startswith("−25.0 (") or table.rows[1][3].startswith("-25.0 (")
    assert any("replays recorded" in sentence for sentence in notes(found))


def test_contributions_are_in_the_run_and_in_its_report(
    two_rounds: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place / "shown"
    shutil.copytree(two_rounds, run)
    assert cli.main(["contributions", str(run)]) == 0
    assert "8 adapters of 3 banks" in capsys.readouterr().out
    found = read_contributions(run)
    assert found is not None
    assert (found.method, found.coalitions, found.rows, len(found.banks)) == ("exact", 8, 9, 3)
    assert "What each bank gains and contributes" in (run / "report.html").read_text("utf-8")
    assert cli.main(["verify", str(run)]) == 3, "only its report was written again"
    assert "nothing is wrong" in capsys.readouterr().out
    (run / CONTRIBUTIONS_FILE).write_text("{", "utf-8")
    assert contributions_view(run) is not None
    assert cli.main(["report", str(run)]) == 0, "a damaged file does not end the report"


def test_contributions_without_benchmarks_are_refused_at_the_start(
    two_rounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["contributions", str(two_rounds), "evaluation.benchmarks=[none]"]) == 1
    said = capsys.readouterr()
    assert "is a run without scores. Name benchmarks with rows" in said.err
    assert said.out == ""


def test_rows_of_other_evaluations_are_not_paired() -> None:
    other = {"fpb": replace(rows("10")["fpb"], rows_sha256="others")}
    with pytest.raises(UserError, match="different rows"):
        contrasts([rows("10"), other], np.eye(2))


# --- explain --------------------------------------------------------------------------------------


def test_causes_add_up_and_finished_runs_are_taken_again(
    two_rounds: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = overrides(place / "rows", place, *SCORED, name="pooled", banks=3)
    assert cli.main(["centralized", *words]) == 0
    output, file = place / "explained", place / "explained.json"
    command = ["explain", str(two_rounds), str(place / "pooled"), "--output", str(output), "--json", str(file)]
    assert cli.main([*command, "--causes", "steps,averaging"]) == 0
    first = (output / "iid-banks" / "rounds.jsonl").read_bytes()
    assert cli.main(command) == 0
    assert (output / "iid-banks" / "rounds.jsonl").read_bytes() == first, "trained once"
    found = read_json(file)
    assert [one["name"] for one in found["causes"]] == ["steps", "optimiser", "averaging", "skew"]
    assert sum(one["effect"]["value"] for one in found["causes"]) == pytest.approx(found["difference"]["value"])
    assert [one["name"] for one in found["replays"]] == ["product", "weighting"]
    product = found["replays"][0]
    assert (product["from_run"], product["to_run"]) == ("federated", "exact-mean")
    assert product["effect"]["low"] <= product["effect"]["value"] <= product["effect"]["high"]
    assert read_config(output / "exact-mean").strategy.name == "flexlora"
    lines = [read_rounds(output / label) for label in ("fewer-steps", "one-bank")]
    assert [sum(one.banks[0].steps for one in rounds) for rounds in lines] == [4, 4], "as many as each bank took"
    said = capsys.readouterr().out
    assert "skew" in said
    assert "Furthest for what it changed of B A" in said
    assert {file.stat().st_mode & 0o077 for file in output.rglob("*")} == {0}, "rows are in eval/"


@pytest.mark.parametrize("place_of", ["a run", "another pair", "a file", "damaged"])
def test_an_explanation_takes_no_other_place(
    two_rounds: Path, place: Path, tmp_path: Path, place_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor trains anything for an adapter that cannot be read."""
    pooled = place / "beside"
    if not pooled.is_dir():
        assert cli.main(["centralized", *overrides(place / "rows", place, *SCORED, name="beside", banks=3)]) == 0
    run, output = two_rounds, tmp_path / "out"
    if place_of == "a run":
        shutil.copytree(pooled, output)
    elif place_of == "another pair":
        output.mkdir()
        (output / "pair.json").write_text('{"federated": ["elsewhere", ""], "pooled": ["elsewhere", ""]}', "utf-8")
    elif place_of == "a file":
        output.write_text("", "utf-8")
    else:
        run = Path(shutil.copytree(two_rounds, tmp_path / "run"))
        file = run / "adapters" / "final" / WEIGHTS_FILE
        file.write_bytes(file.read_bytes()[:-4] + bytes(4))
    before = sorted(output.rglob("*"))
    capsys.readouterr()
    assert cli.main(["explain", str(run), str(pooled), "--output", str(output)]) == 1
    said = capsys.readouterr()
    assert {
        "a run": "does not say whose", "another pair": "the explanation of other runs", "a file": "does not say whose",
        "damaged": "is not the file that provenance.json next to it speaks of",
    }[place_of] in said.err  # fmt: skip
    assert "training" not in said.out
    assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"strategy": StrategyConfig(name="residual", residual_rank=2)},
            "strategy=residual with peft=lora has no such",
        ),
        ({"peft": PeftConfig(freeze_a=True)}, "has no such bias"),
        ({"strategy": StrategyConfig(name="fedadam")}, "shows in runs of strategy=fedavg"),
        ({"strategy": StrategyConfig(sync="drift")}, "shows in runs of strategy=fedavg"),
        ({"peft": PeftConfig(method="dora")}, "shows in runs of strategy=fedavg"),
    ],
)
def test_where_the_product_bias_cannot_be_shown_it_is_said(
    config: dict[str, Any], said: str, two_rounds: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "__post_init__", lambda plan: None)
    own = replace(tiny_config(), **config)
    monkeypatch.setattr(Plan, "federated", own)
    assert Plan(two_rounds, two_rounds, place / "x", ()).exact_mean()[0] is None
    assert said in Plan(two_rounds, two_rounds, place / "x", ()).exact_mean()[1][0]


def test_runs_that_differ_in_more_are_refused(two_rounds: Path, place: Path) -> None:
    words = overrides(place / "rows", place, *SCORED, "seed=3", name="other-seed", banks=3)
    assert cli.main(["centralized", *words]) == 0
    with pytest.raises(UserError, match="differ in more than federating: seed"):
        Plan(two_rounds, place / "other-seed", place / "x", ())
    with pytest.raises(UserError, match="is no completed centralized run"):
        Plan(two_rounds, two_rounds, place / "x", ())
    assert cli.main(["explain", str(two_rounds), str(two_rounds), "--causes", "weather"]) in (1, 2)
