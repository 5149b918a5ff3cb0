"""The owner of a run's folder lies, and makes every hash right again, with the coordinator's key too: `verify` computes
again what follows from what.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from keys import Consortium
from liar import Values, chain_of, edited, edited_lines, makes_right, rounds_in
from round_runs import Runs
from tiny_runs import SCORED, write_rows

import fedfinlora.commands.verify
from fedfinlora.commands.verify import verify
from fedfinlora.provenance.findings import MOST_NAMED, Findings
from fedfinlora.provenance.lines import CHAIN_FILE, Begin, Saved
from fedfinlora.provenance.signatures import Signer
from fedfinlora.provenance.verify_files import Bound
from fedfinlora.run.checkpoint import read_checkpoint, save_checkpoint

Lie = Callable[[Path, list[Values]], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Consortium]:
    """(folder with the runs `signed`, whose deltas are kept, and `simulated`, whose are not; keys of the first)."""
    folder = tmp_path_factory.mktemp("made")
    consortium = Consortium(folder / "keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDFINLORA_WITNESS", str(folder / "witness"))
        rows, words = write_rows(folder / "rows"), (*SCORED, "evaluation.validation_rows=2", "evaluation.every=1")
        Runs(rows, folder).start("simulated", *words)
        runs = Runs(rows, folder, consortium=consortium)
        consortium.serves(patch)
        runs.start("signed", *words, "strategy.keep_deltas=true", "strategy=fedavgm")
    return folder, consortium


@pytest.fixture(params=["simulated", "signed"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Liar:
    """Who owns a copy of one of the runs."""

    def __init__(self, made: tuple[Path, Consortium], kind: str, folder: Path) -> None:
        self.run = Path(shutil.copytree(made[0] / kind, folder / kind))
        self.signer: Signer | None = made[1].signer if kind == "signed" else None
        self.ca = made[1].ca if kind == "signed" else None

    def tells(self, lie: Lie) -> None:
        """Change files and chain, and make every hash right again."""
        lines = chain_of(self.run)
        lie(self.run, lines)
        makes_right(self.run, lines, self.signer)

    def status(self) -> int:
        return verify(self.run, self.ca)


@pytest.fixture
def liar(made: tuple[Path, Consortium], kind: str, tmp_path: Path) -> Liar:
    return Liar(made, kind, tmp_path)


def test_a_liar_who_changes_nothing_is_not_found(liar: Liar, capsys: pytest.CaptureFixture[str]) -> None:
    """So what the other tests find is the lie, and not how it is made right."""
    liar.tells(lambda run, lines: None)
    assert liar.status() == 0, capsys.readouterr().out


def of_rounds(edit: Callable[[Values], object], number: int = 2) -> Lie:
    """A lie in a line of rounds.jsonl."""
    return lambda run, lines: edited_lines(run / "rounds.jsonl", lambda rounds: edit(rounds[number - 1]))


def of_round(edit: Callable[[Values], object], number: int = 2) -> Lie:
    """A lie in a round of the chain."""
    return lambda run, lines: edit(rounds_in(lines)[number - 1])


def of_scores(edit: Callable[[Values], object], label: str = "final") -> Lie:
    """A lie in metrics.json, which result.json repeats."""

    def lie(run: Path, lines: list[Values]) -> None:
        edited(run / "eval" / label / "metrics.json", lambda metrics: edit(metrics["scores"]["fpb"]))
        edited(run / "result.json", lambda result: edit(result["scores"][label]["fpb"]))

    return lie


def of_rows(edit: Callable[[list[Values]], object], label: str = "final") -> Lie:
    """A lie in the rows that were scored."""
    return lambda run, lines: edited_lines(run / "eval" / label / "fpb.jsonl", edit)


def of_file(name: str, edit: Callable[[Values], object]) -> Lie:
    """A lie in a JSON file."""
    return lambda run, lines: edited(run / name, edit)


def rewritten(run: Path, name_of: Callable[[str], str]) -> None:
    """Save the final adapter under other names."""
    from safetensors.numpy import load_file, save_file

    file = run / "adapters" / "final" / "adapter_model.safetensors"
    save_file({name_of(name): tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


AGGREGATES = {
    "train_loss": 0.5,
    "holdout_loss": 0.25,
    "update_norm": 9.0,
    "bytes_up": 7,
    "bytes_down": 8,
    "noise_alone": True,
}
ENTRY = {
    "rows": 10**6, "skipped_rows": 3, "steps": 77, "tokens": 5, "answer_tokens": 4, "train_loss": 0.125,
    "holdout_loss": 0.0625, "holdout_rows": 9,
    "bytes_up": 1, "bytes_down": 2, "policy_sha256": "a" * 64, "withheld": ["rows"], "status": "late",
}  # fmt: skip
RESULT = {
    "rows_trained": 1, "steps_trained": 2, "tokens_trained": 3, "bytes_up": 4, "bytes_down": 5, "best_round": 6,
    "validation_score": 0.75,
    "final_round": 1, "stopped_early_after_round": 1, "banks": 9, "synthetic": True, "quantization": "int8",
    "config_sha256": "b" * 64,
}  # fmt: skip
MANIFEST = {"config_sha256": "c" * 64, "seed": 5, "source_sha256": "d" * 64}


def says(where: str, values: Values, of: str = "") -> list[str]:
    """What `verify` says of each value, up to the one that is right."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return [f"{where}: {key}{of} is {text if len(text) <= 60 else text[:60] + '…'}, " for key, text in texts.items()]


LIES: dict[str, tuple[Lie, list[str]]] = {
    "a round's aggregate figures": (of_rounds(lambda line: line.update(AGGREGATES)),
        says("rounds.jsonl, line 2", AGGREGATES)),
    "a bank's figures": (
        of_rounds(lambda line: line["banks"][1].update(ENTRY)), says("rounds.jsonl, line 2", ENTRY, " of bank-1"),
    ),
    "a bank's times": (
        of_rounds(lambda line: line["timings"]["banks"]["bank-1"].update(train_s=9.5, tokens_per_s=1.5)),
        says("rounds.jsonl, line 2", {"train_s": 9.5, "tokens_per_s": 1.5}, " of bank-1"),
    ),
    "a round's scores": (
        of_rounds(lambda line: line["scores"]["fpb"].update(accuracy=0.875)),
        ["rounds.jsonl, line 2: scores.fpb.accuracy is 0.875, eval/round_002 gives 0.0"],
    ),
    "which round was validated as best": (
        of_rounds(lambda line: line["validation"].update(best=True, score=0.5)),
        says("rounds.jsonl, line 2", {"validation.score": 0.5}),
    ),
    "a round that is there twice": (
        lambda run,
        lines: edited_lines(run / "rounds.jsonl", lambda rounds: rounds.insert(0, {**rounds[0], "train_loss": 9.0})),
        ["rounds.jsonl: its line 2 is of round 1"],
    ),
    "a score": (of_scores(lambda scores: scores.update(accuracy=1.0)), ["metrics.json: scores.fpb.accuracy is 1.0, "]),
    "an interval": (
        of_scores(lambda scores: scores.update(accuracy_ci95=[0.0, 0.01])),
            ["metrics.json: scores.fpb.accuracy_ci95[1] is 0.01, "],
    ),
    "a score in result.json alone": (
        of_file("result.json", lambda result: result["scores"]["final"]["fpb"].update(accuracy=1.0)),
        ["result.json: scores.final.fpb.accuracy is 1.0, config.yaml, rounds.jsonl and eval/ of this folder gives 0.0"],
    ),
    "the mean of a group": (
        of_file("eval/final/metrics.json", lambda metrics: metrics["finlora_overall"].update(value=99.0)),
        ["eval/final/metrics.json: finlora_overall.value is 99.0, its scores gives 0.0"],
    ),
    "scores of another adapter and model": (
        of_file(
            "eval/final/metrics.json",
            lambda metrics: (metrics["model"].update(adapter="f" * 64, model="better"), metrics.update(shots=5))
        ),
        ["eval/final/metrics.json: model.adapter is ffff", "eval/final/metrics.json: model.model is better",
        "metrics.json: shots is 5, the"],
    ),
    "a verdict": (of_rows(lambda rows: rows[0].update(correct=True)),
        ["fpb.jsonl, line 1: correct is true, its answer gives false"]),
    "a target": (
        of_rows(lambda rows: rows[0].update(target="x", output="x", parsed="x")),
            ["fpb.jsonl, line 1: target is x, the same row elsewhere"],
    ),
    "a row that is not there": (of_rows(lambda rows: rows.pop()),
        ["its rows is 1 rows, eval/base gives 2 rows, not the same"]),
    "a row that is there twice": (of_rows(lambda rows: rows.append(rows[0])), ["fpb.jsonl, line 3: id is "]),
    "figures of result.json": (of_file("result.json", lambda result: result.update(RESULT)),
        says("result.json", RESULT)),
    "the manifest's hashes": (of_file("manifest.json", lambda manifest: manifest.update(MANIFEST)),
        says("manifest.json", MANIFEST)),
    "the name of a configuration": (
        of_file("state/run.json", lambda identity: identity.update(config_sha256="e" * 64)),
            says("state/run.json", {"config_sha256": "e" * 64}),
    ),
    "no weights": (of_round(lambda line: line.update(weights=None)),
        ["round 2 has no weights: only under privacy=bank"]),
    "weights of another bank": (of_round(lambda line: line["weights"].update({"bank-9": 1.0})),
        ["bank-9 weighs in round 2"]),
    "a weight that is a text": (of_round(lambda line: line["weights"].update({"bank-1": "1"})),
        ["weights.bank-1 is no number"]),
    "another weight": (of_round(lambda line: line["weights"].update({"bank-1": 0.25})),
        ["round 2: the weight of bank-1 is 0.25, "]),
    "a round without an accepted bank": (
        of_round(lambda line: [part.update(code="late") for part in line["banks"].values()] and line.update(weights={})),  # noqa: E501
        [
            ("round 2 has 0 accepted replies, yet its adapter is another than the round's before: with fewer than "
            "strategy.quorum=1 no round is closed"),
        ],
    ),
    "a bank that was never asked": (
        of_round(lambda line: (line["banks"].pop("bank-1"), line["weights"].pop("bank-1"))),
            ["round 2 asked 1 bank, and its configuration asks 2 of 2"],
    ),
    "a validation that is not there": (
        lambda run, lines: (
            shutil.rmtree(run / "eval" / "validation_round_002"),
            edited_lines(run / "rounds.jsonl", lambda rounds: rounds[1].update(validation=None)),
        ),
        ["eval/validation_round_002/metrics.json: the file is missing"],
    ),
    "no scores of the base": (
        lambda run,
        lines: (shutil.rmtree(run / "eval" / "base"),
            edited(run / "result.json", lambda result: result["scores"].pop("base"))),
        ["eval/base/metrics.json: the file is missing"],
    ),
    "an end before its last round": (
        lambda run, lines: (
            [lines.remove(line) for line in list(lines) if line["kind"] in ("round", "saved") and line["round"] == 2],
            edited_lines(run / "rounds.jsonl", lambda rounds: rounds.pop()),
            edited(run / "result.json", lambda result: result.update(rounds=1, final_round=1)),
        ),
        ["result.json: it is completed after 1 of 2 rounds, and nothing has stopped it early"],
    ),
    "how an adapter is applied": (
        lambda run, lines: edited(
            run / "adapters" / "final" / "adapter_config.json",
            lambda saved: saved.update(alpha_pattern={".*q_proj": 100000}, layers_to_transform=[0], note="x"),
        ),
        ["final/adapter_config.json: alpha_pattern, layers_to_transform, note: not what the configuration in"],
    ),
    "where an adapter is applied": (
        lambda run, lines: rewritten(run, lambda name: name.replace("layers.0", "layers.7")),
        ["adapters/final/adapter_model.safetensors: its tensors have other names or shapes than the adapter that"],
    ),
    "adapters of rounds that never were": (
        lambda run, lines: shutil.copytree(run / "adapters" / "final", run / "adapters" / "round_009"),
        ["adapters/round_009: the run has no such adapter"],
    ),
    "a round far away, without hanging": (
        lambda run, lines: [line.update(round=10**12) for line in rounds_in(lines)[-1:]],
        ["of 1,000,000,000,000 rounds, 999,999,999,997 are missing"],
    ),
    "a resume that never was": (
        lambda run,
        lines: (run / "resumed.jsonl").write_text('{"at": "", "after_round": 1, "differences": ["data x (changed)"]}\n'),  # noqa: E501
        [f"resumed.jsonl, line 1: {CHAIN_FILE} has no begin after round 1"],
    ),
}  # fmt: skip


def other_bank(line: Values) -> None:
    """An innocent bank is called the furthest."""
    line["factors"]["bank"] = {"bank-0": "bank-1", "bank-1": "bank-0"}[line["factors"]["bank"]]


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_the_folders_owner_is_named(liar: Liar, lie: str, capsys: pytest.CaptureFixture[str]) -> None:
    tell, named = LIES[lie]
    liar.tells(tell)
    assert liar.status() == 1
    said = capsys.readouterr().out
    assert [text for text in named if text not in said] == [], said
    assert "Error)" not in said, "nothing but what is meant"


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda line: line.pop("average"), "rounds.jsonl, line 1: average is absent, the deltas of the round gives {"),
        (lambda line: line.pop("factors"), "rounds.jsonl, line 1: factors is absent, the deltas of the round gives {"),
        (lambda line: line["factors"].update(bank="bank-9"), 'rounds.jsonl, line 1: factors is {"bank": "bank-9", '),
        (other_bank, 'rounds.jsonl, line 1: factors is {"bank": "bank-'),
    ],
)  # fmt: skip
def test_what_the_deltas_say_of_a_round_is_named(
    made: tuple[Path, Consortium], tmp_path: Path, edit: Any, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a round whose line no checkpoint holds any more."""
    liar = Liar(made, "signed", tmp_path)
    liar.tells(of_rounds(edit, 1))
    assert liar.status() == 1
    assert named in capsys.readouterr().out


def test_a_checkpoint_that_was_changed_before_a_resume_is_named(tmp_path: Path) -> None:
    name, found, bound = "state/round_0002.safetensors", Findings(), Bound()
    begin = Begin("run", 2, "", "{}", "", "", "", None)
    for line in (Saved("run", 2, {name: "a"}, ""), begin, Saved("run", 2, {name: "a"}, ""), Saved("run", 3, {}, "")):
        bound.take(line, tmp_path, found)
    assert not found.wrong
    for line in (begin, Saved("run", 2, {name: "b"}, "")):
        bound.take(line, tmp_path, found)
    assert "one hash of it when it was saved, and another on resume" in str(found.wrong)


def test_another_checkpoint_is_named(liar: Liar, capsys: pytest.CaptureFixture[str]) -> None:
    """A run would resume from it. What the rule remembers can be computed only from kept deltas."""
    file = liar.run / "state" / "round_0002.safetensors"
    right = read_checkpoint(file)
    for name, array in right.arrays.items():
        save_checkpoint(liar.run, replace(right, arrays={**right.arrays, name: array + 1}))
        liar.tells(lambda run, lines: None)
        assert liar.status() == 1
        named = (
            "the adapter that provenance.jsonl has of it"
            if name == "adapter"
            else "what the server's rule remembers is not"
        )
        assert f"{file}: " in (said := capsys.readouterr().out)
        assert named in said


def test_the_epsilon_of_server_noise_follows_from_its_configuration(
    made: tuple[Path, Consortium], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDFINLORA_WITNESS", str(tmp_path / "witness"))
    private = ("privacy=bank", "privacy.epsilon=0", "privacy.noise_multiplier=1", "privacy.accept_noise=true")
    run = Runs(made[0] / "rows", tmp_path).start("private", *private)
    assert verify(run) in (0, 3), capsys.readouterr().out
    capsys.readouterr()
    lines = chain_of(run)
    edited_lines(
        run / "rounds.jsonl",
        lambda rounds: [one["privacy"].update(epsilon_spent=0.5, epsilon_planned=0.5, delta=1e-9) for one in rounds],
    )
    makes_right(run, lines)
    assert verify(run) == 1
    said = capsys.readouterr().out
    assert [name for name in ("epsilon_planned is 0.5", "delta of privacy is 1e-09", "epsilon_spent is 0.5") if
            f"rounds.jsonl, line 1: {name}, " not in said] == [], said  # fmt: skip


def test_numbers_that_nothing_binds_are_not_proven(
    made: tuple[Path, Consortium], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoRA-XS is saved as another LoRA that equals it, so what is saved cannot be compared with what was trained."""
    run = Runs(made[0] / "rows", tmp_path).start("small", "peft=lora_xs", "peft.rank=2", rounds=1)
    assert verify(run) == 3
    assert "NOT PROVEN" in (said := capsys.readouterr().out)
    assert "adapters: peft=lora_xs is saved as what it equals in PEFT" in said


def test_another_best_adapter_is_named(liar: Liar, capsys: pytest.CaptureFixture[str]) -> None:
    name = "adapter_model.safetensors"
    shutil.copy(liar.run / "adapters" / "round_002" / name, liar.run / "adapters" / "best" / name)
    liar.tells(lambda run, lines: None)
    assert liar.status() == 1
    assert "adapters/best/adapter_model.safetensors: it is not the adapter of round 1" in capsys.readouterr().out


def test_a_norm_without_a_delta_of_it_is_bound_by_the_adapters(
    made: tuple[Path, Consortium], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of round 1 the adapter before is not kept, so its norm is not proven: the sentence on what was computed says how
    many were.
    """
    liar = Liar(made, "simulated", tmp_path)
    assert liar.status() == 0
    assert "norms of the step in 1 of 2 rounds, of the deltas in 0" in capsys.readouterr().out
    liar.tells(of_rounds(lambda line: line.update(update_norm=line["update_norm"] * 1.001)))
    assert liar.status() == 1
    assert "rounds.jsonl, line 2: update_norm is" in capsys.readouterr().out


def test_many_rounds_and_many_files_are_said_in_a_line(
    made: tuple[Path, Consortium], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chain of more rounds, whose lines are all right but for the files; and Flower's copy of the app in
    `state`.
    """
    liar, rounds = Liar(made, "simulated", tmp_path), MOST_NAMED + 3
    for number in range(30):
        (liar.run / "state" / "flwr" / "app").mkdir(parents=True, exist_ok=True)
        (liar.run / "state" / "flwr" / "app" / f"{number}.py").write_text("")

    def goes_on(run: Path, lines: list[Values]) -> None:
        template, saved = rounds_in(lines)[-1], lines[-2]
        for number in range(3, rounds + 1):
            line: Any = json.loads(json.dumps({**template, "round": number}))
            line["request"]["round"] = number
            for part in line["banks"].values():
                part["reply"]["round"] = number
            lines[-1:-1] = [line, {**saved, "round": number, "files": {}}]
        edited_lines(
            run / "rounds.jsonl",
            lambda own: own.extend({**own[-1], "round": number} for number in range(3, rounds + 1)),
        )

    liar.tells(goes_on)
    assert liar.status() == 1
    said = capsys.readouterr().out
    assert (
        f"rounds 1 to {rounds}: each 2 banks asked, hashes only: its deltas were not kept; the last adapter is" in said
    )
    assert "\nnot covered: state/flwr/, 30 files\n" in said


def test_a_terminal_sees_how_far_it_is(
    made: tuple[Path, Consortium], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made[0] / "simulated"
    assert verify(run) == 0
    assert capsys.readouterr().err == "", "no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(fedfinlora.commands.verify, "QUIET_S", 0.0)
    assert verify(run) == 0
    assert capsys.readouterr().err.startswith(f"\r\x1b[Kverify: {CHAIN_FILE}, line 1")
