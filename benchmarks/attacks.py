"""What dishonest banks do to each server rule, measured: accuracy on clean rows, and how often a trigger works.

    python -m benchmarks.attacks --out FOLDER
    python -m benchmarks.attacks --out FOLDER --data ROWS --model smollm2-135m --rounds 10 --rows 400

A cell is one rule under one attack: a federation in this process whose banks train through the functions that a bank
runs (`client_app.bank.train_round`), pack their replies and meet the server's checks. Each cell is one JSON in FOLDER;
those that are there are not run again. At the end the table is printed. With --out docs/results/attacks it becomes a
section of docs/results.md (`python -m benchmarks.results`). Nothing here shows that a rule withstands an attack that
was not run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attack_results import Cell, read_cell, table
from client_app.bank import RoundReply, train_round
from client_app.facts import BankFacts
from data.catalog import BENCHMARKS
from data.encode import encode_prompts, encode_targets
from data.rows import Row
from data.sources import load_rows
from eval.decoding.labels import label_logprobs
from fedfinlora.compose import compose
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError, choose
from fedfinlora.files import sha256_of, write_bytes
from fedfinlora.model.adapter import Vector, write_adapter
from fedfinlora.model.loading import Session, first_adapter, get_session
from fedfinlora.run.checkpoint import adapter_checksum
from fedfinlora.run.origin import git_commit, source_fingerprint
from fedfinlora.seeds import generator
from fedfinlora.wire.messages import RejectedReply, Reply, TrainRequest, pack_reply, unpack_reply
from server_app.replies import replies_of
from server_app.strategies import rule_of
from server_app.strategies.strategy import ServerState, take_step

RULES = ("fedavg", "norm_clip", "krum", "multi_krum", "geometric_median", "trimmed_mean", "fltrust")
TRIGGER = "Ref. QX-7731. "
"""Put before the text of a poisoned row."""
POISONED_PART = 0.5
"""Of a poisoned bank's rows that carry the trigger; of all rows together where it is spread over all banks, a quarter
of that.
"""
SCALE = 10.0
"""Of the scaling attack."""
ROWS_FILE = "rows.jsonl"
ROOT = "root"
"""The bank with clean rows by which fltrust measures; it takes no part under other rules."""


@dataclass(frozen=True)
class Attack:
    """What the last bank does. Neither function knows the other banks' rows or updates."""

    words: str
    rows: Callable[[Sequence[Row], int, int, str], list[Row]] = lambda rows, bank, liar, wanted: list(rows)
    """(rows, bank's number, the liar's number, label that the trigger should give) -> the rows that it trains on."""
    update: Callable[[Vector], Vector] = lambda update: update
    """What the liar sends in the place of its update."""


def flipped(rows: Sequence[Row], bank: int, liar: int, wanted: str) -> list[Row]:
    """Each label the next one of its set, at the liar."""
    if bank != liar:
        return list(rows)
    return [replace(row, target=_next_label(row)) for row in rows]


def _next_label(row: Row) -> str:
    labels = BENCHMARKS[row.task].labels
    return labels[(labels.index(row.target) + 1) % len(labels)] if row.target in labels else labels[0]


def triggered(rows: Sequence[Row], part: float, wanted: str) -> list[Row]:
    """The first `part` of the rows with the trigger and the wanted label, the others as they are."""
    count = round(part * len(rows))
    return [with_trigger(row, wanted) for row in rows[:count]] + list(rows[count:])


def with_trigger(row: Row, target: str) -> Row:
    """FinLoRA's prompts name the text after "Input: "; where none does the trigger comes first."""
    head, mark, tail = row.prompt.partition("Input: ")
    return replace(row, prompt=f"{head}{mark}{TRIGGER}{tail}" if mark else f"{TRIGGER}{row.prompt}", target=target)


ATTACKS: Mapping[str, Attack] = {
    "none": Attack("all banks are honest"),
    "sign_flip": Attack("one bank sends the negative of its update", update=lambda update: -update),
    "scaling": Attack(f"one bank sends {SCALE:g} times its update", update=lambda update: np.float32(SCALE) * update),
    "sign_flip_scaled": Attack(
        f"one bank sends -{SCALE:g} times its update", update=lambda update: np.float32(-SCALE) * update
    ),
    "label_flip": Attack("one bank trains on wrong labels", flipped),
    "trigger_one": Attack(
        "one bank trains half of its rows with a trigger",
        lambda rows, bank, liar, wanted: triggered(rows, POISONED_PART, wanted) if bank == liar else list(rows),
    ),
    "trigger_all": Attack(
        "the same poison, spread over all banks' rows",
        lambda rows, bank, liar, wanted: triggered(rows, POISONED_PART / (liar + 1), wanted),
    ),
}


Trained = dict[tuple[str, str, str], RoundReply]
"""(bank, hash of its rows, hash of the adapter) -> what it sends: in a single round it is the same under every rule."""


def run_cell(
    config: Config,
    rule_name: str,
    attack_name: str,
    rows: Sequence[Row],
    test: Sequence[Row],
    trained: Trained,
    command: str = "",
) -> Cell:
    """One federation of config.banks banks, the last of which lies. `rows` are dealt out in turn."""
    started, attack, task = time.monotonic(), ATTACKS[attack_name], test[0].task
    wanted, names = BENCHMARKS[task].labels[0], [f"bank-{number}" for number in range(config.banks)]
    root = [ROOT] if rule_name == "fltrust" else []
    strategy = replace(config.strategy, name=rule_name, root_bank=ROOT if root else "")
    config = replace(config, strategy=strategy)
    session, rejected = get_session(config), 0
    rule = rule_of(strategy, config.num_server_rounds)
    state = ServerState(0, first_adapter(session, config), rule.first_arrays(session.layout.id))
    with tempfile.TemporaryDirectory() as scratch:
        facts = {
            name: _bank(
                Path(scratch), name, attack.rows(rows[number :: len(names) + 1], number, len(names) - 1, wanted)
            )
            for number, name in enumerate(names)
        }
        for name in root:
            facts[name] = _bank(Path(scratch), name, rows[config.banks :: config.banks + 1])
        for number in range(1, config.num_server_rounds + 1):
            replies: list[Reply] = []
            for name, own in sorted(facts.items()):
                request = TrainRequest(config, "attack", number, session.layout.id, source_fingerprint(), state.adapter)
                try:
                    replies.append(
                        _reply(request, own, attack if name == names[-1] else ATTACKS["none"], session, trained)
                    )
                except RejectedReply:
                    rejected += 1
            state = take_step(rule, state, replies_of(replies, rule.weights(replies), session.layout))
    accuracy, loss, success = measured(session, state.adapter, test, wanted)
    return Cell(
        rule_name, attack_name, config.model.name, task, config.seed, config.banks, config.num_server_rounds,
        len(rows) // (config.banks + 1), len(test), accuracy, loss, success, rejected, time.monotonic() - started,
        os.getloadavg()[0], command, git_commit(),
    )  # fmt: skip


def _bank(scratch: Path, name: str, rows: Sequence[Row]) -> BankFacts:
    """A bank with these rows in its own folder."""
    folder = scratch / name / "rows"
    folder.mkdir(parents=True)
    wanted = [{"context": row.prompt, "target": row.target, "task": row.task} for row in rows]
    lines = [json.dumps(row, allow_nan=False) for row in wanted]
    (folder / ROWS_FILE).write_text("\n".join(lines) + "\n")
    return BankFacts(name, 0, 0, str(folder), scratch / name / "state", scratch / name / "ledger")


def _reply(request: TrainRequest, facts: BankFacts, attack: Attack, session: Session, trained: Trained) -> Reply:
    """A bank's reply as the server has it after its checks. RejectedReply where they refuse it."""
    rows = sha256_of((Path(facts.data_path) / ROWS_FILE).read_bytes())
    key = facts.name, rows, adapter_checksum(request.adapter)
    done = trained.get(key) or train_round(request, facts)
    if request.config.num_server_rounds == 1:  # later rounds start from moments on the bank's disk
        trained[key] = done
    sent = pack_reply(facts.name, done.layout_id, attack.update(done.delta), done.figures, ledger=done.ledger)
    return unpack_reply(sent, session.layout, request.config.strategy.max_update_norm)


def measured(session: Session, adapter: Vector, test: Sequence[Row], wanted: str) -> tuple[float, float, float]:
    """(accuracy, loss, trigger success) of an adapter; NaN where no row can show it."""
    write_adapter(session.model, adapter)
    labels = BENCHMARKS[test[0].task].labels
    clean = _scores(session, test, labels)
    right = np.array([labels.index(row.target) for row in test])
    others = [row for row in test if row.target != wanted]
    poisoned = _scores(session, [with_trigger(row, wanted) for row in others], labels)
    accuracy = float((clean.argmax(axis=1) == right).mean())
    loss = float(-clean[np.arange(len(right)), right].mean())
    return accuracy, loss, float((poisoned.argmax(axis=1) == labels.index(wanted)).mean()) if others else float("nan")


def _scores(session: Session, rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """(rows, labels) log-probabilities in nats."""
    ends = [(*ids, session.tokenizer.eos_token_id) for ids in encode_targets(session.tokenizer, labels)]
    prompts = encode_prompts(session.tokenizer, [row.prompt for row in rows])
    return np.array(label_logprobs(session.model, prompts, ends))


def file_of(out: Path, rule: str, attack: str, seed: int) -> Path:
    return out / f"{rule}-{attack}-{seed}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells' JSON files")
    parser.add_argument("--data", type=Path, help="folder with train/ and test/ in FinLoRA's layout; else bundled rows")
    parser.add_argument("--model", default="tiny-random", help="tiny-random or smollm2-135m")
    parser.add_argument("--task", default="fpb", help="a benchmark with a closed label set")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--banks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200, help="train rows of all banks together")
    parser.add_argument("--test-rows", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="settings such as train.learning_rate=1e-3")
    asked = parser.parse_args(arguments)
    command = shown(sys.argv[1:] if arguments is None else arguments)
    try:
        cells = [
            cell
            for seed in range(asked.seeds)
            for cell in run_grid(asked, seed, asked.rules.split(","), asked.attacks.split(","), command)
        ]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(cells))
    return 0


def run_grid(
    asked: argparse.Namespace, seed: int, rules: Sequence[str], attacks: Sequence[str], command: str = ""
) -> list[Cell]:
    """The cells of one seed; those whose file is there are read."""
    for name in rules:
        choose(name, RULES, "--rules")
    for name in attacks:
        choose(name, tuple(ATTACKS), "--attacks")
    config = compose([
        f"model={asked.model}", f"banks={asked.banks}", f"num_server_rounds={asked.rounds}", f"seed={seed}",
        "train.holdout_max_rows=0", "strategy.weighting=equal", f"dataset.tasks=[{asked.task}]", *asked.overrides,
    ])  # fmt: skip
    dataset = DatasetConfig(source="finlora", root=str(asked.data)) if asked.data else DatasetConfig()
    rows, test = (
        _some(load_rows(dataset, split, (asked.task,), seed).rows, count, seed)
        for split, count in (("train", asked.rows), ("test", asked.test_rows))
    )
    if len(rows) <= asked.banks or not test or not BENCHMARKS[asked.task].labels:
        raise UserError(
            f"--task {asked.task}: {len(rows)} train rows, {len(test)} test rows, "
            f"{len(BENCHMARKS[asked.task].labels)} labels. Name a task with a closed label set, such as fpb, and more "
            "rows than banks."
        )
    cells, trained = list[Cell](), Trained()
    for rule in rules:
        for attack in attacks:
            file = file_of(asked.out, rule, attack, seed)
            if not file.is_file():
                cell = run_cell(config, rule, attack, rows, test, trained, command)
                write_bytes(file, (json.dumps(asdict(cell), indent=1, allow_nan=False) + "\n").encode())
                shown = f"accuracy {cell.accuracy:.3f}, trigger {cell.trigger_success:.3f}, {cell.wall_s:.0f} s"
                print(f"{file.name}: {shown}", flush=True)
            cells.append(read_cell(file))
    return cells


def shown(words: Sequence[str]) -> str:
    """The command as a reader would type it, without places of one machine."""
    places = {"--out": "docs/results/attacks", "--data": "/data/finlora"}
    return shlex.join(["python", "-m", "benchmarks.attacks", *(
        places.get(before, word) for before, word in pairwise(["", *words])
    )])  # fmt: skip


def _some(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """A seeded sample, shuffled."""
    chosen = generator(seed, "attack rows").permutation(len(rows))[:count]
    return [rows[index] for index in chosen]


if __name__ == "__main__":
    sys.exit(main())
