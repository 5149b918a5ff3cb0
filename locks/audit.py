"""`make audit`: pip-audit over every locked package and torch, and an error where one could not be looked up.

pip-audit itself ends with 0 when its service knows none of the packages, as behind a mirror that has no advisories;
here that is a failure. Ends with 0 when every package was looked up and none has a known vulnerability, with 1 when one
has, with 2 when the audit is not whole.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NOT_WHOLE = (
    "This says nothing about them. Run `make audit` where PyPI's JSON API, or with SERVICE=osv the one of "
    "OSV, "
    "can be reached."
)


def judged(dependencies: Sequence[Mapping[str, Any]], wanted: int) -> tuple[int, str]:
    """(exit status, what to say) of pip-audit's list; `wanted`: how many packages were asked about."""
    skipped = sorted(str(one["name"]) for one in dependencies if "skip_reason" in one)
    audited = [one for one in dependencies if "skip_reason" not in one]
    lines = [
        (
            f"{one['name']} {one['version']}: {found['id']}, fixed in "
            f"{', '.join(found['fix_versions']) or 'no version yet'}"
        )
        for one in audited
        for found in one["vulns"]
    ]
    if len(audited) < wanted:
        some = f" ({', '.join(skipped[:5])}{', …' if len(skipped) > 5 else ''})" if skipped else ""
        lines.append(f"{wanted - len(audited)} of {wanted} packages could not be looked up{some}. {NOT_WHOLE}")
        return 2, "\n".join(lines)
    lines.append(f"{wanted} packages looked up, {len(lines)} known vulnerabilities.")
    return int(len(lines) > 1), "\n".join(lines)


def main(service: str) -> int:
    """Ask `service` (pypi or osv) about all packages of the locks."""
    torch = next(line for line in (HERE / "base.in").read_text("utf-8").splitlines() if line.startswith("torch=="))
    found: list[Mapping[str, Any]] = []
    wanted = 0
    for packages in ([torch, *pinned("dev.txt")], pinned("models.txt"), pinned("tools.txt")):
        wanted += len(packages)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(packages))
            file.flush()
            command = [sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps", "--disable-pip"]
            command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        try:
            found += json.loads(done.stdout)["dependencies"]
        except ValueError:
            last = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
            print(f"pip-audit got no answer from {service}: {last[0]}. {NOT_WHOLE}", file=sys.stderr)
            return 2
    status, words = judged(found, wanted)
    print(words, file=sys.stderr if status else sys.stdout)
    return status


def pinned(lock: str) -> list[str]:
    """The packages of a lock, as NAME==VERSION."""
    return [word for word in (HERE / lock).read_text("utf-8").split() if "==" in word]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "pypi"))
