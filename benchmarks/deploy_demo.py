"""`make deploy-demo`: one aggregator, three banks and a liar on loopback over mutual TLS, told on the terminal as it goes, and compared with a simulation.

    python -m benchmarks.deploy_demo [--data FOLDER] [--output FOLDER] [key=value …]

Each party has its own HOME, node key, policy and rows; the banks' rows are divided by desk, are synthetic, and have no privacy budget. Five rounds, by the documented commands: in round 2 a bank
is killed while it trains, and comes back; in round 4 another refuses by its policy. A fourth bank is enrolled and lies in every round: a reply forged with a key that is not the bank's, a claim of a billion
billion rows, deltas of NaN. The twin is `simulate` with the same rows, names and seeds and without the trouble.

What is asserted is certain: the first round has the same bytes as the twin's, each refusal and each rejected lie is where it belongs, and `verify` computes the whole run again from the deltas that were kept and
finds every signature and hash as it should be. Scores on a few rows move by chance, so they are shown beside the twin's, and nothing depends on them.

--data is a folder in FinLoRA's layout (default: the bundled sample); `key=value` go to every command that takes overrides. Exit status 0 only if everything
that is told here was seen. Every process that was started is ended, after Ctrl-C too.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message

from benchmarks.hostile_bank import FIGURES, HostileBank
from data.sample import FOLDER as SAMPLE
from data.sources.layout import find
from eval.metrics import headline_name
from fedfinlora.commands.simulate import free_port
from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.deployment.certificates import make_node_key, tls_key, write_private
from fedfinlora.deployment.history import read_history
from fedfinlora.deployment.reach import CERTIFICATE, TLS_KEY
from fedfinlora.errors import UserError
from fedfinlora.runfolder import read_json, read_lines, write_bytes
from fedfinlora.wire import TrainRequest

ROUNDS = 5
KILLED, REFUSED = 2, 4
"""Rounds in which bank-1 is killed, with time to be back in the last one, and bank-2 refuses."""
LIAR = "bank-3"
LIES = {1: "signature", 2: "malformed", 3: "not-finite"}
"""What comes of the liar's replies; in the later rounds it sends NaN again."""
MARK = ".deploy-demo"
"""Says that a folder is this demonstration's, and may be replaced. Locked while it runs."""
LONGEST_S = 900.0
"""Longest wait for anything: on a slow machine a round may take minutes."""
NOISE = re.compile(r"\s*evaluating \w+: ")
"""Lines of the progress display that are left out."""
RULE, ALLOWED, TIGHTER = "max_steps_per_round", 100, 1


class Desk(NamedTuple):
    """What a bank does for a living."""

    title: str
    tasks: tuple[str, ...]
    """Whose train files it holds."""


DESKS = {
    "bank-0": Desk("the sentiment desk", ("fpb", "fiqa", "tfns", "nwgi")),
    "bank-1": Desk("the news desk", ("headline", "ner")),
    "bank-2": Desk("the XBRL desk", ("xbrl_term", "formula", "xbrl_tags_extract", "xbrl_value_extract")),
}
"""Bank -> desk, named as `simulate` names its banks: every draw of a bank is seeded by its name."""
LONG = ("xbrl_tags_extract", "xbrl_value_extract")
"""Left out of the run: a prompt of 5,000 tokens takes a CPU minutes."""
WORK = (
    "model=smollm2-135m", "model.threads=1", f"num_server_rounds={ROUNDS}", "train.steps_per_round=3", "train.batch_rows=8",
    "train.holdout_max_rows=0", "train.warmup_steps=3", "dataset.max_rows_per_task=200", "evaluation.limit=16", "strategy.deadline_s=180",
    "strategy.weighting=equal", "strategy.keep_deltas=true",
)  # fmt: skip
"""The run, deployed and simulated: a 4-bit base (QLoRA is the default), little work, one thread for each of the parties that share this machine."""

_started = time.monotonic()
_terminal = threading.Lock()


def say(text: str, who: str = "") -> None:
    """Print lines with the minutes and seconds since the start; paths are shown from the project's folder."""
    minutes, seconds = divmod(int(time.monotonic() - _started), 60)
    with _terminal:
        for line in text.splitlines() or [""]:
            shown = line.replace(f"{PROJECT_ROOT}/", "").replace(str(PROJECT_ROOT), ".")
            print(f"{minutes:02}:{seconds:02} {who:<10} {shown}".rstrip(), flush=True)


class Running(NamedTuple):
    """A command that was typed."""

    process: subprocess.Popen[str]
    teller: threading.Thread


class Party:
    """Somebody with a HOME of its own and the commands that it types."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        home.mkdir(parents=True)

    def starts(self, *words: str) -> Running:
        """Type a command; what it says is told as it comes."""
        say(f"$ {shlex.join(['python', '-m', 'fedfinlora', *words])}", self.name)
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        environment = {
            **os.environ,
            "HOME": str(self.home),
            "XDG_CACHE_HOME": cache,
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            "COLUMNS": "160",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "fedfinlora", *words], cwd=PROJECT_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        teller = threading.Thread(target=self._tell, args=(process,), daemon=True)
        teller.start()
        return Running(process, teller)

    def types(self, *words: str) -> None:
        """Type a command and wait for its end. UserError unless it succeeds."""
        self.finishes(self.starts(*words))

    def finishes(self, running: Running) -> None:
        """Wait for the end of a command. UserError unless it succeeds."""
        status = running.process.wait(timeout=LONGEST_S)
        running.teller.join(timeout=10)
        if status:
            raise UserError(f"{self.name}: the command ended with status {status}.")

    def family(self) -> list[psutil.Process]:
        """Every process in this HOME, those started first first: parents before their children."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.create_time(), process))
            except (psutil.Error, OSError):
                continue
        return [process for _, process in sorted(found, key=lambda pair: pair[0])]

    def killed(self) -> int:
        """SIGKILL the whole family: nobody can tidy up. Returns how many processes it had."""
        family = self.family()
        for member in family:
            with_no_regret(member.kill)
        psutil.wait_procs(family, timeout=10)
        return len(family)

    def _tell(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            if not NOISE.match(line):
                say(f"  {line.rstrip()}", self.name)


class Bank(Party):
    """A bank: its rows, its policy and its history."""

    @property
    def folder(self) -> Path:
        """Where `bank init` puts everything."""
        return self.home / ".fedfinlora" / "bank"

    def outcomes(self, round_number: int) -> list[str]:
        """What the bank's history says of a round, e.g. ["begun", "refused policy-max_steps_per_round"]."""
        lines = read_history(self.folder / "state" / "history" / f"{self.name}.jsonl")
        return [f"{line['outcome']} {line['code']}".strip() for line in lines if line["round"] == round_number]

    def allows(self, before: int, after: int) -> None:
        """Edit bank.yaml, as its owner would; it is read at every request."""
        file = self.folder / "bank.yaml"
        text = file.read_text("utf-8")
        write_bytes(file, text.replace(f"{RULE}: {before}", f"{RULE}: {after}").encode())
        say(f"edits {file}: {RULE}: {before} -> {after}", self.name)


def with_no_regret(signal_sent: Callable[[], None]) -> None:
    """Send a signal to a process that may have ended."""
    try:
        signal_sent()
    except psutil.Error:
        return


def end_all(parties: Sequence[Party]) -> None:
    """End every process of these parties, politely first."""
    family = [member for party in parties for member in party.family()]
    for member in family:
        with_no_regret(member.terminate)
    psutil.wait_procs(family, timeout=20)
    for party in parties:
        party.killed()


def until(what: str, condition: Callable[[], bool], alive: Mapping[str, Running]) -> None:
    """Wait for a condition, looking often: what follows may be in a hurry. UserError when a process ends that should run, or after LONGEST_S."""
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        for name, running in alive.items():
            if running.process.poll() is not None and not condition():
                raise UserError(f"{name} ended with status {running.process.returncode}, before this: {what}.")
        if time.monotonic() > deadline:
            raise UserError(f"Not seen within {LONGEST_S:g} s: {what}.")
        time.sleep(0.02)


# --- before the run ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def fresh(output: Path) -> Iterator[None]:
    """An empty folder, locked. UserError if it holds something else than an earlier demonstration, or one that still runs."""
    mark = output / MARK
    if output.exists() and any(output.iterdir()):
        if not mark.is_file():
            raise UserError(f"{output} is not the folder of a deploy-demo, so it is not replaced. Choose another --output.")
        with open(mark) as lock:
            _lock(lock.fileno(), output)
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    with open(mark, "w") as lock:
        _lock(lock.fileno(), output)
        yield


def _lock(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"A deploy-demo runs in {output}. Choose another --output.") from error


def share_out(data: Path, output: Path) -> list[str]:
    """Link each desk's train files into its bank's `rows`, the test files into the aggregator's, and all of them into `rows` of the twin.

    Returns the run's tasks. UserError where a desk has no rows.
    """
    if not data.is_dir():
        raise UserError(f"--data {data} is not a folder.")
    run_tasks: list[str] = []
    for name, desk in DESKS.items():
        found = find(data, "finlora", "train", desk.tasks)
        files, missing = found.files, found.missing
        tasks = [task for task in desk.tasks if task not in missing and task not in LONG]
        if not tasks:
            raise UserError(f"{data} has no rows for {desk.title}: {next(iter(missing.values()))}.")
        _link([file.path for file in files], output / name / "rows")
        _link([output / name / "rows"], output / "simulation" / "rows", name)
        say(f"{desk.title}: {', '.join(file.name for file in files)}", name)
        run_tasks += tasks
    tests = find(data, "finlora", "test", run_tasks).files
    if not tests:
        raise UserError(f"{data} has no test rows of {', '.join(run_tasks)} to score.")
    _link([file.path for file in tests], output / "aggregator" / "rows" / "test")
    _link([output / "aggregator" / "rows" / "test"], output / "simulation" / "rows", "test")
    say(f"test rows only: {', '.join(file.name for file in tests)}", "aggregator")
    return run_tasks


def _link(files: Sequence[Path], folder: Path, name: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / (name or file.name)).symlink_to(file.absolute())


def lies(bank: HostileBank, message: Message, request: TrainRequest) -> None:
    """What the liar answers."""
    if request.round == 1:
        said = "a reply that another key has signed"
        bank.sends(message, bank.content(request), key=ec.generate_private_key(ec.SECP384R1()))
    elif request.round == 2:
        said = "a claim of 1,000,000,000,000,000,000 rows"
        bank.sends(message, bank.content(request, figures=replace(FIGURES, rows=10**18)))
    else:
        said = "a delta of NaN"
        bank.sends(message, bank.content(request, np.full(request.adapter.size, np.nan, np.float32)))
    say(f"answers round {request.round}: {said}", bank.name)


def enrol_liar(aggregator: Party, folder: Path) -> None:
    """A key, a certificate over it, and no rows: a liar needs no `bank init`."""
    coordinator = aggregator.home / ".fedfinlora" / "coordinator"
    folder.mkdir(parents=True)
    make_node_key(folder / "node.key", LIAR)
    aggregator.types("coordinator", "enroll", str(folder / "node.key.pub"), "--name", LIAR)
    write_private(folder / TLS_KEY, tls_key(folder / "node.key"))
    for source, name in ((coordinator / "ca.crt", "ca.crt"), (coordinator / "enrolled" / f"{LIAR}.crt", CERTIFICATE)):
        shutil.copy(source, folder / name)


# --- the run ----------------------------------------------------------------------------------------------------------------------------


def set_up(aggregator: Party, banks: Sequence[Bank], liar: Path, port: int, words: Sequence[str]) -> dict[str, Running]:
    """From nothing to an aggregator and banks that are connected. Returns what runs."""
    aggregator.types("coordinator", "init", "--listen", "127.0.0.1", "--port", str(port))
    coordinator = aggregator.home / ".fedfinlora" / "coordinator"
    tries = [
        bank.starts(
            "bank", "init", "--name", bank.name, "--data", str(bank.home / "rows"), "--coordinator", f"127.0.0.1:{port}",
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
    """What happens while the rounds go on. `running` holds the commands that must not end; the restarted bank takes the place of the killed one."""
    _, dying, refusing = banks
    until(f"bank-1 has begun round {KILLED}", lambda: "begun" in dying.outcomes(KILLED), running)
    count = dying.killed()
    del running[dying.name]
    say(
        f"SIGKILL to all {count} processes, while it trains round {KILLED}; its history: {', '.join(dying.outcomes(KILLED))}",
        dying.name,
    )
    running[dying.name] = dying.starts("bank", "start")
    say(f"starts again, with the same key; what it was asked is lost, and round {KILLED} goes on without it", dying.name)
    until(f"round {KILLED} is closed", lambda: len(read_lines(deployed / "rounds.jsonl")) >= KILLED, running)
    until(f"bank-2 has sent round {REFUSED - 1}", lambda: "sent" in refusing.outcomes(REFUSED - 1), running)
    say("needs its machine today: at most one step a round", refusing.name)
    refusing.allows(ALLOWED, TIGHTER)
    until("bank-2 refuses", lambda: f"refused policy-{RULE}" in refusing.outcomes(REFUSED), running)
    say(f"has refused round {REFUSED}, by the rule {RULE}; the round goes on without it", refusing.name)
    refusing.allows(TIGHTER, ALLOWED)
    back = range(KILLED + 1, ROUNDS + 1)
    until("bank-1 is back", lambda: any("sent" in dying.outcomes(number) for number in back), running)
    say("is back: it has sent a round", dying.name)


# --- after the run ----------------------------------------------------------------------------------------------------------------------


def complaints(deployed: Path, simulated: Path, banks: Sequence[Bank]) -> list[str]:
    """What of the story is not in the files; [] if all of it is. Says what was seen."""
    lines = {line["round"]: line for line in read_lines(deployed / "rounds.jsonl")}
    twin = read_lines(simulated / "rounds.jsonl")
    told = {number: {bank["bank"]: bank["code"] for bank in line["banks"]} for number, line in lines.items()}
    codes = {number: {name: code for name, code in by_bank.items() if name != LIAR} for number, by_bank in told.items()}
    lied = [by_bank.get(LIAR, "") for by_bank in told.values()]
    _, dying, refusing = banks
    refusals = [
        (number, name) for number, by_bank in codes.items() for name, code in by_bank.items() if code.startswith("policy-")
    ]
    sent = [number for number in lines if "sent" in dying.outcomes(number)]
    same = lines[1]["adapter_sha256"] == twin[0]["adapter_sha256"]
    for number, by_bank in told.items():
        say(f"round {number}: " + ", ".join(f"{name} {code or 'ok'}" for name, code in by_bank.items()))
    say(f"adapter after round 1: {lines[1]['adapter_sha256'][:16]} deployed, {twin[0]['adapter_sha256'][:16]} simulated")
    seen = {
        f"{ROUNDS} rounds": list(lines) == list(range(1, ROUNDS + 1)),
        "all honest banks in round 1": not any(codes[1].values()),
        "every lie rejected by its own check": lied == [LIES.get(number, LIES[3]) for number in told],
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
    """Print base and final scores side by side, and which deployed score is not in the 95 % interval of the simulated one."""
    scores = read_json(deployed / "result.json")["scores"]
    twin = read_json(simulated / "result.json")["scores"]["final"]
    outside = 0
    say(f"{'final scores, %':<22} rows   base  deployed  simulated  95 % interval")
    for key, metrics in twin.items():
        name = headline_name(metrics, "honest")
        low, high = metrics[f"{name}_ci95"]
        base, score = scores["base"][key][name], scores["final"][key][name]
        inside = low <= score <= high
        cells = f"{100 * base:6.1f}{100 * score:10.1f}{100 * metrics[name]:11.1f}  {100 * low:.1f} to {100 * high:.1f}"
        say(f"{key:<10} {name:<12}{metrics['n']:>5} {cells}{'' if inside else '  OUTSIDE'}")
        outside += not inside
    say(
        f"{outside} of {len(twin)} outside. The two runs differ by the rounds that banks missed, and few rows are scored: nothing depends on these figures."
    )


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
        running["the run"] = run = aggregator.starts("coordinator", "run", *words, roots["aggregator"], "run_name=deployed")
        follow_run(banks, output / "deployed", running)
        aggregator.finishes(run)
        aggregator.types("coordinator", "status")
        say("The same without trouble: the same rows, names and seeds.")
        simulation.finishes(simulation.starts(*twin))
        aggregator.types("report", str(output / "deployed"), str(output / "simulated"), "--output", str(output / "report.html"))
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
    say(f"reports: {output / 'deployed' / 'report.html'}, and beside the simulation: {output / 'report.html'}")
    say("All was seen as told." if not wrong else "Not all was seen.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
