"""Make a smaller folder in FinLoRA's layout, for machines without a GPU: of the XBRL train rows a few questions on few
filings.

    python -m benchmarks.few_filings /data/finlora /data/finlora-few [--filings 1] [--rows 16]

Of each filer the shortest filings that have at least ROWS questions are kept, with their first ROWS questions; filers
without one lose their XBRL train rows. All other files, the test files among them, are links to the originals. Reading
a filing costs most of a training step, independent of the question: sixteen questions on one filing are a step, and
cost little more than one question.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data.catalog import BENCHMARKS
from data.sources.issuers import issuer_of

XBRL_TASKS = ("xbrl_tags_extract", "xbrl_value_extract", "xbrl_formula_extract", "xbrl_formula_calc_extract")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=Path)
    options.add_argument("target", type=Path)
    options.add_argument("--filings", type=int, default=1, help="filings of each filer")
    options.add_argument("--rows", type=int, default=16, help="questions on each filing")
    chosen = options.parse_args()
    stems = {stem for key in XBRL_TASKS for stem in BENCHMARKS[key].train_files}
    for file in sorted(chosen.source.rglob("*.jsonl")):
        copy = chosen.target / file.relative_to(chosen.source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        if file.stem not in stems:
            copy.symlink_to(file.resolve())
            continue
        lines = few_filings(file.read_text("utf-8").splitlines(), chosen.filings, chosen.rows)
        copy.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{copy}: {len(lines)} rows")


def few_filings(lines: list[str], filings: int, rows: int) -> list[str]:
    """The lines that are kept, in their order: by filer, the shortest filings with enough questions."""
    by_filer: dict[str, dict[str, list[int]]] = {}
    for number, line in enumerate(lines):
        prompt = str(json.loads(line)["context"])
        filing = prompt.partition("XML File:")[2].rpartition("Question:")[0]
        by_filer.setdefault(issuer_of(prompt).casefold(), {}).setdefault(filing, []).append(number)
    kept: list[int] = []
    for of_filer in by_filer.values():
        enough = sorted((filing for filing, numbers in of_filer.items() if len(numbers) >= rows), key=len)
        kept += [number for filing in enough[:filings] for number in of_filer[filing][:rows]]
    return [lines[number] for number in sorted(kept)]


if __name__ == "__main__":
    main()
