"""`doctor`'s check of packages: what is installed, against a checkout's lock or the wheel's requirements."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from fedfinlora.commands.doctor_checks import FAIL, OK, WARN, Finding
from fedfinlora.run.origin import PROJECT_ROOT

INSTALL = (
    "Run `make venv`" if (PROJECT_ROOT / "Makefile").is_file() else "Install the wheel again with its extra [train]"
)
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)\s*(?:;\s*([^\\]+))?", re.MULTILINE)


def wanted_packages(root: Path = PROJECT_ROOT) -> tuple[str, dict[str, str]]:
    """(where it is written, package -> exact version; "" where any will do): a checkout's lock, else the wheel's."""
    locked = {name: _pinned(root / name) for name in ("locks/run.txt", "constraints.txt") if (root / name).is_file()}
    if "locks/run.txt" in locked:
        return "locks/run.txt", locked["locks/run.txt"]
    try:
        wanted = metadata.requires("fedfinlora") or []
    except metadata.PackageNotFoundError:
        return next(iter(locked.items()), ("nothing", {}))
    names = [
        _normal(re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0])
        for line in wanted
        if "extra ==" not in line or "'train'" in line.replace('"', "'")
    ]
    source, versions = next(iter(locked.items()), ("the package's metadata", {}))
    return source, {name: versions.get(name, "") for name in names}


def _pinned(file: Path) -> dict[str, str]:
    """Package -> exact version of the lines of a lock that apply here."""
    found = _PINNED.findall(file.read_text("utf-8"))
    return {_normal(package): version for package, version, marker in found if _applies(marker)}


def packages(wanted: Mapping[str, str], source: str, installed: Mapping[str, str]) -> Finding:
    """Compare what is installed with what is wanted.

    >>> packages({"torch": "2.13.0", "peft": "0.21.2"}, "locks/run.txt", {"torch": "2.12.1"}).text
    'missing: peft; another version than in locks/run.txt: torch 2.12.1 (2.13.0). Run `make venv`.'
    """
    missing = sorted(name for name in wanted if name not in installed)
    other = sorted(
        f"{name} {installed[name]} ({version})"
        for name, version in wanted.items()
        if version and name in installed and installed[name].split("+")[0] != version.split("+")[0]
    )
    parts = [f"missing: {_some(missing)}"] if missing else []
    parts += [f"another version than in {source}: {_some(other)}"] if other else []
    if not parts:
        return Finding("packages", OK, f"{len(wanted)} as in {source}")
    return Finding("packages", FAIL if missing else WARN, f"{'; '.join(parts)}. {INSTALL}.")


def installed_packages() -> dict[str, str]:
    """Package -> version of all that this Python finds."""
    return {_normal(each.metadata["Name"] or ""): each.version for each in metadata.distributions()}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _applies(marker: str) -> bool:
    if not marker.strip():
        return True
    try:
        from packaging.markers import InvalidMarker, Marker
    except ImportError:
        return False
    try:
        return Marker(marker.strip()).evaluate()
    except InvalidMarker:
        return False


def _some(items: Iterable[str], most: int = 6) -> str:
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
