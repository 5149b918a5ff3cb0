"""docs/benchmarks.md, written from the entries of `data.catalog`, the parsers, the scorers and what their docstrings
say.

    python -m benchmarks.benchmarks_reference > docs/benchmarks.md

A test keeps the file equal to this.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.answer_examples import EXAMPLES
from benchmarks.flare_published import FLARE_MODELS, FLARE_PUBLISHED
from data.catalog import BENCHMARKS, GROUPS, PUBLISHED_COLUMNS, PUBLISHED_OVERALL, Benchmark, PublishedScore
from data.sources.layout import finlora_stems
from eval.metrics.intervals import BOOTSTRAP_SEED, RESAMPLES
from eval.scoring.parsers import PARSERS, Answer
from eval.scoring.row_score import closed_labels
from eval.scoring.scorers import RELATIVE_TOLERANCE, SCORERS

INTRODUCTION = f"""# The benchmarks

Written by `python -m benchmarks.benchmarks_reference > docs/benchmarks.md` from the entries in `data/catalog.py`; do not edit. To add one:
[CONTRIBUTING.md](../CONTRIBUTING.md#how-to-add-). Rows, files and sources: [data.md](data.md).

An answer is read by a parser and judged by a scorer, twice: strictly, and by FinLoRA's rules, so that a score can be compared with the
published one. The two never mix, and neither mixes with what the model holds most likely among the labels (`labels_…`).

## How an answer is read
{{parsers}}

By example, where the labels on offer are negative, neutral and positive, or A to D. Thoughts and wrappings are left aside for every parser, FinLoRA's
rules know none of this, and each line is a test:
{{examples}}

## How it is judged
{{scorers}}

The tolerance is {RELATIVE_TOLERANCE:g} of the target's size. Where formulas are also judged by value, the normalised formula is computed
(numbers, + - * / ^, brackets; nothing is executed) and compared with the target's value within that tolerance; division by zero, overflow,
names of tags and more than 50 levels of brackets have no value.

A target that the parser cannot read is compared as its first line of text, without regard to case. An answer that cannot be read is
*unparsed*: wrong for its row, counted by itself, and never a class of its own in F1.

## The figures

Fractions from 0 to 1 in `eval/<label>/metrics.json`, null where undefined, absent where not measured. NAME_ci95 is the 95 % interval.

| figure | what | interval |
|---|---|---|
| `n` | rows; tags for tag lists, whose rows are in `rows` | |
| `unparsed`, `unparsed_share` | answers that could not be read | Wilson |
| `accuracy` | answers that are right, by the strict reading | Wilson; per tag: bootstrap |
| `f1_macro`, `f1_weighted` | F1 over the classes that occur among the targets | bootstrap |
| `matthews` | Matthews correlation, closed label sets; "unparsed" is one more answer | bootstrap |
| `accuracy_exact` | numbers without tolerance | Wilson |
| `value_accuracy` | formulas by value | Wilson |
| `row_accuracy` | rows of a tag list with every tag right | Wilson |
| `entity_f1`, `entity_precision`, `entity_recall` | entities of all rows together, as seqeval counts them | bootstrap |
| `accuracy_any_unit` | FLARE's numbers, percent and fractions being the same | Wilson |
| `pixiu_accuracy`, `pixiu_missing` | by PIXIU's rules (below) | Wilson |
| `bertscore_precision`, `_recall`, `_f1` | means; encoder and layer in `bertscore_model` and `bertscore_layer` | bootstrap |
| `finlora_accuracy`, `finlora_f1` | by FinLoRA's rules (below); `finlora_ambiguous` rows or tags hang on the order of its label set | Wilson (per tag: bootstrap), bootstrap |
| `labels_accuracy`, `labels_f1_macro`, `labels_f1_weighted`, `labels_matthews` | the most likely label as the answer (`evaluation.mode=labels` or `both`) | Wilson, bootstrap |
| `classes` | support, answers, precision, recall and F1 of each label, or of the 20 most frequent tags | |
| `confusion` | `counts[i][j]`: target `labels[i]`, answer `answers[j]`, the last two answers "other" (if any) and "unparsed" | |

**Wilson's interval** (1927) for shares of rows. **Bootstrap**: {RESAMPLES:,} resamples of rows with replacement, always of the seed
{BOOTSTRAP_SEED}, so the same records give the same interval in every run; 2.5 % and 97.5 % percentiles, moved by the figure minus the mean of
its resamples, because F1 over many answers that occur once is biased in a resample. The tags of a row stand and fall together, so tags are
resampled by row; where all or none are right, Wilson's interval with the number of rows is used. F1, correlation and BERTScore have no
width where every row counts alike, as at 0, at 1 or with one row: for F1, look at accuracy's interval there. Rows count as independent, also
where prompts repeat (NER asks each question in 17 forms).

**Averages.** A group's `score` is the mean of accuracies and BERTScore F1 of its benchmarks that were scored, `finlora_score` that of
FinLoRA's figures; the rest is listed in `missing`. FinLoRA's overall average is over its 19 benchmarks, in percent, and `comparable` with the
published one only if none is missing and BERTScore ran on `ProsusAI/finbert`. Intervals of averages add those of the benchmarks up as standard
errors add up, each side by itself (Zou and Donner 2008).

## Two runs

```sh
python -m fedfinlora compare outputs/demo outputs/demo --labels base final
```

Rows are joined by prompt and id; every figure is computed on the rows that both have, and its difference gets a paired bootstrap interval over
those rows. For accuracies of rows McNemar's exact test is given too. Means over benchmarks are of the differences.

## FinLoRA's rules

From its evaluator at commit 7e1cf82, and what is fixed here where it leaves something open.

1. The raw context is the prompt: no chat template, no system turn.
2. Greedy decoding up to the budget, ending at end-of-sequence.
3. The text is split on "Answer:"; the last piece, stripped, is the output. FiNER's and FNXL's prompts hold no "Answer:", and the prompt is
   never searched here.
4. FiNER and FNXL: target and output are split on ",", each piece is stripped and loses its line ends, and the output is cut or padded to the
   target's length. Every piece counts as a row.
5. The label set is the set of all targets in lower case. The label that starts earliest in the lower-case output is the answer. Where two start
   at the same place FinLoRA leaves the choice to the order of a Python set, which changes from process to process; **here the longest wins, then
   the alphabet**, and such rows are counted in `finlora_ambiguous`.
6. F1 is weighted F1 over (target, response), the response being the target for a right row and the raw text for a wrong one. Wrong texts are
   classes of their own, so the figure is near 2·accuracy / (1 + accuracy) and flatters.
7. BERTScore F1 on `ProsusAI/finbert`; the layer, which FinLoRA leaves to the `bert-score` package, is 10.
8. NWGI's seven levels are scored collapsed to negative, neutral and positive.

## FLARE's rules

From PIXIU's evaluator (`src/tasks/flare.py` of The-FinAI/PIXIU), and where this one differs. FinLoRA's rules are not applied to FLARE's
benchmarks; `all` leaves them out, `evaluation.benchmarks=flare` names them.

1. **Labels.** Of the labels in their order, the first one that is anywhere in the text, in any letter case, is the answer
   (`pixiu_accuracy`). A text without a label is *missing* and wrong (`pixiu_missing`). PIXIU counts such a text as Fall in stock movement, so
   that a model which says nothing has the share of falling stocks; here it is missing there too.
2. **Numbers.** PIXIU compares letter by letter (`pixiu_accuracy`). `accuracy` compares numbers at five decimals, to which FinQA's programs round
   their results: a percent sign divides by 100 as it does in those programs, brackets negate, a scale behind the number ("million") may be
   there or not. Percent points for a fraction are wrong, and counted by `accuracy_any_unit`. Yes and no are answers.
3. **Entities.** A line "name, TYPE" is an entity, and tags every place of the text where its words are. Entity F1 is seqeval's over B-, I- and O
   tags of all rows. Of entities inside each other the longest is tagged (PIXIU: the one named last); other ways of writing a list are
   read too. An answer without any entity is unparsed.
4. **Conversations.** ConvFinQA is a row a turn, with the earlier questions and their right answers in the prompt. PIXIU puts the model's own
   earlier answers there, so that one wrong answer spoils the turns after it: its figures are lower for the same model.
5. Matthews correlation counts missing answers as one more answer, like PIXIU's -1.
"""


def main() -> None:
    """Print the page."""
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(render(), end="")


def render() -> str:
    """The whole page as Markdown."""
    introduction = INTRODUCTION.format(
        parsers=_functions(PARSERS, lambda entry: entry.parser),
        examples=_examples(),
        scorers=_functions(SCORERS, lambda entry: entry.scorer),
    )
    groups = [
        _group(title, [entry for entry in BENCHMARKS.values() if entry.group == key]) for key, title in GROUPS.items()
    ]
    return "\n".join([introduction, *groups, _flare(), _overall()])


def _functions(functions: Mapping[str, Any], name_of: Callable[[Benchmark], str]) -> str:
    """A line for each parser or scorer: name, what its docstring says, who uses it."""
    users = {name: [entry.key for entry in BENCHMARKS.values() if name_of(entry) == name] for name in functions}
    lines = [(f"`{name}`", _meaning(function), _codes(users[name])) for name, function in functions.items()]
    return _table(("name", "how", "benchmarks"), lines)


def _examples() -> str:
    """A line for each parser and kind of text: what is written -> what is read."""
    lines = [
        (f"`{parser}`", kind, ", ".join(f"{_code(example.text)} {_read(example.answer)}" for example in examples))
        for parser, kinds in EXAMPLES.items()
        for kind, examples in kinds.items()
    ]
    return _table(("parser", "texts", "text → read as"), lines)


def _code(text: str) -> str:
    """A text as Markdown code, line ends and blanks to be seen."""
    shown = text.replace("\n", "⏎").replace("\u202f", "⍽").replace("\u2011", "‑") or "(empty)"
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def _read(answer: Answer | None) -> str:
    if answer is None:
        return "→ –"
    if isinstance(answer, list):
        return "→ " + " / ".join(piece or "–" for piece in answer)
    return f"→ {answer:g}" if isinstance(answer, float) and float(f"{answer:g}") == answer else f"→ {answer}"


def _meaning(function: Any) -> str:
    """A docstring up to its examples, on one line."""
    return " ".join((inspect.getdoc(function) or "").split(">>>")[0].split())


def _group(title: str, entries: Sequence[Benchmark]) -> str:
    rows = [
        (
            f"`{entry.key}`", entry.title, " or ".join(f"`{stem}`" for stem in finlora_stems(entry, "train")),
            f"`{entry.test_file}`",
            f"`{entry.hub_id}`" if entry.hub_id else "", entry.source, entry.licence, entry.notes,
        )
        for entry in entries
    ]  # fmt: skip
    answers = [
        (
            f"`{entry.key}`",
            _labels(entry),
            str(entry.budget_tokens),
            f"`{entry.parser}`",
            f"`{entry.scorer}`",
            _tolerance(entry),
        )
        for entry in entries
    ]
    published = [
        (f"`{entry.key}`", *(_score(entry.published[column]) for column in PUBLISHED_COLUMNS), entry.best_other_name)
        for entry in entries
        if entry.is_published
    ]
    tables = [
        f"## {title}",
        _table(("key", "title", "train files", "test file", "hub id", "source", "licence as stated", "notes"), rows),
        _table(("key", "labels", "budget, tokens", "parser", "scorer", "relative tolerance"), answers),
        "\nPublished, accuracy in percent / F1 (BERTScore F1 where there is no accuracy):",
        _table(("key", *PUBLISHED_COLUMNS.values(), "best other model is"), published),
    ]
    return "\n".join([*(tables if published else tables[:3]), ""])


def _flare() -> str:
    """What PIXIU published for FLARE."""

    def cell(figure: float | None) -> str:
        return "–" if figure is None else f"{figure:g}"

    rows = [(f"`{key}`", metric, *map(cell, cells)) for (key, metric), cells in FLARE_PUBLISHED.items()]
    lines = [
        'Published, fractions from 0 to 1, from the table "Benchmark" in the README of The-FinAI/PIXIU of 2023 (Xie et al. '
        "2023). Other rows, other",
        "models and PIXIU's own rules: compare with `pixiu_accuracy` rather than with `accuracy`.",
        _table(("key", "metric", *FLARE_MODELS), rows),
        "",
    ]
    return "\n".join(lines)


def _labels(entry: Benchmark) -> str:
    """The closed label set, and what it is read as where that is something else."""
    read_as = closed_labels(entry)
    listed = ", ".join(entry.labels) or "open"
    return listed if read_as == entry.labels else f"{listed}; read as {', '.join(read_as)}"


def _tolerance(entry: Benchmark) -> str:
    tolerance = SCORERS[entry.scorer].relative_tolerance
    return "" if tolerance is None else f"{tolerance:g}"


def _score(score: PublishedScore) -> str:
    accuracy = "–" if score.accuracy is None else f"{score.accuracy:.2f}"
    return f"{accuracy} / " + ("–" if score.f1 is None else f"{score.f1:.3f}")


def _overall() -> str:
    cells = [f"{PUBLISHED_OVERALL[column]:.2f}" for column in PUBLISHED_COLUMNS]
    lines = ["## FinLoRA's overall average", _table(tuple(PUBLISHED_COLUMNS.values()), [cells])]
    return "\n".join([*lines, "", "Percent. The best other single model is Gemini 2.0 FL, tuned.", ""])


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table after an empty line."""
    lines = [tuple(heads), tuple("---" for _ in heads), *map(tuple, rows)]
    return "\n" + "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


if __name__ == "__main__":
    main()
