"""Writes the bundled sample, the same bytes every time: `python -m data.sample.generate [--out DIR]`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from data.sample import FOLDER
from data.sample.cfa_level1 import cfa_level1
from data.sample.cfa_level2 import cfa_level2
from data.sample.cfa_level3 import cfa_level3
from data.sample.cpa_reg import cpa_reg
from data.sample.drawing import Draw, SampleRow, collect
from data.sample.entities import ner
from data.sample.filings import formula_calculations_extract, formula_extract, tags_extract, value_extract
from data.sample.flare import convfinqa, entities, finqa, movement
from data.sample.formulas import formula
from data.sample.gold import headline
from data.sample.pages import financebench
from data.sample.sentiment import fiqa, fpb, nwgi, tfns
from data.sample.tagging import finer, fnxl
from data.sample.terms import term


@dataclass(frozen=True)
class SampleSet:
    """The two files of one benchmark, their lengths, and what draws a row."""

    train_file: str
    test_file: str
    train_rows: int
    test_rows: int
    draw: Draw


SETS = {
    "fpb": SampleSet("fpb_train", "fpb_test", 96, 32, fpb),
    "fiqa": SampleSet("fiqa_train", "fiqa_test", 96, 32, fiqa),
    "tfns": SampleSet("tfns_train", "tfns_test", 96, 32, tfns),
    "nwgi": SampleSet("nwgi_train", "nwgi_test", 96, 32, nwgi),
    "headline": SampleSet("headline_train", "headline_test", 96, 32, headline),
    "ner": SampleSet("ner_train", "ner_test", 96, 32, ner),
    "cfa_level1": SampleSet("cfa_level1_train", "cfa_level1_test", 64, 24, cfa_level1),
    "cfa_level2": SampleSet("cfa_level2_train", "cfa_level2_test", 64, 24, cfa_level2),
    "cfa_level3": SampleSet("cfa_level3_train", "cfa_level3_test", 64, 24, cfa_level3),
    "cpa_reg": SampleSet("cpa_reg_train", "cpa_reg_test", 64, 24, cpa_reg),
    "xbrl_finer": SampleSet("finer_train_batched", "finer_test_batched", 64, 24, finer),
    "xbrl_fnxl": SampleSet("fnxl_train_batched", "fnxl_test_batched", 64, 24, fnxl),
    "xbrl_term": SampleSet("xbrl_term_train", "xbrl_term_test", 64, 24, term),
    "xbrl_tags_extract": SampleSet("xbrl_extract_tags_train", "xbrl_extract_tags_test", 64, 24, tags_extract),
    "xbrl_value_extract": SampleSet("xbrl_extract_value_train", "xbrl_extract_value_test", 64, 24, value_extract),
    "xbrl_formula_extract": SampleSet(
        "xbrl_extract_formula_train", "xbrl_extract_formula_test", 64, 24, formula_extract
    ),
    "xbrl_formula_calc_extract": SampleSet(
        "xbrl_extract_formula_calculations_train",
        "xbrl_extract_formula_calculations_test",
        64,
        24,
        formula_calculations_extract,
    ),
    "financebench": SampleSet("financebench_train", "financebench_test", 64, 24, financebench),
    "formula": SampleSet("formula_train", "formula_test", 64, 24, formula),
}
"""Benchmark key -> its files, in the order of FinLoRA's table."""

FLARE_SETS = {
    "flare_ner": SampleSet("flare_ner_train", "flare_ner_test", 8, 6, entities),
    "finqa": SampleSet("finqa_train", "finqa_test", 8, 8, finqa),
    "convfinqa": SampleSet("convfinqa_train", "convfinqa_test", 9, 6, convfinqa),
    "acl18": SampleSet("acl18_train", "acl18_test", 8, 6, movement),
    "bigdata22": SampleSet("bigdata22_train", "bigdata22_test", 8, 6, movement),
    "cikm18": SampleSet("cikm18_train", "cikm18_test", 8, 6, movement),
}
"""The same of FLARE's, a few rows each; those of FPB and FiQA are the rows of `SETS` in FLARE's wording."""


ALL_SETS = SETS | FLARE_SETS


def sample_rows(key: str) -> dict[str, list[SampleRow]]:
    """Both splits of one benchmark. No prompt occurs twice, in one split or across the two."""
    chosen = ALL_SETS[key]
    taken: set[str] = set()
    return {
        "train": collect(key, "train", chosen.train_rows, chosen.draw, taken),
        "test": collect(key, "test", chosen.test_rows, chosen.draw, taken),
    }


def write(folder: Path) -> list[Path]:
    """Write every file below `folder` and return their paths in order."""
    paths = []
    for key, chosen in ALL_SETS.items():
        for split, rows in sample_rows(key).items():
            path = folder / split / f"{chosen.train_file if split == 'train' else chosen.test_file}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes("".join(f"{row.line()}\n" for row in rows).encode())
            paths.append(path)
    return paths


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m data.sample.generate", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=FOLDER, metavar="DIR", help="where train/ and test/ go (default: this package)"
    )
    paths = write(parser.parse_args().out)
    print(f"{len(paths)} files, {sum(path.stat().st_size for path in paths):,} bytes")


if __name__ == "__main__":
    main()
