"""The code blocks of docs/extending.md, by the file that each is of."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text("utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
"""File -> what the page has in it."""


def page_module(file: str) -> ModuleType:
    """A file of the page, imported as if it were there."""
    module = ModuleType(Path(file).stem)
    exec(compile(BLOCKS[file], f"docs/extending.md: {file}", "exec"), vars(module))
    return module
