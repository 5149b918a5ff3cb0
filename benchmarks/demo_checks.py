"""What `benchmarks.deploy_demo` asserts of the files of its run, and the scores that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.demo_liar import LIAR, LIES
from benchmarks.demo_parties import RULE, Bank, say
from benchmarks.demo_setting import KILLED, REFUSED, ROUNDS
from eval.metrics.averages import headline_name
from fedfinlora.files import read_lines
from fedfinlora.run.records import read_result


def complaints(deployed: Path, simulated: Path, banks: Sequence[Bank]) -> list[str]:
    """What of the story is not in the files; [] if all of it is. Says what was seen."""
    lines = {line["round"]: line for line in read_lines(deployed / "rounds.jsonl")}
    twin = read_lines(simulated / "rounds.jsonl")
    reported = {number: {bank["bank"]: bank["code"] for bank in line["banks"]} for number, line in lines.items()}
    codes = {
        number: {name: code for name, code in by_bank.items() if name != LIAR} for number, by_bank in reported.items()
    }
    lied = [by_bank.get(LIAR, "") for by_bank in reported.values()]
    _, dying, refusing = banks
    refusals = [
        (number, name)
        for number, by_bank in codes.items()
        for name, code in by_bank.items()
        if code.startswith("policy-")
    ]
    sent = [number for number in lines if "sent" in dying.outcomes(number)]
    same = lines[1]["adapter_sha256"] == twin[0]["adapter_sha256"]
    for number, by_bank in reported.items():
        say(f"round {number}: " + ", ".join(f"{name} {code or 'ok'}" for name, code in by_bank.items()))
    say(
        f"adapter after round 1: {lines[1]['adapter_sha256'][:16]} deployed, {twin[0]['adapter_sha256'][:16]} simulated"
    )
    seen = {
        f"{ROUNDS} rounds": list(lines) == list(range(1, ROUNDS + 1)),
        "all honest banks in round 1": not any(codes[1].values()),
        "every lie rejected by its own check": lied == [LIES.get(number, LIES[3]) for number in reported],
        "exactly one refusal, bank-2's": refusals == [(REFUSED, refusing.name)]
        and codes[REFUSED][refusing.name] == f"policy-{RULE}",
        "the refusal in bank-2's history": f"refused policy-{RULE}" in refusing.outcomes(REFUSED),
        f"round {KILLED} begun and not sent by bank-1": dying.outcomes(KILLED) in (["begun"], ["begun", "booked"])
        and bool(codes[KILLED][dying.name]),
        "all honest banks in the last round": not any(codes[ROUNDS].values()) and ROUNDS in sent,
        "the same adapter as the simulation's after round 1": same,
    }
    return [what for what, true in seen.items() if not true]


def show_scores(deployed: Path, simulated: Path) -> None:
    """Print base and final scores side by side, and which deployed score is not in the 95 % interval of the simulated
    one.
    """
    scores, twin = read_result(deployed).scores, read_result(simulated).scores["final"]
    outside = 0
    say(f"{'final scores, %':<22} rows   base  deployed  simulated  95 % interval")
    for key, metrics in twin.items():
        name = headline_name(metrics, "strict")
        base, score, other = (found[key].value(name) or 0.0 for found in (scores["base"], scores["final"], twin))
        low, high = (bound or 0.0 for bound in metrics.bounds(name))
        inside = low <= score <= high
        cells = f"{100 * base:6.1f}{100 * score:10.1f}{100 * other:11.1f}  {100 * low:.1f} to {100 * high:.1f}"
        say(f"{key:<10} {name:<12}{metrics.n:>5} {cells}{'' if inside else '  OUTSIDE'}")
        outside += not inside
    say(
        f"{outside} of {len(twin)} outside. The two runs differ by the rounds that banks missed, and few rows are "
        "scored: nothing depends on these figures."
    )
