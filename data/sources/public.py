"""From the columns of a public set to FinLoRA's prompt form: one small function for each set of columns.

A mapping takes one record and returns a Pair, or raises Unusable with the reason. The prompts are FinLoRA's own forms;
what it did to the sets beyond that is only partly published (`data.hub` lists the differences).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from data.catalog import BENCHMARKS
from data.sources.flare import COLUMNS as FLARE_COLUMNS
from data.sources.flare import Conversations
from data.sources.records import BadLine

FINER_ROWS, FINER_ENTITIES, FINER_SEED = 10_000, 4, 42
"""FiNER-139 has 1.1 million sentences; FinLoRA takes the first 10,000 rows of four entities after a shuffle, and so
does this.
"""


class Pair(NamedTuple):
    """A prompt in FinLoRA's form, its answer, and the filer where the set names one."""

    prompt: str
    target: str
    issuer: str = ""


class Unusable(Exception):
    """Why a set, or one record of it, gives no rows."""


SENTIMENT = ("negative", "neutral", "positive")
SENTIMENT_7 = BENCHMARKS["nwgi"].labels
FPB_CODES = dict(enumerate(SENTIMENT))
TFNS_CODES = {0: "negative", 1: "positive", 2: "neutral"}
"""The set's own words for them: bearish, bullish, neutral."""
FIQA_NEUTRAL = 0.1
"""FiQA scores run from -1 to 1; within plus or minus this they count as neutral (FinGPT's rule)."""

Record = Mapping[str, Any]


def instruction_prompt(instruction: str, text: str) -> str:
    """FinLoRA's form of every short task."""
    return f"Instruction: {instruction}\nInput: {text}\nAnswer: "


def sentiment_prompt(kind: str, labels: Sequence[str], text: str) -> str:
    """`kind` is news or tweet."""
    return instruction_prompt(
        f"What is the sentiment of this {kind}? Please choose an answer from {{{'/'.join(labels)}}}.", text.strip()
    )


def _ready(record: Record) -> Pair:
    return Pair(_text(record, "context"), _text(record, "target"))


def _instruction(record: Record) -> Pair:
    return Pair(
        instruction_prompt(_text(record, "instruction"), _text(record, "input").strip()),
        _text(record, "output").strip(),
    )


def _phrasebank(record: Record) -> Pair:
    return Pair(
        sentiment_prompt("news", SENTIMENT, _text(record, "sentence")), _label(record["label"], SENTIMENT, FPB_CODES)
    )


def _finben_news(record: Record) -> Pair:
    return Pair(sentiment_prompt("news", SENTIMENT, _text(record, "text")), _label(record["answer"], SENTIMENT))


def _fiqa(record: Record) -> Pair:
    score = record.get("sentiment_score", record.get("score"))
    if not isinstance(score, int | float) or not -1 <= score <= 1:
        raise Unusable("the score is not a number from -1 to 1")
    label = "neutral" if -FIQA_NEUTRAL <= score < FIQA_NEUTRAL else "negative" if score < 0 else "positive"
    kind = "tweet" if record.get("format", record.get("type")) == "post" else "news"
    return Pair(sentiment_prompt(kind, SENTIMENT, _text(record, "sentence")), label)


def _tweets(record: Record) -> Pair:
    return Pair(
        sentiment_prompt("tweet", SENTIMENT, _text(record, "text")), _label(record["label"], SENTIMENT, TFNS_CODES)
    )


def _gpt_news(record: Record) -> Pair:
    return Pair(sentiment_prompt("news", SENTIMENT_7, _text(record, "news")), _label(record["label"], SENTIMENT_7))


def _finben_gpt_news(record: Record) -> Pair:
    return Pair(sentiment_prompt("news", SENTIMENT_7, _text(record, "text")), _label(record["answer"], SENTIMENT_7))


def _financebench(record: Record) -> Pair:
    pages = "\n".join(
        f"Page {page['evidence_page_num']}:\n{page.get('evidence_text_full_page') or page['evidence_text']}"
        for page in record["evidence"]
    )
    prompt = (
        "Answer the following question very briefly using scanned text from pages. No explanation needed. "
        f"Question: {_text(record, 'question')}\nDocument Pages Context:\n{pages}\n\nAnswer:"
    )
    return Pair(prompt, _text(record, "answer"), str(record.get("company") or ""))


class _Mapping(NamedTuple):
    columns: frozenset[str]
    """What a set must have at least for the mapping to apply."""
    make: Callable[[Record], Pair]


def flare_pairs(dataset: Any) -> Iterator[Pair | str]:
    """The rows of a set in FLARE's form; of a conversation in their order, which the answers of earlier turns need."""
    conversations = Conversations()
    for record in dataset:
        try:
            for turn in conversations.turns(record):
                made = {"query": turn.prompt, "answer": turn.answer}
                yield Pair(_text(made, "query"), _text(made, "answer"), turn.issuer)
        except (BadLine, Unusable) as reason:
            yield str(reason)


_READY = _Mapping(frozenset({"context", "target"}), _ready)
_INSTRUCTION = _Mapping(frozenset({"instruction", "input", "output"}), _instruction)
MAPPINGS: dict[str, tuple[_Mapping, ...]] = {
    "fpb": (
        _Mapping(frozenset({"sentence", "label"}), _phrasebank),
        _Mapping(frozenset({"text", "answer"}), _finben_news),
    ),
    "fiqa": (
        _Mapping(frozenset({"sentence", "sentiment_score", "format"}), _fiqa),
        _Mapping(frozenset({"sentence", "score", "type"}), _fiqa),
    ),
    "tfns": (_Mapping(frozenset({"text", "label"}), _tweets),),
    "nwgi": (
        _Mapping(frozenset({"news", "label"}), _gpt_news),
        _Mapping(frozenset({"text", "answer"}), _finben_gpt_news),
    ),
    "financebench": (_Mapping(frozenset({"question", "answer", "evidence"}), _financebench),),
}
"""Task -> mappings tried in order, before the two that serve every task: FinLoRA's own columns and FinGPT's instruction
triples.
"""


def pairs(task: str, dataset: Any) -> Iterator[Pair | str]:
    """A Pair for each record of a `datasets.Dataset`, or the reason why there is none. Raises Unusable for a set of
    other columns.
    """
    columns = set(dataset.column_names)
    if task == "xbrl_finer" and {"tokens", "ner_tags"} <= columns:
        yield from islice(_finer_pairs(dataset.shuffle(seed=FINER_SEED), _tag_names(dataset)), FINER_ROWS)
        return
    if BENCHMARKS[task].group == "flare" and columns >= FLARE_COLUMNS:
        yield from flare_pairs(dataset)
        return
    mapping = next((each for each in (*MAPPINGS.get(task, ()), _READY, _INSTRUCTION) if each.columns <= columns), None)
    if mapping is None:
        raise Unusable(f"no mapping to FinLoRA's prompts knows its columns ({', '.join(sorted(columns))})")
    for record in dataset:
        try:
            yield mapping.make(record)
        except Unusable as reason:
            yield str(reason)
        except (KeyError, TypeError, AttributeError) as error:
            yield f"not of the expected shape ({type(error).__name__})"


def _tag_names(dataset: Any) -> list[str]:
    """Tag names in the order of their codes, e.g. ["O", "B-Revenues", …]; where the records spell tags out, those that
    occur.
    """
    feature = dataset.features["ner_tags"]
    element = getattr(feature, "feature", feature)
    if hasattr(element, "names"):
        return list(element.names)
    if element.dtype != "string":
        raise Unusable("its tags are numbers without names")
    return sorted({tag for tags in dataset["ner_tags"] for tag in tags})


def _finer_pairs(records: Any, names: Sequence[str]) -> Iterator[Pair]:
    """Four tagged entities a prompt, each with its sentence, after the list of all tags. A last group of fewer is
    dropped.
    """
    options = ",".join(sorted({name[2:] for name in names if name.startswith("B-")}))
    group: list[tuple[str, str, str]] = []
    for record in records:
        tags = [names[tag] if isinstance(tag, int) else tag for tag in record["ner_tags"]]
        group += [(entity, " ".join(record["tokens"]), tag) for entity, tag in tagged_entities(record["tokens"], tags)]
        while len(group) >= FINER_ENTITIES:
            asked, group = group[:FINER_ENTITIES], group[FINER_ENTITIES:]
            yield Pair(_finer_prompt(options, asked), ",".join(tag for _, _, tag in asked))


def _finer_prompt(options: str, asked: Sequence[tuple[str, str, str]]) -> str:
    """FinLoRA's wording to the letter, misspelling included: a model trained on its rows has seen just this."""
    questions = "".join(
        f'{number}. What is best tag for entity "{entity}" in sentence: "{sentence}?"\n'
        for number, (entity, sentence, _) in enumerate(asked, start=1)
    )
    return (
        f"You are XBRL expert.  Here is a list of US GAAP tags options: ,{options}. Answer the following {len(asked)} "
        f"independent questions by providing only  {len(asked)} US GAAP tags answers in the order of the questions. "
        f"Each answer must be saperated by a comma (,).  Provide nothing else. \n{questions}Output US GAAP tags:"
    )


def tagged_entities(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
    """(entity, tag) of each IOB2 span, e.g. ["$", "3.5", "million"], ["O", "B-Revenues", "O"] -> [("3.5",
    "Revenues")].
    """
    entities: list[tuple[list[str], str]] = []
    open_tag = ""
    for token, tag in zip(tokens, tags, strict=True):
        if tag.startswith("B-"):
            open_tag = tag[2:]
            entities.append(([token], open_tag))
        elif tag.startswith("I-") and tag[2:] == open_tag:
            entities[-1][0].append(token)
        else:
            open_tag = ""
    return [(" ".join(words), tag) for words, tag in entities]


def _text(record: Record, key: str) -> str:
    value = record[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"{key} is empty or not text")
    return value


def _label(value: Any, labels: Sequence[str], codes: Mapping[int, str] | None = None) -> str:
    """The label that a code or a word means."""
    if isinstance(value, int) and codes is not None:
        value = codes.get(value)
    label = value.strip().lower() if isinstance(value, str) else ""
    if label not in labels:
        raise Unusable(f"the label is not one of {', '.join(labels)}")
    return label
