"""Plain words: a few words that made sentences hard to read occur nowhere, and test names are short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {
    "whatever": "any, all, for any",
    "nobody": "no one, no bank, no process",
    "anew": "again",
    "beside": "next to, compared with",
    "spine": "cached prefix",
}
"""Word -> what to write instead."""
WORD = re.compile(rf"\b(?:{'|'.join(PLAIN)})s?\b", re.IGNORECASE)
FOLDERS = ("fedfinlora", "data", "eval", "client_app", "server_app", "benchmarks", "conf", "docs")
SUFFIXES = {".py", ".md", ".yaml", ".service", ".ipynb"}
LONGEST_TEST_NAME = 70


def texts() -> list[Path]:
    """Code, settings and documents. Not here: rows and their makers, the log and measured results, which stay as they
    were written.
    """
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in SUFFIXES]
    kept = (ROOT / "data" / "sample", ROOT / "docs" / "results")
    kept_files = (ROOT / "docs" / "log.md", ROOT / "docs" / "results.md")
    mine = [file for file in files if file not in kept_files and not any(file.is_relative_to(one) for one in kept)]
    return [*mine, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]


def test_the_projects_text_has_plain_words() -> None:
    found = []
    for file in texts():
        text = file.read_text("utf-8")
        for match in WORD.finditer(text):
            word = match.group().lower()
            if word != "besides":
                instead = PLAIN.get(word) or PLAIN[word.removesuffix("s")]
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{file.relative_to(ROOT)}:{line}: {word} -> {instead}")
    assert len(texts()) > 500
    assert found == []


@pytest.mark.parametrize("text", ["Whatever it is", "Nobody's", "beside it", "the spines", "made anew."])
def test_the_words_are_found(text: str) -> None:
    assert WORD.search(text)


def test_test_names_are_short() -> None:
    names = {
        name: file.name
        for file in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^\s*(?:async )?def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)
    }
    assert len(names) > 1500
    assert {name: file for name, file in names.items() if len(name) > LONGEST_TEST_NAME} == {}


def test_tests_share_code_by_helpers_alone() -> None:
    """What several test files use lies in tests/helpers or conftest.py."""
    importing = re.compile(r"^\s*(?:from test_\w+ import|import test_\w+)", re.MULTILINE)
    files = list((ROOT / "tests").rglob("*.py"))
    assert [file.name for file in files if importing.search(file.read_text("utf-8"))] == []
