"""Finished adapters: the statement of where they come from, their bill of materials, and signatures that OpenSSF's
model-signing reads and writes too.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_signing
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from keys import Consortium
from round_runs import Runs
from tiny_runs import result_of, rounds_of, write_rows

from fedfinlora.commands.verify import verify
from fedfinlora.deployment.certificates import make_authority
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, sha256_of, write_json
from fedfinlora.model.adapter_folder import CONFIG_FILE, PROVENANCE_FILE, WEIGHTS_FILE
from fedfinlora.model.files import model_sha256
from fedfinlora.provenance.bom import BOM_FILE
from fedfinlora.provenance.model_signature import SIGNATURE_FILE, check_folder, sign_folder
from fedfinlora.provenance.signatures import Signer, WrongSignature
from fedfinlora.run.folder import read_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Consortium]:
    """A signed run, private at the banks."""
    folder = tmp_path_factory.mktemp("made")
    runs = Runs(write_rows(folder / "rows"), folder)
    runs.consortium = Consortium(folder / "keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDFINLORA_WITNESS", str(folder / "witness"))
        runs.consortium.serves(patch)
        run = runs.start("run", "privacy=example", "privacy.epsilon=8", "train.batch_rows=4")
    return run, runs.consortium


@pytest.fixture
def adapter(made: tuple[Path, Consortium], tmp_path: Path) -> Path:
    """A copy of adapters/final under another name, as somebody has received it."""
    return Path(shutil.copytree(made[0] / "adapters" / "final", tmp_path / "received"))


@pytest.fixture
def consortium(made: tuple[Path, Consortium]) -> Consortium:
    return made[1]


@pytest.fixture
def public_key(consortium: Consortium, tmp_path: Path) -> Path:
    file = tmp_path / "signing.pub"
    file.write_bytes(consortium.signer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return file


def theirs(adapter: Path, **how: Any) -> None:
    """What model-signing says; an exception for a signature that is not right."""
    config = model_signing.verifying.Config()
    config = (
        config.use_certificate_verifier(**how)
        if "certificate_chain" in how
        else config.use_elliptic_key_verifier(**how)
    )
    config.verify(adapter, adapter / SIGNATURE_FILE)


def test_an_adapter_says_where_it_comes_from_and_is_checked_anywhere(
    made: tuple[Path, Consortium], adapter: Path, consortium: Consortium, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made[0]
    assert verify(adapter, consortium.ca) == 0
    reported = capsys.readouterr().out
    assert "signed by CN=fedfinlora coordinator" in reported
    assert "2 rounds, 2 banks (bank-0, bank-1)" in reported
    statement = read_json(adapter / PROVENANCE_FILE)
    predicate, manifest = statement["predicate"], read_json(run / "manifest.json")
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == {
        name: sha256_of((adapter / name).read_bytes()) for name in (CONFIG_FILE, WEIGHTS_FILE)
    }
    assert predicate["baseModel"]["sha256"] == model_sha256(read_config(run).model)
    assert predicate["configurationSha256"] == result_of(run)["config_sha256"]
    assert predicate["data"] == manifest["data_sha256"]
    assert predicate["code"]["sourceSha256"] == manifest["source_sha256"]
    assert len(predicate["code"]["bundleSha256"]) == 64
    assert predicate["adapterSha256"] == rounds_of(run)[-1]["adapter_sha256"]
    assert predicate["privacy"] == read_json(run / "privacy.json")


def test_the_bill_of_materials_is_cyclonedx_1_6(adapter: Path) -> None:
    text = (adapter / BOM_FILE).read_text("utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    assert bom["metadata"]["component"]["type"] == "machine-learning-model"
    assert {
        "base-model",
        "pkg:pypi/torch@" + read_json(adapter / PROVENANCE_FILE)["predicate"]["software"]["torch"],
    } <= {part["bom-ref"] for part in bom["components"]}
    assert any(
        entry["name"] == "fedfinlora:privacy" and "epsilon" in entry["value"]
        for entry in bom["metadata"]["component"]["properties"]
    )


class TestModelSigning:
    """OpenSSF's own package, both ways."""

    def test_it_reads_our_signature_by_certificate(self, adapter: Path, consortium: Consortium, tmp_path: Path) -> None:
        theirs(adapter, certificate_chain=[consortium.ca])
        make_authority(tmp_path / "other", 5)
        with pytest.raises(Exception, match="certificate"):
            theirs(adapter, certificate_chain=[tmp_path / "other" / "ca.crt"])
        (adapter / CONFIG_FILE).write_text("{}")
        with pytest.raises(ValueError, match="mismatch"):
            theirs(adapter, certificate_chain=[consortium.ca])

    def test_it_reads_our_signature_by_key(self, adapter: Path, consortium: Consortium, public_key: Path) -> None:
        sign_folder(adapter, Signer(consortium.signer.key))
        theirs(adapter, public_key=public_key)
        assert verify(adapter, key=public_key) == 0

    def test_we_read_what_it_signs_by_key(self, adapter: Path, consortium: Consortium, public_key: Path) -> None:
        """So may the release be signed with a key in a PKCS#11 token, which we do not speak to ourselves."""
        (adapter / SIGNATURE_FILE).unlink()
        key = consortium.home / "signing.key"
        model_signing.signing.Config().use_elliptic_key_signer(private_key=key).sign(adapter, adapter / SIGNATURE_FILE)
        assert check_folder(adapter, key=public_key.read_bytes()).trusted
        (adapter / "more").write_text("")
        with pytest.raises(WrongSignature, match="more was not there"):
            check_folder(adapter, key=public_key.read_bytes())

    def test_we_read_what_it_signs_by_certificate(self, adapter: Path, consortium: Consortium) -> None:
        (adapter / SIGNATURE_FILE).unlink()
        files = {"private_key": consortium.home / "signing.key", "signing_certificate": consortium.home / "signing.crt"}
        config = model_signing.signing.Config().use_certificate_signer(**files, certificate_chain=[consortium.ca])
        config.sign(adapter, adapter / SIGNATURE_FILE)
        assert verify(adapter, consortium.ca) == 0


class TestRefused:
    @pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE, BOM_FILE])
    def test_every_file_that_is_changed_or_missing_is_named(
        self, adapter: Path, consortium: Consortium, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = adapter / name
        content = file.read_bytes()
        file.write_bytes(content[:-3] + b"\n\n\n")
        assert verify(adapter, consortium.ca) == 1
        assert str(file) in capsys.readouterr().out
        file.unlink()
        assert verify(adapter, consortium.ca) == 1
        assert str(file) in capsys.readouterr().out

    def test_another_authority_or_key_is_not_believed(
        self, adapter: Path, tmp_path: Path, public_key: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = Consortium(tmp_path / "other")
        other.enrolls(["bank-1"])
        assert verify(adapter, other.ca) == 1
        assert "of another authority" in capsys.readouterr().out
        assert verify(adapter, key=other.key_of("bank-1").with_name("node.key.pub")) == 1
        assert "another key" in capsys.readouterr().out
        assert verify(adapter, key=public_key) == 0
        assert verify(adapter) == 0
        assert "no one vouches for" in capsys.readouterr().out
        with pytest.raises(UserError, match="private key"):
            verify(adapter, key=other.key_of("bank-1"))

    def test_a_bank_cannot_sign_a_release(self, adapter: Path, consortium: Consortium, tmp_path: Path) -> None:
        """Its certificate is of the same authority, and for connections."""
        from fedfinlora.deployment.certificates import issue_bank, open_authority
        from fedfinlora.provenance.signatures import load_signer

        public = consortium.key_of("bank-1").with_name("node.key.pub").read_bytes()
        issue_bank(tmp_path / "bank-1.crt", "bank-1", public, 5, open_authority(consortium.home))
        sign_folder(adapter, load_signer(consortium.key_of("bank-1"), tmp_path / "bank-1.crt"))
        for authority in (consortium.ca.read_bytes(), None):
            with pytest.raises(WrongSignature, match="not for signing"):
                check_folder(adapter, authority)

    def test_a_signature_that_is_cut_or_changed_is_named(
        self, adapter: Path, consortium: Consortium, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = adapter / SIGNATURE_FILE
        content = file.read_bytes()
        bundle = json.loads(content)
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
        changed = json.loads(content)
        changed["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b"sha256", b"sha257")).decode()
        several = json.loads(content)
        several["dsseEnvelope"]["signatures"] *= 2
        none = {**bundle, "verificationMaterial": {}}
        for damage in (
            b"",
            b"{}",
            b"[]",
            content[: len(content) // 2],
            *(json.dumps(each).encode() for each in (changed, several, none)),
        ):
            file.write_bytes(damage)
            assert verify(adapter, consortium.ca) == 1, damage
            assert str(file) in capsys.readouterr().out
        file.unlink()
        assert verify(adapter, consortium.ca) == 1
        assert f"{file}: it is missing" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "name", [".hidden", ".gitattributes", ".git/config", ".github/more", "more/model.sig", "README.md"]
    )
    @pytest.mark.parametrize("signed", [True, False])
    def test_every_file_that_was_added_is_named(
        self, adapter: Path, consortium: Consortium, name: str, signed: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if not signed:
            (adapter / SIGNATURE_FILE).unlink()
        ca = consortium.ca if signed else None
        assert verify(adapter, ca) == 0
        (adapter / name).parent.mkdir(exist_ok=True)
        (adapter / name).write_text("")
        assert verify(adapter, ca) == 1
        assert str(adapter / name) in capsys.readouterr().out

    @pytest.mark.parametrize("kind", ["a FIFO", "a symbolic link"])
    def test_what_is_no_file_is_named_and_not_opened(
        self, adapter: Path, consortium: Consortium, kind: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in (".more", WEIGHTS_FILE, SIGNATURE_FILE, PROVENANCE_FILE):
            (adapter / name).unlink(missing_ok=True)
            os.mkfifo(adapter / name) if kind == "a FIFO" else (adapter / name).symlink_to(consortium.ca)
            assert verify(adapter, consortium.ca) == 1
            assert f"{adapter / name}: it is {kind}" in capsys.readouterr().out

    def test_a_bill_of_materials_that_says_something_else_is_named(
        self, adapter: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (adapter / SIGNATURE_FILE).unlink()
        bom = read_json(adapter / BOM_FILE)
        bom["components"][0]["name"] = "another model"
        write_json(adapter / BOM_FILE, bom)
        assert verify(adapter) == 1
        assert f"{adapter / BOM_FILE} does not follow from provenance.json" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("lie", "status", "named"),
        [
            (lambda bom: bom["components"][0].update(name="another model"), 1, "components[base-model].name"),
            (
                lambda bom: bom["components"][0]["hashes"][0].update(content="0" * 64),
                1,
                "components[base-model].hashes",
            ),
            (
                lambda bom: bom["metadata"]["component"]["properties"][0].update(value="x"),
                1,
                "properties[fedfinlora:run].value",
            ),
            (
                lambda bom: bom["components"].append({"bom-ref": "pkg:pypi/more@1", "name": "more"}),
                3,
                "components[pkg:pypi/more@1]",
            ),
            (lambda bom: bom.pop("dependencies"), 3, "dependencies"),
            (lambda bom: None, 0, "NOT SIGNED"),
        ],
    )
    def test_a_bill_of_materials_of_another_version_is_checked_too(
        self, adapter: Path, lie: Callable[[Any], Any], status: int, named: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What both have must agree; what only one of them has is named."""
        (adapter / SIGNATURE_FILE).unlink()
        statement, bom = read_json(adapter / PROVENANCE_FILE), read_json(adapter / BOM_FILE)
        statement["predicate"]["code"]["version"] = bom["metadata"]["tools"]["components"][0]["version"] = "0.0.1"
        lie(bom)
        write_json(adapter / PROVENANCE_FILE, statement)
        write_json(adapter / BOM_FILE, bom)
        assert verify(adapter) == status
        assert named in capsys.readouterr().out

    def test_a_link_to_a_file_elsewhere_is_refused(self, adapter: Path, consortium: Consortium, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_text("")
        (adapter / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(WrongSignature, match="symbolic link"):
            check_folder(adapter, consortium.ca.read_bytes())


def test_a_simulations_adapter_says_that_it_is_not_signed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Runs(write_rows(tmp_path / "rows"), tmp_path).start("run")
    folder = run / "adapters" / "final"
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE, BOM_FILE]
    )
    assert verify(folder) == 0
    assert capsys.readouterr().out.startswith("NOT SIGNED\n")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((folder / BOM_FILE).read_text("utf-8")) is None
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert verify(folder) == 1
    assert f"{weights} is not the file" in capsys.readouterr().out
    (folder / PROVENANCE_FILE).unlink()
    (folder / BOM_FILE).unlink()
    assert verify(folder) == 1
    assert "nothing here can be checked" in capsys.readouterr().out
