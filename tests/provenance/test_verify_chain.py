"""What a run's chain binds: each file once its round is closed, audits, and lines of known kinds. What it does not bind
is named.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from keys import Consortium
from liar import write_chain
from round_runs import Runs
from tiny_runs import rounds_of, write_rows

from fedfinlora import __version__
from fedfinlora.commands.report import report
from fedfinlora.commands.verify import verify
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, write_json
from fedfinlora.provenance.audits import begun, bind_audit, bound_audit, check_may_sign
from fedfinlora.provenance.chain import AUDIT_FILE, CARD_FILE, OF_ROUND, REPORT_FILE, is_covered
from fedfinlora.provenance.lines import CHAIN_FILE, KINDS, UnknownLine, read_line, read_values, sealed_of, values_of
from fedfinlora.provenance.signatures import digest
from fedfinlora.run.folder import read_config
from fedfinlora.run.privacy_card import NO_AUDIT, privacy_card
from fedfinlora.run.records import read_rounds
from fedfinlora.run.typed import to_json

SENTENCE = "stands: noise: nothing was found (at most epsilon 1)"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Consortium]:
    """A signed private run of three rounds with validation."""
    folder = tmp_path_factory.mktemp("made")
    runs = Runs(write_rows(folder / "rows"), folder)
    runs.consortium = Consortium(folder / "keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDFINLORA_WITNESS", str(folder / "witness"))
        runs.consortium.serves(patch)
        run = runs.start("run", "privacy=example", "privacy.epsilon=8", "train.batch_rows=4", rounds=3)
    return run, runs.consortium


@pytest.fixture
def ca(made: tuple[Path, Consortium]) -> Path:
    return made[1].ca


@pytest.fixture
def run(made: tuple[Path, Consortium], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made[0], tmp_path / "run"))


@pytest.fixture
def killed(run: Path) -> Path:
    """The same, killed after round 3 was closed: nothing of what a run writes at its end."""
    lines = (run / CHAIN_FILE).read_bytes().splitlines(keepends=True)
    (run / CHAIN_FILE).write_bytes(b"".join(lines[:-1]))
    shutil.rmtree(run / "adapters" / "final")
    for name in ("result.json", REPORT_FILE, CARD_FILE):
        (run / name).unlink()
    return run


def chain_of(run: Path) -> list[dict[str, Any]]:
    return [read_values(line) for line in (run / CHAIN_FILE).read_bytes().splitlines()]


def bound_in(run: Path) -> list[str]:
    names = {name for line in chain_of(run) for name in line.get("files", ())}
    return sorted(name for name in names if (run / name).is_file())


class TestBrokenOff:
    def test_a_run_that_was_killed_is_checked_as_far_as_it_came(
        self, killed: Path, ca: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is not proven that no later lines were cut off, nor what TensorBoard's file says, which grows until the
        end; all else is.
        """
        assert verify(killed, ca) == 3
        said = capsys.readouterr().out
        assert f"NOT PROVEN  {killed / CHAIN_FILE}: the run was broken off or is still running after round 3" in said
        assert said.endswith("nothing is wrong, 2 things are not proven\n")
        covered = {str(file.relative_to(killed)) for file in killed.rglob("*") if file.is_file()}
        assert {name for name in covered if is_covered(name) and "tensorboard" not in name} - {"rounds.jsonl"} == set(
            bound_in(killed)
        )

    def test_each_of_its_files_that_was_changed_is_named(
        self, killed: Path, ca: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in [*bound_in(killed), "rounds.jsonl"]:
            content = (killed / name).read_bytes()
            changed = bytearray(content)
            changed[len(changed) // 2] ^= 1
            (killed / name).write_bytes(bytes(changed))
            assert verify(killed, ca) == 1, name
            assert str(killed / name) in capsys.readouterr().out, name
            (killed / name).write_bytes(content)
        assert verify(killed, ca) == 3

    def test_each_of_its_files_that_is_missing_is_named(
        self, killed: Path, ca: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """But for a checkpoint that the run removes by itself."""
        for name in bound_in(killed):
            content = (killed / name).read_bytes()
            (killed / name).unlink()
            gone = name == "state/round_0002.safetensors"
            assert verify(killed, ca) == (3 if gone else 1), name
            assert gone or str(killed / name) in capsys.readouterr().out, name
            (killed / name).write_bytes(content)

    @pytest.mark.parametrize("change", ["a figure", "a round less", "two rounds in one"])
    def test_rounds_are_bound_line_by_line(
        self, killed: Path, ca: Path, change: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Also what no bank has signed: losses of the whole round, timings, scores."""
        lines = rounds_of(killed)
        if change == "a figure":
            lines[1]["timings"]["total_s"] = 0.5
        if change == "a round less":
            del lines[-1]
        if change == "two rounds in one":
            lines[1] = lines[2]
        (killed / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert verify(killed, ca) == 1
        assert f"WRONG  {killed / 'rounds.jsonl'}: " in capsys.readouterr().out

    def test_a_file_that_was_added_is_not_proven(
        self, killed: Path, ca: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (killed / "eval").mkdir(exist_ok=True)
        (killed / "eval" / "more.json").write_text("{}")
        assert verify(killed, ca) == 3
        assert f"{CHAIN_FILE} has no hash of eval/more.json" in capsys.readouterr().out

    def test_a_round_that_was_not_closed_is_not_proven(
        self, killed: Path, ca: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Killed between the line of round 3 and its checkpoint."""
        lines = (killed / CHAIN_FILE).read_bytes().splitlines(keepends=True)
        (killed / CHAIN_FILE).write_bytes(b"".join(lines[:-1]))
        rounds = (killed / "rounds.jsonl").read_bytes().splitlines(keepends=True)
        (killed / "rounds.jsonl").write_bytes(b"".join(rounds[:-1]))
        shutil.rmtree(killed / "adapters" / "round_003")
        (killed / "state" / "round_0003.safetensors").unlink()
        assert verify(killed, ca) == 3
        assert "round 3 is missing: the run was broken off before it was closed" in capsys.readouterr().out

    def test_what_can_be_removed_from_a_round_is_its_own(self) -> None:
        assert OF_ROUND.match("adapters/round_0003/x")
        assert not OF_ROUND.match("adapters/round_0003")
        assert not OF_ROUND.match("state/round_0003.safetensors.py")


class TestLines:
    def test_each_line_is_read_as_it_was_written(self, run: Path) -> None:
        for line in (run / CHAIN_FILE).read_bytes().splitlines():
            values, sealed = read_values(line), read_line(line)
            place = {name: value for name, value in values.items() if name in ("at", "previous", "sha256", "signature")}
            assert digest({**values_of(sealed.line), **place}) == digest(values)

    @pytest.mark.parametrize("kind", ["begin", "round", "saved", "end"])
    def test_a_line_without_a_field_is_named_with_it(
        self, run: Path, made: tuple[Path, Consortium], kind: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = chain_of(run)
        place = next(number for number, line in enumerate(lines) if line["kind"] == kind)
        later = {"version", "files", "report_sha256"} if kind in ("begin", "end") else set()
        for name in sorted(set(lines[place]) - {"kind", "at", "previous", "sha256", "signature"} - later):
            changed = [dict(line) for line in lines]
            del changed[place][name]
            write_chain(run, changed, made[1].signer)
            assert verify(run, made[1].ca) == 1, name
            assert (
                f"line {place + 1}: the line of kind {kind} cannot be read: {name} is missing"
                in capsys.readouterr().out
            )

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ({"kind": "more"}, "its kind is 'more'"),
            ({}, "its kind is 'None'"),
            ({"kind": ["end"]}, "its kind is"),
            ({"kind": "end", "run": 1, "status": "", "files": {}}, "run is no text"),
            ({"kind": "end", "run": "", "status": "", "files": []}, "files is no object"),
            ({"kind": "saved", "run": "", "round": "1", "files": {}, "line_sha256": ""}, "round is no whole number"),
            ({"kind": "end", "run": "", "status": "", "files": {}, "at": 1}, "at is no text"),
            ({"kind": "round", "banks": []}, "cannot be read"),
        ],
    )
    def test_a_line_of_another_form_is_named(self, values: dict[str, Any], named: str) -> None:
        with pytest.raises(UnknownLine, match=named):
            sealed_of(values)

    def test_a_bank_without_its_code_was_not_accepted(self, run: Path) -> None:
        line = next(line for line in chain_of(run) if line["kind"] == "round")
        del line["banks"]["bank-0"]["code"]
        with pytest.raises(UnknownLine, match=r"banks\.bank-0\.code is missing"):
            sealed_of(line)

    def test_a_chain_of_an_earlier_version_is_still_proven(
        self, run: Path, made: tuple[Path, Consortium], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It has no `saved` and no files in `begin`. What it does not say is named; where it was broken off little is
        proven.
        """
        older = []
        for line in chain_of(run):
            if line["kind"] in KINDS and line["kind"] != "saved":
                older.append({key: value for key, value in line.items() if key not in ("version", "report_sha256")})
        del older[0]["files"]
        release_says_where_the_chain_ended(run, older, made[1])
        assert verify(run, made[1].ca) == 0, capsys.readouterr().out
        assert "code.version was not compared" in capsys.readouterr().out
        write_chain(run, older[:-1], made[1].signer)
        shutil.rmtree(run / "adapters" / "final")
        (run / "result.json").unlink()
        assert verify(run, made[1].ca) == 3
        assert f"{CHAIN_FILE} has no hash of adapters/round_001/adapter_config.json" in capsys.readouterr().out


def release_says_where_the_chain_ended(run: Path, lines: list[dict[str, Any]], consortium: Consortium) -> None:
    """The release of a run whose chain is written again."""
    from fedfinlora.model.adapter_folder import PROVENANCE_FILE
    from fedfinlora.provenance.folder import sha256_of_file
    from fedfinlora.provenance.model_signature import SIGNATURE_FILE, sign_folder

    write_chain(run, lines[:-1], consortium.signer)
    folder = run / "adapters" / "final"
    statement = read_json(folder / PROVENANCE_FILE)
    statement["predicate"]["chainSha256"] = chain_of(run)[-1]["sha256"]
    write_json(folder / PROVENANCE_FILE, statement)
    (folder / SIGNATURE_FILE).unlink()
    sign_folder(folder, consortium.signer)
    lines[-1]["files"] |= {
        f"adapters/final/{name}": sha256_of_file(folder / name) for name in (PROVENANCE_FILE, SIGNATURE_FILE)
    }
    write_chain(run, lines, consortium.signer)


class TestAudits:
    def audit_of(self, run: Path, sentence: str = SENTENCE) -> dict[str, Any]:
        """As `audit --run` writes it."""
        from fedfinlora.config.values import to_plain_group

        config = read_config(run)
        audit = {
            "privacy": to_plain_group(config.privacy),
            "model": config.model.name,
            "rounds": config.num_server_rounds,
        }
        return {"sentence": sentence, "verdict": "stands", **audit}

    def puts(self, run: Path, audit: dict[str, Any]) -> None:
        """audit.json, and a card that shows it."""
        write_json(run / AUDIT_FILE, audit)
        write_json(run / CARD_FILE, to_json(privacy_card(read_config(run), read_rounds(run), audit)))

    def test_a_forged_audit_is_not_proven(self, run: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Nor is the card that shows it; `verify` is not green."""
        self.puts(run, self.audit_of(run))
        assert verify(run, ca) == 3
        said = capsys.readouterr().out
        assert f"NOT PROVEN  {run / AUDIT_FILE}: {CHAIN_FILE} has no audit" in said
        assert f"NOT PROVEN  {run / CARD_FILE}: what it says of an audit is in {AUDIT_FILE} alone" in said

    def test_a_card_with_an_audit_that_is_nowhere_is_wrong(self, run: Path, ca: Path) -> None:
        self.puts(run, self.audit_of(run))
        (run / AUDIT_FILE).unlink()
        assert verify(run, ca) == 1

    def test_the_server_puts_only_audits_of_the_chain_into_its_card(
        self, run: Path, made: tuple[Path, Consortium]
    ) -> None:
        self.puts(run, self.audit_of(run))
        assert bound_audit(run, made[1].signer) is None
        assert privacy_card(read_config(run), read_rounds(run), bound_audit(run)).audit == NO_AUDIT

    def test_an_audit_that_the_coordinator_entered_is_proven(
        self, run: Path, made: tuple[Path, Consortium], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.puts(run, self.audit_of(run))
        assert bind_audit(run, SENTENCE, made[1].signer)
        assert verify(run, made[1].ca) == 0
        assert f"{AUDIT_FILE}: it is the audit in {CHAIN_FILE}" in capsys.readouterr().out
        assert bound_audit(run, made[1].signer) == {"sentence": SENTENCE}
        self.puts(run, self.audit_of(run, "stands: everything"))
        assert verify(run, made[1].ca) == 1
        said = capsys.readouterr().out
        assert f"{run / AUDIT_FILE}: it is not the audit that {CHAIN_FILE} has" in said
        assert f"{run / CARD_FILE}: it does not follow" in said
        (run / AUDIT_FILE).unlink()
        assert verify(run, made[1].ca) == 1

    def test_an_audit_of_another_run_is_named(
        self, run: Path, made: tuple[Path, Consortium], capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = self.audit_of(run)
        other["privacy"] = {**other["privacy"], "epsilon": 1.0}
        self.puts(run, other)
        bind_audit(run, SENTENCE, made[1].signer)
        assert verify(run, made[1].ca) == 1
        assert f"{run / AUDIT_FILE}: its privacy is not the run's" in capsys.readouterr().out

    def test_who_has_not_the_coordinators_key_enters_none(
        self, run: Path, made: tuple[Path, Consortium], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = Consortium(tmp_path / "other").signer
        for signer, named in (
            (None, "name its signing.key with --signing-key"),
            (other, "another key than the given one"),
        ):
            with pytest.raises(UserError, match=named):
                check_may_sign(run, begun(run), signer)
            with pytest.raises(UserError, match=named):
                bind_audit(run, SENTENCE, signer)
        self.puts(run, self.audit_of(run))
        bind_audit(run, SENTENCE, made[1].signer)
        lines = chain_of(run)
        write_chain(run, [*lines[:-1], {**lines[-1], "signature": ""}])
        with pytest.raises(UserError, match="its audit is not signed by the coordinator"):
            bound_audit(run, made[1].signer)
        assert verify(run, made[1].ca) == 1
        assert "it is not signed by the coordinator" in capsys.readouterr().out


def test_a_report_that_was_written_by_somebody_else_is_not_proven(
    run: Path, ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / REPORT_FILE
    assert report([run], file) == 0
    assert verify(run, ca) == 0, "the same files give the same report"
    file.write_text(file.read_text("utf-8").replace("epsilon", "Epsilon", 1), "utf-8")
    capsys.readouterr()
    assert verify(run, ca) == 3
    assert f"NOT PROVEN  {file}: it was written again after the run ended" in capsys.readouterr().out


def test_begin_names_the_version(run: Path) -> None:
    assert chain_of(run)[0]["version"] == __version__
