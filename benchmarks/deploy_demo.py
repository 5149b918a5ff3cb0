"""`make deploy-demo`: one aggregator, three banks and a liar on loopback over mutual TLS, shown on the terminal as it
goes, and compared with a simulation.

    python -m benchmarks.deploy_demo [--data FOLDER] [--output FOLDER] [key=value …]

Each party has its own HOME, node key, policy and rows; the banks' rows are divided by desk, are synthetic, and have no
privacy budget. Five rounds, by the documented commands: in round 2 a bank is killed while it trains, and comes back; in
round 4 another refuses by its policy. A fourth bank is enrolled and lies in every round: a reply forged with a key that
is not the bank's, a claim of a billion billion rows, deltas of NaN. The twin is `simulate` with the same rows, names
and seeds and without the trouble.

What is asserted is certain: the first round has the same bytes as the twin's, each refusal and each rejected lie is
where it belongs, and `verify` computes the whole run again from the deltas that were kept and finds every signature and
hash as it should be. Scores on a few rows move by chance, so they are shown next to the twin's, and nothing depends on
them.

--data is a folder in FinLoRA's layout (default: the bundled sample); `key=value` go to every command that takes
overrides. Exit status 0 only if everything that is said here was seen. Every process that was started is ended, after
Ctrl-C too.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from benchmarks.demo_checks import complaints, show_scores
from benchmarks.demo_liar import LIAR, enrol_liar, lies
from benchmarks.demo_parties import RULE, Bank, Party, Running, end_all, say, until
from benchmarks.demo_setting import DESKS, KILLED, REFUSED, ROUNDS, fresh, share_out
from benchmarks.hostile_bank import HostileBank
from data.sample import FOLDER as SAMPLE
from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.deployment.flower_link import free_port
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, read_lines

ALLOWED, TIGHTER = 100, 1
"""Steps a round that bank-2 allows, and those on the day on which it refuses."""
WORK = (
    "model=smollm2-135m", "model.threads=1", f"num_server_rounds={ROUNDS}", "train.steps_per_round=3",
    "train.batch_rows=8",
    "train.holdout_max_rows=0", "train.warmup_steps=3", "dataset.max_rows_per_task=200", "evaluation.limit=16",
    "strategy.deadline_s=180",
    "strategy.weighting=equal", "strategy.keep_deltas=true",
)  # fmt: skip
"""The run, deployed and simulated: a 4-bit base (QLoRA is the default), little work, one thread for each of the parties
that share this machine.
"""


def set_up(aggregator: Party, banks: Sequence[Bank], liar: Path, port: int, words: Sequence[str]) -> dict[str, Running]:
    """From nothing to an aggregator and banks that are connected. Returns what runs."""
    aggregator.types("coordinator", "init", "--listen", "127.0.0.1", "--port", str(port))
    coordinator = aggregator.home / ".fedfinlora" / "coordinator"
    tries = [
        bank.starts(
            "bank", "init", "--name", bank.name, "--data", str(bank.home / "rows"), "--coordinator",
            f"127.0.0.1:{port}",
            "--ca", str(coordinator / "ca.crt"), "--budget-epsilon", "0", *words,
        )
        for bank in banks
    ]  # fmt: skip
    for bank, tried in zip(banks, tries, strict=True):
        bank.finishes(tried)
        aggregator.types("coordinator", "enroll", str(bank.folder / "node.key.pub"), "--name", bank.name)
        bank.types("bank", "accept", str(coordinator / "enrolled" / f"{bank.name}.crt"))
    enrol_liar(aggregator, liar)
    running = {"aggregator": aggregator.starts("coordinator", "start")}
    registered = coordinator / "banks.json"
    until("the banks are registered", lambda: registered.is_file() and len(read_json(registered)) > len(banks), running)
    running |= {bank.name: bank.starts("bank", "start") for bank in banks}
    return running


def follow_run(banks: Sequence[Bank], deployed: Path, running: dict[str, Running]) -> None:
    """What happens during the rounds. `running` holds the commands that must not end; the restarted bank takes the
    place of the killed one.
    """
    _, dying, refusing = banks
    until(f"bank-1 has begun round {KILLED}", lambda: "begun" in dying.outcomes(KILLED), running)
    count = dying.killed()
    del running[dying.name]
    say(
        (
            f"SIGKILL to all {count} processes, while it trains round {KILLED}; its history: "
            f"{', '.join(dying.outcomes(KILLED))}"
        ),
        dying.name,
    )
    running[dying.name] = dying.starts("bank", "start")
    say(f"starts again, with the same key; its request is lost, and round {KILLED} continues without it", dying.name)
    until(f"round {KILLED} is closed", lambda: len(read_lines(deployed / "rounds.jsonl")) >= KILLED, running)
    until(f"bank-2 has sent round {REFUSED - 1}", lambda: "sent" in refusing.outcomes(REFUSED - 1), running)
    say("needs its machine today: at most one step a round", refusing.name)
    refusing.allows(ALLOWED, TIGHTER)
    until("bank-2 refuses", lambda: f"refused policy-{RULE}" in refusing.outcomes(REFUSED), running)
    say(f"has refused round {REFUSED}, by the rule {RULE}; the round continues without it", refusing.name)
    refusing.allows(TIGHTER, ALLOWED)
    back = range(KILLED + 1, ROUNDS + 1)
    until("bank-1 is back", lambda: any("sent" in dying.outcomes(number) for number in back), running)
    say("is back: it has sent a round", dying.name)


def tell(data: Path, output: Path, overrides: Sequence[str]) -> list[str]:
    """The whole story. Returns what was not as it should be."""
    aggregator, simulation = Party("aggregator", output / "aggregator"), Party("simulation", output / "simulation")
    banks = [Bank(name, output / name) for name in DESKS]
    parties = [*banks, aggregator, simulation]
    port, liar = free_port(), output / LIAR
    lying: HostileBank | None = None
    try:
        say("Paths are shown from the project's folder, where each party types its commands, each in its own HOME.")
        tasks = f"[{','.join(share_out(data, output))}]"
        words = [*WORK, f"dataset.tasks={tasks}", f"evaluation.benchmarks={tasks}", *overrides]
        running = set_up(aggregator, banks, liar, port, words)
        lying = HostileBank(LIAR, liar, port, lies)
        words += ["dataset=jsonl", f'output_dir="{output}"', f'evaluation.answers_dir="{output / "answers"}"']
        roots = {party.name: f'dataset.root="{party.home / "rows"}"' for party in (aggregator, simulation)}
        twin = [
            "simulate",
            "--banks",
            str(len(banks)),
            *words,
            roots["simulation"],
            "run_name=simulated",
            "partition=by_path",
        ]
        running["the run"] = run = aggregator.starts(
            "coordinator", "run", *words, roots["aggregator"], "run_name=deployed"
        )
        follow_run(banks, output / "deployed", running)
        aggregator.finishes(run)
        aggregator.types("coordinator", "status")
        say("The same without trouble: the same rows, names and seeds.")
        simulation.finishes(simulation.starts(*twin))
        aggregator.types(
            "report", str(output / "deployed"), str(output / "simulated"), "--output", str(output / "report.html")
        )
        aggregator.types("compare", str(output / "simulated"), str(output / "deployed"))
        show_scores(output / "deployed", output / "simulated")
        wrong = complaints(output / "deployed", output / "simulated", banks)
        aggregator.types(
            "verify", str(output / "deployed"), "--ca", str(aggregator.home / ".fedfinlora" / "coordinator" / "ca.crt")
        )
        for bank in banks:
            bank.types("bank", "history")
    finally:
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(kind, signal.SIG_IGN)
        if lying is not None:
            lying.ends()
        say("ends every process that was started")
        end_all(parties)
    left = [party.name for party in parties if party.family()]
    return wrong + [f"no process left of {name}" for name in left]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Parse, tell, and say what it came to."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--data", type=Path, default=SAMPLE, metavar="FOLDER", help="FinLoRA's layout (default: the bundled sample)"
    )
    options.add_argument("--output", type=Path, default=PROJECT_ROOT / "outputs" / "deploy-demo", metavar="FOLDER")
    options.add_argument("overrides", nargs="*", metavar="key=value", help="for every command that takes overrides")
    chosen = options.parse_args()
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, _interrupt)
    output = chosen.output.expanduser().absolute()
    try:
        with fresh(output):
            wrong = tell(chosen.data.expanduser().absolute(), output, chosen.overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    for what in wrong:
        say(f"NOT SEEN: {what}")
    say(f"reports: {output / 'deployed' / 'report.html'}, and next to the simulation: {output / 'report.html'}")
    say("All was seen as expected." if not wrong else "Not all was seen.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
