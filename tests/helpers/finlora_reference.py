"""FinLoRA's evaluator written down a second time, as literally and naively as possible, to hold the project's own
against.

Rules 3, 4, 5, 6 and 8 of its evaluator (`test/test_dataset.py` and `inference.py` at commit 7e1cf82), from their
description alone: nothing here imports the project. The rules work on whole lists of whole texts (prompt + output), and
the label set is tried in an order that is given, so that many orders can be tried: a piece is ambiguous when they
choose different labels.

Two differences, the project's documented ones: the verdict is the one under one fixed order (longest first, then the
alphabet), and the prompts of FiNER and FNXL, which hold no "Answer:", are cut off before rule 3.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

TAG_LISTS = {"xbrl_finer", "xbrl_fnxl"}
BERTSCORES = {"xbrl_term", "financebench"}
COLLAPSED = {
    "strong negative": "negative",
    "moderately negative": "negative",
    "mildly negative": "negative",
    "neutral": "neutral",
    "mildly positive": "positive",
    "moderately positive": "positive",
    "strong positive": "positive",
}
"""Rule 8: NWGI's seven levels."""
ORDERS = 64
"""Random orders of the label set: a tie of two labels looks decided with probability 2 ** -63."""


class Example(NamedTuple):
    """One evaluated row."""

    prompt: str
    target: str
    output: str
    """The generated text without the prompt."""


class Piece(NamedTuple):
    """One entry of the long list: a row, or one tag of a row."""

    target: str
    output: str
    label: str | None
    """The label that is taken as the answer under the fixed order; None if the output holds no label."""
    correct: bool
    ambiguous: bool
    """Another order of the label set chooses another label."""


def decoded_answer(key: str, example: Example) -> str:
    """Rule 3: the decoded text is split on "Answer:" and the last piece, stripped, is the output."""
    decoded = example.prompt + example.output
    if key in TAG_LISTS:
        decoded = example.output  # the difference: this prompt ends in "Output US GAAP tags:"
    pieces = decoded.split("Answer:")
    return pieces[len(pieces) - 1].strip()


def comma_list(text: str) -> list[str]:
    """Rule 4: the pieces between commas, stripped, without newlines."""
    pieces = []
    for piece in text.split(","):
        pieces.append(piece.strip().replace("\n", ""))
    return pieces


def long_lists(key: str, examples: Sequence[Example]) -> tuple[list[int], list[str], list[str]]:
    """Rules 3, 4 and 8: (row of each entry, targets, outputs), three lists of one length."""
    rows: list[int] = []
    targets: list[str] = []
    outputs: list[str] = []
    for row, example in enumerate(examples):
        answer = decoded_answer(key, example)
        if key in TAG_LISTS:
            wanted = comma_list(example.target)
            given = comma_list(answer)
            while len(given) < len(wanted):
                given.append("")
            while len(given) > len(wanted):
                given.pop()
        elif key == "nwgi":
            wanted, given = [COLLAPSED[example.target]], [answer]
        else:
            wanted, given = [example.target], [answer]
        for place in range(len(wanted)):
            rows.append(row)
            targets.append(wanted[place])
            outputs.append(given[place])
    return rows, targets, outputs


def label_set(targets: Iterable[str]) -> set[str]:
    """Rule 5: all target strings of the long list, lower-cased."""
    labels = set()
    for target in targets:
        labels.add(target.lower())
    return labels


def find_label(output: str, labels: Iterable[str]) -> str | None:
    """Rule 5: the label that starts earliest in the lower-cased output; of two at one place, the one that was tried
    first.
    """
    text = output.lower()
    best_label, best_place = None, len(text) + 1
    for label in labels:
        place = text.find(label)
        if place != -1 and place < best_place:
            best_label, best_place = label, place
    return best_label


def fixed_order(labels: Iterable[str]) -> list[str]:
    """The compatible order: longest first, then the alphabet."""
    alphabetical = sorted(labels)
    return sorted(alphabetical, key=len, reverse=True)  # a stable sort: the alphabet stays within one length


def shuffled(labels: Iterable[str], count: int = ORDERS) -> list[list[str]]:
    """Random orders of the labels, the same ones every time."""
    draw = random.Random(0)
    orders = []
    for _ in range(count):
        order = sorted(labels)
        draw.shuffle(order)
        orders.append(order)
    return orders


def evaluate(key: str, examples: Sequence[Example]) -> list[list[Piece]]:
    """The judged pieces of each row."""
    rows, targets, outputs = long_lists(key, examples)
    labels = label_set(targets)
    fixed, orders = fixed_order(labels), shuffled(labels)
    judged: list[list[Piece]] = [[] for _ in examples]
    for row, target, output in zip(rows, targets, outputs, strict=True):
        label = find_label(output, fixed)
        chosen = {find_label(output, order) for order in orders}
        judged[row].append(Piece(target, output, label, label == target.lower(), len(chosen) > 1))
    return judged


def accuracy(pieces: Sequence[Piece]) -> float:
    """Rule 6: correct rows / rows."""
    correct = 0
    for piece in pieces:
        if piece.correct:
            correct += 1
    return correct / len(pieces)


def weighted_f1(pieces: Sequence[Piece]) -> float:
    """Rule 6: scikit-learn's weighted F1, the response being the target of a correct row and the raw output of a wrong
    one.
    """
    from sklearn.metrics import f1_score

    targets = []
    responses = []
    for piece in pieces:
        targets.append(piece.target)
        responses.append(piece.target if piece.correct else piece.output)
    return float(f1_score(targets, responses, average="weighted", zero_division=0))
