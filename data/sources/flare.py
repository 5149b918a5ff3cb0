"""FLARE's forms become rows (PIXIU: Xie et al. 2023, arXiv 2306.05443): its JSON Lines and hub sets, ConvFinQA's raw
conversations, and FinLoRA's sentiment prompts in FLARE's wording.

| a record has | it becomes |
|---|---|
| `query` and `answer` | a row; `{answer0}` in a query is the answer of an earlier turn of the same `dialogue_id` |
| `financial_report` and `conversation` | a row for each turn; its prompt has the earlier turns with their answers |

A conversation's rows have its company as issuer (of a published one its `dialogue_id`), so that validation and
`partition=by_issuer` never divide it. PIXIU puts the model's own earlier answers into the test prompts; right ones are
used here, so that rows are independent, and one wrong answer costs one row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data.sources.records import BadLine

QUERY, ANSWER, DIALOGUE, TURN = "query", "answer", "dialogue_id", "turn"
REPORT, CONVERSATION = "financial_report", "conversation"
COLUMNS = frozenset((QUERY, ANSWER))
WANTED = frozenset((QUERY, ANSWER, DIALOGUE, TURN, "id"))
"""What a table is read for."""

WORDING = {
    "flare_fpb": (
        "Analyze the sentiment of this statement extracted from a financial news article. Provide your answer as "
        "either negative, positive, or neutral."
    ),
    "flare_fiqa": "What is the sentiment of the following financial post: Positive, Negative, or Neutral?",
}
"""Task -> FLARE's instruction in front of a text."""
CONVERSATION_WORDING = (
    "In the context of this series of interconnected finance-related queries and the additional information provided "
    "by the pretext, table data, and posttext from a company's financial filings, please provide a response to the "
    "final question. This may require extracting information from the context and performing mathematical "
    "calculations. Please take into account the information provided in the preceding questions and their answers "
    "when formulating your response:"
)
_PLACE = re.compile(r"\{answer(\d{1,3})\}")
_FINLORA = re.compile(r"\AInstruction:.*?\nInput: (?P<text>.*)\nAnswer:\s*\Z", re.DOTALL)
_REPORT_ID = re.compile(r"\A(?:Single_|Double_)?(?P<company>[A-Za-z.]{1,8})/\d{4}/page_\d+")
_TEXT = re.compile(r"\nText: ?(?P<text>.*?)\s*\nAnswer:\s*\Z", re.DOTALL)


class Turn(NamedTuple):
    """A prompt and its answer; the answer may be anything that JSON has."""

    prompt: Any
    answer: Any
    issuer: str = ""
    turn: int = 0
    """From 1 in a conversation that becomes several rows; 0 = the record is one row."""


def is_flare(values: Mapping[str, Any]) -> bool:
    """Whether a record has FLARE's keys, all or a part of them."""
    return bool({QUERY, CONVERSATION, REPORT} & set(values))


@dataclass
class Conversations:
    """Turns FLARE's records into prompts, in their order: a turn may need the answers of those before it."""

    _answers: dict[tuple[str, int], str] = field(default_factory=dict)
    """(dialogue, turn from 0) -> right answer."""

    def turns(self, values: Mapping[str, Any]) -> Iterator[Turn]:
        """The turns of one record. BadLine at the first that is not whole: the ones before it are good."""
        if CONVERSATION in values or REPORT in values:
            yield from _raw_turns(values)
            return
        for key in (QUERY, ANSWER):
            if key not in values:
                raise BadLine(f"no {key}")
        query, answer, dialogue = values[QUERY], values[ANSWER], str(values.get(DIALOGUE) or "")
        if isinstance(query, str):
            query = _PLACE.sub(lambda place: self._earlier(dialogue, int(place[1])), query)
        if dialogue and values.get(TURN) not in (None, ""):
            number = str(values[TURN]).removesuffix(".0")  # a table's column of numbers with gaps
            if not number.isdecimal():
                raise BadLine(f"{TURN} is no whole number from 0")
            if isinstance(answer, str):
                self._answers[dialogue, int(number)] = answer
        yield Turn(query, answer, f"conversation {dialogue}" if dialogue else "")

    def _earlier(self, dialogue: str, turn: int) -> str:
        try:
            return self._answers[dialogue, turn]
        except KeyError:
            raise BadLine(f"it needs the answer of turn {turn}, which is not above it in the file") from None


def _raw_turns(values: Mapping[str, Any]) -> Iterator[Turn]:
    report, conversation = values.get(REPORT), values.get(CONVERSATION)
    if not isinstance(report, dict):
        raise BadLine(f"no {REPORT}, an object")
    if not isinstance(conversation, list) or not conversation:
        raise BadLine(f"no {CONVERSATION}, a list of turns")
    context = report_text(report)
    name = values.get("id") if isinstance(values.get("id"), str) else ""
    found = _REPORT_ID.match(name or "")
    issuer = found["company"] if found else name or ""
    before = ""
    for number, part in enumerate(conversation, 1):
        part = part if isinstance(part, dict) else {}
        said = []
        for key in ("question", "expected_answer"):
            value = part.get(key)
            if not isinstance(value, str) or not value.strip():
                raise BadLine(f"turn {number} of {len(conversation)} has no {key}: the conversation ends before it")
            said.append(value.strip())
        question, answer = said
        asked = f"Conversations: {before}\nQuestion: {question}\nAnswer:"
        yield Turn(f"{CONVERSATION_WORDING}\nContext: {context}\n{asked}", answer, issuer, number)
        before += f"\nq{number - 1}: {question} {answer}"


def report_text(report: Mapping[str, Any]) -> str:
    """Text, table and text of a report, the table's cells between pipes as in FLARE's FinQA. A pipe inside a cell
    becomes a slash, so that no column moves.
    """
    parts = [report.get(key) or [] for key in ("pre_text", "table", "post_text")]
    if not all(isinstance(part, list) for part in parts) or not any(parts):
        raise BadLine(f"{REPORT} has no pre_text, table and post_text, which are lists")
    before, table, after = parts
    if not all(isinstance(row, list) for row in table):
        raise BadLine(f"the table of {REPORT} is not a list of rows")
    lines = ["|" + "|".join(str(cell).replace("|", "/") for cell in row) + "|" for row in table]
    return "\n".join(filter(None, (" ".join(map(str, before)), *lines, " ".join(map(str, after)))))


def reworded(task: str, prompt: str) -> str:
    """A sentiment prompt in FinLoRA's form as FLARE asks it; any other prompt as it is.

    >>> reworded("flare_fiqa", "Instruction: Which sentiment?\\nInput: Sales rose .\\nAnswer: ")[-27:]
    '\\nText: Sales rose .\\nAnswer:'
    """
    found = _FINLORA.match(prompt) if task in WORDING else None
    return f"{WORDING[task]}\nText: {found['text']}\nAnswer:" if found else prompt


# --- entities -------------------------------------------------------------------------------------


def reference_of(prompt: str, answer: str) -> str:
    """What entities are judged by: the words of the prompt's text, and under them their tags B-, I- and O.

    The answer names one entity a line, "name, TYPE", in the order of the text; each takes the next words that are its
    name. This gives the very tags of FLARE's `label`. Tags cannot hold an entity inside another: the first one named
    keeps its words. BadLine where a name is nowhere in the text.

    >>> print(reference_of("Which?\\nText: Ann Lee of Alba and Ann Lee .\\nAnswer:", "Ann Lee, PER\\nAlba, ORG"))
    Ann Lee of Alba and Ann Lee .
    B-PER I-PER O B-ORG O O O O
    """
    found = _TEXT.search(prompt)
    words = (found["text"] if found else "").split()
    if not words:
        raise BadLine("its prompt has no line Text:, whose entities could be judged")
    tags, place = ["O"] * len(words), 0
    for number, line in enumerate(filter(str.strip, answer.split("\n")), 1):
        name, comma, kind = line.strip().rpartition(", ")
        own = name.split()
        starts = [start for start in range(len(words)) if own and words[start : start + len(own)] == own]
        if not comma or not kind.isalpha() or not starts:
            raise BadLine(f"entity {number} of its answer is not in its text, or has no type behind a comma")
        start = next((start for start in starts if start >= place), None)
        if start is not None:
            place = start + len(own)
            tags[start:place] = [f"B-{kind}", *[f"I-{kind}"] * (len(own) - 1)]
    return f"{' '.join(words)}\n{' '.join(tags)}"
