"""Flower's app bundle (FAB) as data: what a bank reads of one before anything of it is unpacked or run.

`flwr build` (1.41) makes a zip of uncompressed files with the list `.info/CONTENT` of their hashes. It rewrites
pyproject.toml, which is therefore compared by its parsed values.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import shutil
import stat
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.errors import UserError

LIST, SETTINGS = ".info/CONTENT", "pyproject.toml"
MOST_BYTES = 10 * 2**20
"""What `flwr build` lets a bundle have. Files are not compressed, so nothing larger can come out of it."""
PLAIN_NAME = re.compile(r"(?=.{1,255}\Z)(?!\.{1,2}(/|$))[A-Za-z0-9_.-]+(/(?!\.{1,2}(/|$))[A-Za-z0-9_.-]+)*")

Files = Mapping[str, bytes]
"""Name -> content of each file that runs or is read; pyproject.toml as JSON of its values."""


class RefusedBundle(Exception):
    """A bundle that must not be unpacked; the message is plain ASCII."""


def read_bundle(content: bytes, sha256: str) -> Files:
    """RefusedBundle unless the bundle is just as `flwr build` makes one, and has this hash."""
    if len(content) > MOST_BYTES:
        raise RefusedBundle(f"it has {len(content):,} bytes, more than {MOST_BYTES:,}")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RefusedBundle("it is not the bundle whose hash the run names")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check_entries(entries, len(content))
            files = {entry.filename: archive.read(entry) for entry in entries}
        return _checked_list(files)
    except RefusedBundle:
        raise
    except Exception as error:  # a hostile archive may raise anything in the readers
        raise RefusedBundle(f"it cannot be read ({type(error).__name__})") from error


def _check_entries(entries: list[zipfile.ZipInfo], most_bytes: int) -> None:
    """Plain names, each once, and no more bytes than the archive has."""
    seen: set[str] = set()
    for entry in entries:
        name = f"{entry.orig_filename!a:.100}"
        if not PLAIN_NAME.fullmatch(entry.orig_filename) or entry.orig_filename != entry.filename:
            raise RefusedBundle(f"{name} is no plain relative path")
        if entry.filename in seen:
            raise RefusedBundle(f"{name} is in it twice")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise RefusedBundle(f"{name} is no plain file")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise RefusedBundle(f"{name} is compressed")
        seen.add(entry.filename)
    if sum(entry.file_size for entry in entries) > most_bytes:
        raise RefusedBundle("its files have more bytes than it has itself")


def _checked_list(files: dict[str, bytes]) -> Files:
    """The files without Flower's list of them, which must be right: Flower looks for the files that it names."""
    reported = [
        f"{name},{hashlib.sha256(data).hexdigest()},{8 * len(data)}" for name, data in files.items() if name != LIST
    ]
    if files.pop(LIST, b"").decode() != "\n".join(reported):
        raise RefusedBundle(f"{LIST} is not the list of its files")
    values = tomllib.loads(files[SETTINGS].decode())
    return files | {SETTINGS: json.dumps(values, sort_keys=True, default=str, allow_nan=False).encode()}


def bundle_sources(root: Path = PROJECT_ROOT) -> dict[str, Path]:
    """Name -> file of what `flwr build` may take here. Flower itself would look at every file of a checkout, .venv and
    all runs among them. OSError, ValueError or KeyError where the project has no such list.
    """
    include = tomllib.loads((root / SETTINGS).read_text("utf-8"))["tool"]["flwr"]["app"]["fab-include"]
    places = [
        root / name for name in sorted({pattern.strip("/").partition("/")[0] for pattern in (*include, ".gitignore")})
    ]
    found = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place])]
    return {
        file.relative_to(root).as_posix(): file
        for file in found
        if file.is_file() and not file.is_symlink() and file.suffix != ".pyc"
    }


@contextmanager
def lean_copy(root: Path = PROJECT_ROOT) -> Iterator[Path]:
    """Meanwhile a folder with the sources of the bundle alone, from which `flwr run` makes the same one in a second.
    UserError where it cannot be made.
    """
    with ExitStack() as stack:
        try:
            copy = Path(stack.enter_context(TemporaryDirectory(prefix="fedfinlora-app-"))) / "fedfinlora"
            for name, file in bundle_sources(root).items():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy / name)
        except (OSError, ValueError, KeyError) as error:
            remedy = " Free space there, or set TMPDIR to a folder that has some." if _is_full(error) else ""
            raise UserError(f"No app bundle can be made of the project in {root}: {error}.{remedy}") from error
        yield copy


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def installed_files(root: Path = PROJECT_ROOT) -> Files:
    """The files of the bundle that `flwr build` would make here. UserError where that fails."""
    from flwr.cli.build import build_fab_from_files

    try:
        content, _ = build_fab_from_files(bundle_sources(root))
        return read_bundle(content, hashlib.sha256(content).hexdigest())
    except (OSError, ValueError, KeyError, RefusedBundle) as error:
        raise UserError(f"No app bundle can be made of the project in {root}: {error}") from error


def code_sha256(files: Files) -> str:
    """One hash of all files and their names, however they are packed."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return digest.hexdigest()


@cache
def bundle_sha256() -> str:
    """`code_sha256` of the code that runs here; "" outside a checkout."""
    try:
        return code_sha256(installed_files())
    except UserError:
        return ""


def first_difference(files: Files, installed: Files) -> str:
    """The first file that is not as it is installed here, in words."""
    for name in sorted({*files, *installed}):
        if name not in installed:
            return f"{name} is not installed here"
        if name not in files:
            return f"{name} is missing"
        if files[name] != installed[name]:
            return f"{name} differs from what is installed here"
    return ""


def app_named_by(files: Files) -> tuple[str, str]:
    """(publisher/name, version) of a bundle's app, of which Flower makes the name of its folder."""
    values = json.loads(files[SETTINGS])
    return f"{values['tool']['flwr']['app']['publisher']}/{values['project']['name']}", str(
        values["project"]["version"]
    )
