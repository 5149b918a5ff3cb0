"""Which benchmark a row of a merged train file belongs to: upstream merges the sentiment sets, and the XBRL ones, into
one file each.
"""

from __future__ import annotations

import re

from data.catalog import BENCHMARKS, merged_files
from fedfinlora.errors import choose


def classify_merged(stem: str, context: str, target: str) -> str:
    """The benchmark key of one row of a merged train file. Raises ConfigError for a stem that is not one.

    The four XBRL tasks are recognised by the prompt's example question, or, in prompts without one, by the shape of the
    target. Of the sentiment sets only NWGI is recognised for sure, by its seven levels. The rest goes by the
    instruction: "tweet" is TFNS and "news" is FPB. FiQA uses both wordings, so its rows are counted among those two,
    unless they are in a file of their own.
    """
    choose(stem, merged_files(), "merged train file")
    return (
        _sentiment_task(context, target) if stem == BENCHMARKS["fpb"].merged_train_file else _xbrl_task(context, target)
    )


def _sentiment_task(context: str, target: str) -> str:
    instruction = context.lower().split("input:")[0]
    if "strong negative" in instruction or target.strip().lower() in set(BENCHMARKS["nwgi"].labels) - set(
        BENCHMARKS["fpb"].labels
    ):
        return "nwgi"
    return "tfns" if "tweet" in instruction else "fpb"


def _xbrl_task(context: str, target: str) -> str:
    example = re.search(r"example question:(.*)", context, re.IGNORECASE)
    question = example[1].lower() if example else ""
    if "formula" in question:
        return "xbrl_formula_extract" if "tag" in question else "xbrl_formula_calc_extract"
    if "tag" in question:
        return "xbrl_tags_extract"
    if "value" in question:
        return "xbrl_value_extract"
    has_tag = "us-gaap" in target.lower()
    if re.search(r"[/*+]| - ", target):
        return "xbrl_formula_extract" if has_tag else "xbrl_formula_calc_extract"
    return "xbrl_tags_extract" if has_tag else "xbrl_value_extract"
