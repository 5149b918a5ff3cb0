"""Compare a bank's signed requests and answers with its history, line by line, in both directions.

| in the record | in the history |
|---|---|
| a request and an update | `begun`, `booked` where the answer names a line of the ledger, `sent` |
| a request and an error | `refused` or `failed`, with the same code |
| an answer to a request that could not be read | `refused`, round 0, with the same code |
| a request without an answer: the bank was killed | any outcome |
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedfinlora.errors import plural
from fedfinlora.provenance.bank_record import Answered, Asked
from fedfinlora.provenance.findings import Findings
from fedfinlora.provenance.folder import file_bytes
from fedfinlora.wire.reasons import SAFE_REASONS

Event = Mapping[str, Any]
"""A line of the history."""
Round = tuple[str, int]
"""(run's id, round)."""
ENDS = ("sent", "refused", "failed")
OUTCOMES = ("begun", "booked", *ENDS)
UNREADABLE = {"unsigned", "config", "layout", "adapter", "disk"}
"""Codes of requests that are refused before they are read."""
BROKEN = {"internal", "memory", "disk"}
"""Codes of answers that may have no line in the history: the disk did not take it, or the process ended."""
MISSING = "lines of the history are missing or changed"
NOT_SIGNED = (
    "rows, sampling_rate, noise_multiplier, noise_steps, unit, mechanism, left_out, bytes_sent, "
    "bytes_received, detail, time"
)
"""Fields of the history that no signed statement has."""


@dataclass
class _Reported:
    answers: list[Answered] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    """Hashes of its requests without an answer."""
    modes: set[str] = field(default_factory=set)
    """Privacy modes of its requests' configurations; "" = one cannot be read."""
    lines: list[Event] = field(default_factory=list)
    older: int = 0
    """How many of the first lines are older than the record, so it need not have their requests."""

    def of(self, *outcomes: str) -> list[Event]:
        return [line for line in self.lines if line["outcome"] in outcomes]


def check_answers(
    file: Path,
    signed: Path,
    events: Sequence[Event],
    older: int,
    asked: Mapping[str, Asked],
    answered: Iterable[Answered],
    last: str,
    ledger: Sequence[Mapping[str, Any]],
    found: Findings,
) -> None:
    """Compare the lines of the history `file` with the record in the folder `signed`.

    The first `older` lines are older than the record. `asked` has each request by its hash, `last` is that of the
    record's last line ("" = it is no request), `ledger` has the ledger's sound lines.
    """
    rounds: dict[Round, _Reported] = defaultdict(_Reported)
    for place, event in enumerate(events):
        if event["round"]:
            rounds[round_of(event)].lines.append(event)
            rounds[round_of(event)].older += place < older
    unread = _sorted_answers(signed, asked, answered, rounds, found)
    for one, reported in sorted(rounds.items()):
        if reported.modes:  # else the record does not have the request, which is named already
            unread += _round(file, one, reported, last, ledger, found)
    _unread(file, events, older, Counter(unread), found)
    numbers = Counter(line["ledger_number"] for line in events if line["outcome"] == "booked")
    for number in sorted((number for number, count in numbers.items() if count > 1), key=str):
        found.add(file, f"it has line {number} of the ledger as booked {plural(numbers[number], 'time')}")
    if events:
        found.checked.append(f"{file}: not signed: {NOT_SIGNED}")


def _sorted_answers(
    signed: Path,
    asked: Mapping[str, Asked],
    answered: Iterable[Answered],
    rounds: dict[Round, _Reported],
    found: Findings,
) -> list[str]:
    """Put requests and answers into their rounds. Returns the codes of answers to requests not on record."""
    unread, count = [], Counter[str]()
    for answer in answered:
        head = answer.head
        request, code = str(head.get("request")), str(head.get("code", ""))
        if request not in asked or code == "unsigned":  # a repeated request is answered as unsigned
            unread += [code] if head.get("status") != "ok" else []
            continue
        count[request] += 1
        rounds[asked[request].run_and_round].answers.append(answer)
        if any(head.get(name) != asked[request].asked.get(name) for name in ("run", "round", "attempt", "bank")):
            found.add(
                signed,
                f"an answer to round {head.get('round')} of {head.get('run')} is not to the request that it names",
            )
    for request, one in asked.items():
        run, number = one.run_and_round
        reported = rounds[run, number]
        reported.modes.add(_mode_of(signed / f"{one.asked['config-sha256']}.json"))
        if count[request] > 1:
            found.add(signed, f"round {number} of {run} has {plural(count[request], 'answer')} to one request")
        if not count[request]:
            reported.open.append(request)
            found.not_proven(signed, f"round {number} of {run} was broken off: its request has no answer")
    return unread


def _round(
    file: Path, one: Round, reported: _Reported, last: str, ledger: Sequence[Mapping[str, Any]], found: Findings
) -> list[str]:
    """Compare one round. Returns the codes of answers that may be to requests that were not read."""
    name, unread = f"round {one[1]} of {one[0]}", []
    rest = reported.of(*ENDS)
    broken = len(reported.of("begun")) - len(rest)
    for answer in reported.answers:
        code = str(answer.head.get("code", ""))
        line = next((line for line in reversed(rest) if _same(answer, line)), None)
        if line is not None:
            rest.remove(line)
            if answer.head.get("status") == "ok":
                _update(file, name, reported, answer, line, ledger, found)
        elif code in UNREADABLE:
            unread.append(code)
        elif code in (*BROKEN, "privacy") and broken > 0:
            broken -= 1
            found.not_proven(file, f"{name} was answered with {code}, and the history does not say how it ended")
        else:
            found.add(file, f"{name} is missing, and the record has the answer ({code or 'an update'}): {MISSING}")
    forgiven = sum(line["outcome"] in ENDS for line in reported.lines[: reported.older])
    for line in rest[forgiven:]:
        what = f"{name} was {line['outcome']}, and the record does not have the answer"
        if not reported.open:
            found.add(file, f"{what}: lines of the history were added or changed")
        elif reported.open.pop(0) == last:
            found.add(file, f"{what}: the record was cut off at its end, or the bank was killed in that moment")
        else:
            found.checked.append(
                f"{file}: {what}; later lines follow its request, so the bank was killed in that moment"
            )
    if len(reported.of("begun")) < len(reported.of("sent")):
        found.add(file, f"{name} was sent and not begun: {MISSING}")
    for line in reported.lines[reported.older :]:
        if "" not in reported.modes and line.get("privacy") not in reported.modes:
            found.add(
                file,
                f"{name} has privacy {line.get('privacy')}, and its request had {' or '.join(sorted(reported.modes))}",
            )
    return unread


def _same(answer: Answered, line: Event) -> bool:
    """Whether a line of the history agrees with an answer."""
    head, outcome = answer.head, line["outcome"]
    if head.get("status") == "ok":
        return outcome == "sent" and _ledger_line(line) == (head.get("ledger-number"), head.get("ledger-hash") or "")
    code, noted = str(head.get("code", "")), str(line.get("code", ""))
    noted = noted if noted in SAFE_REASONS else "internal"
    refused = noted.startswith("policy-") or noted == "privacy"
    # The bank's history calls what it did not foresee internal; its answer says so of memory.
    return outcome == ("refused" if refused else "failed") and (
        code == noted or (code, noted) == ("memory", "internal")
    )


def _update(
    file: Path,
    name: str,
    reported: _Reported,
    answer: Answered,
    line: Event,
    ledger: Sequence[Mapping[str, Any]],
    found: Findings,
) -> None:
    """An update's signed figures are those of its lines in the history."""
    figures = answer.answered.get("figures") or {}
    clear = {key for key, value in figures.items() if value and value != "nan"}
    differs = [
        what
        for what, is_same in {
            "policy_sha256": (line.get("policy_sha256") or "") == (answer.head.get("policy-sha256") or ""),
            "steps": "steps" not in figures or line.get("steps") == figures["steps"],
            "figures": set(line.get("figures") or ()) == clear,
            "epsilon_spent": _epsilon_fits(line, figures.get("epsilon_spent", "nan"), ledger),
        }.items()
        if not is_same
    ]
    if differs:
        found.add(file, f"{name} was sent, and its {', '.join(differs)} differ from what was signed")
    if "ledger-number" not in answer.head:
        return
    booked = [other for other in reported.of("booked") if _ledger_line(other) == _ledger_line(line)]
    if len(booked) != 1:
        found.add(file, f"{name} was sent, and it was booked {plural(len(booked), 'time')}: {MISSING}")
    elif booked[0].get("epsilon_spent") != line.get("epsilon_spent"):
        found.add(file, f"{name} was booked with another epsilon_spent than it was sent with")


def _epsilon_fits(line: Event, signed: Any, ledger: Sequence[Mapping[str, Any]]) -> bool:
    """Whether epsilon in the history fits the signed one.

    The history has the most that a row has spent; what is signed counts every line of the ledger for each row. So the
    history's is never larger, and no smaller where the same rows were in all lines.
    """
    noted, reported = line.get("epsilon_spent"), float(signed)
    numbers = {other["hash"]: other["number"] for other in ledger}
    lines = ledger[: numbers.get(str(line.get("ledger_hash")), 0)]
    same_rows = len({other["cohort"] for other in lines if other["bank"] == lines[-1]["bank"]}) == 1
    if noted is None or not math.isfinite(reported):
        return (noted is None and not math.isfinite(reported)) or (
            noted is not None and reported == math.inf and not same_rows
        )
    if not isinstance(noted, int | float):
        return False
    return noted <= reported * (1 + 1e-6) and (not same_rows or noted >= reported * (1 - 1e-6))


def _unread(file: Path, events: Sequence[Event], older: int, answers: Counter[str], found: Findings) -> None:
    """Lines of round 0 have the codes of the answers to no request on record."""
    ever = Counter(_code(event) for event in events if not event["round"])
    here = Counter(_code(event) for event in events[older:] if not event["round"])
    for code, count in sorted((answers - ever).items()):
        what = f"{plural(count, 'answer')} ({code}) to requests that were not read are missing"
        if code in BROKEN:
            found.not_proven(file, f"{what}: the bank could not write them down, or {MISSING}")
        else:
            found.add(file, f"{what}: {MISSING}")
    for code, count in sorted((here - answers).items()):
        what = f"{plural(count, 'refusal')} ({code}) of requests that could not be read: no answer in the record"
        if code in UNREADABLE:
            found.not_proven(file, f"{what}: anyone could have added them")
        else:
            found.add(file, f"{what}, and the code is none of such a request")
    if both := (here & answers).total():
        found.checked.append(
            f"{file}: {plural(both, 'request')} could not be read; the refusals that the bank signed are in the record"
        )
    for event in events[older:]:
        if not event["round"] and event["outcome"] != "refused":
            found.add(file, f"a line of no round is {event['outcome']}, and only a refusal can be")


def _code(event: Event) -> str:
    return str(event.get("code", ""))


def round_of(event: Event) -> Round:
    """The round that a line of the history is of."""
    return str(event["run"]), int(event["round"])


def _ledger_line(event: Event) -> tuple[Any, str]:
    return event.get("ledger_number"), str(event.get("ledger_hash") or "")


def _mode_of(config: Path) -> str:
    """ "" for a configuration that cannot be read, which is named elsewhere."""
    try:
        return str(json.loads(file_bytes(config))["privacy"]["mode"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
