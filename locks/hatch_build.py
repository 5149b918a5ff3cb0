"""What only the wheel gets, and an editable installation does not: its own `fedfinlora/__init__.py`, and the project's
files next to the app's folders.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT_FILES = ("pyproject.toml", "constraints.txt", "LICENSE", "README.md")


class WheelFiles(BuildHookInterface[Any]):
    """Called by hatchling (`[tool.hatch.build.targets.wheel.hooks.custom]` in pyproject.toml)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to a wheel; `outside` is mapped to the package's folder by the table of sources."""
        if version == "standard":
            build_data["force_include"] |= {name: f"outside/_app/{name}" for name in ROOT_FILES}
            build_data["force_include"]["locks/wheel_init.py"] = "outside/__init__.py"
