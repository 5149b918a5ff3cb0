"""What a deployment does when something breaks or lies: the table behind docs/reliability.md and the tests that play
it.

    python -m tests.helpers.reliability > docs/reliability.md

`says` holds words that the operator really gets to read: the test that is named takes them from here and looks for
them.
"""

from __future__ import annotations

from dataclasses import dataclass

FAULTS, DEPLOYMENT, WIRE, POLICY, WORKER, LYING, PRIVATE = (
    f"tests/{name}.py"
    for name in (
        "deployment/test_faults",
        "deployment/test_deployment",
        "wire/test_wire",
        "deployment/test_policy",
        "client_app/test_worker",
        "deployment/test_hostile_server",
        "client_app/test_private_bank",
    )
)
DEADLINE_S = 25
LATE = f"late: No reply within strategy.deadline_s={DEADLINE_S} s."
THROUGH = "test_a_run_through_everything_ends_in_the_same_bytes"
HOSTILE = "test_killed_late_and_hostile_banks_cost_their_own_answers_only"
SLOW = "test_a_large_adapter_passes_a_slow_line_in_pieces_that_are_sent_once"
OUTSIDE = "test_a_refused_bank_learns_the_reason"
CODE = "test_code_that_a_bank_has_not_installed_does_not_run_there"
CROWD = "test_a_run_survives_a_thousand_idle_connections_and_a_trickling_bank"
SECOND = "test_a_second_coordinator_of_a_home_is_refused_and_says_who_is_there"
SIZE = "test_a_request_of_two_gigabytes_is_refused_before_it_is_read"


TWO, CUT, GROWTH = (
    f"tests/{name}.py" for name in ("deployment/test_two_at_once", "run/test_cut_files", "run/test_growth")
)


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    fault: str
    does: str
    """What the federation does."""
    says: str
    """Words that the operator reads; "" where nothing is said."""
    where: str
    """Where they stand."""
    kept: str
    file: str
    test: str


OUTCOMES = {
    "slow": Outcome(
        "A bank's link is slow, 1 Mbit/s", "The round takes as long as the bytes need: for 19 MB, the adapter of Llama "
                                           "3.1 8B at rank 8, 315 seconds were measured for both ways, with training "
                                           "of a second. "
        "It travels in pieces of 512 KiB; after a cut no more than the two that were on their way are sent again, and "
        "the result has the same bytes. The test has 3 MB, 2.8 Mbit/s and a bank that waits 6 seconds for an answer, "
        "not 30.",
        "", "", "The pieces that have come.", FAULTS, SLOW,
    ),
    "cut": Outcome(
        "A bank's link is cut for a minute", ("The bank tries again until it is back and then sends what it has; "
                                             "nothing is trained twice, the result has the same bytes. After four "
                                             "minutes the round continues without the bank."),
        "retrying in", "the bank's supernode.log", "The answer that could not be sent.", FAULTS, THROUGH,
    ),
    "request lost": Outcome(
        "A bank's link breaks while a request comes to it", "The bank gets it again when its link is back.", "", "",
        "Everything.", FAULTS, HOSTILE,
    ),
    "server killed": Outcome(
        "The server's process is killed in a round", ("`coordinator run` ends with status 1; `resume=` does the round "
                                                     "again; the result has the same bytes."),
        "The server's process has died. Resume with: python -m fedfinlora coordinator run resume=", "coordinator run",
        "All closed rounds, in checkpoints.", FAULTS, THROUGH,
    ),
    "disk full": Outcome(
        "The coordinator's disk is full", ("The run ends with status 1, no file is half-written; with space again "
                                          "`resume=` does the round again; the result has the same bytes."),
        "No space left on device", "coordinator run", "All closed rounds.", FAULTS, THROUGH,
    ),
    "superlink killed": Outcome(
        "The SuperLink is killed in a round", "The server's process ends with it, `coordinator start` and `coordinator "
                                              "run` end with status 1. Started again it has "
        "its database, and the banks come back by themselves; `resume=` does the round again; the result has the same "
        "bytes.",
        "The coordinator is not running: start it again. Resume with: python -m fedfinlora coordinator run resume=",
        "coordinator run",
        "Enrolled banks, all closed rounds.", FAULTS, THROUGH,
    ),
    "bank killed": Outcome(
        "A bank is killed while it trains", "The round continues without it when it starts again, or at "
                                            "`strategy.deadline_s`, or after four minutes. Started again it is the "
                                            "same bank, at once, and takes part in the "
        "next round.", ("away: The bank has started again and lost what it was asked., or away: The bank is not "
                       "connected."), "rounds.jsonl, coordinator run",
        "Key, history and ledger. The broken round stays booked: its noise was drawn.", FAULTS, HOSTILE,
    ),
    "bank late": Outcome(
        "A bank answers after the deadline",
        "Its late answer is not looked at; the bank takes part in the next round.", LATE,
        "rounds.jsonl, coordinator run", "The other answers.", FAULTS, HOSTILE,
    ),
    "twice": Outcome("A bank answers twice", "The SuperLink takes the first answer only.", "", "", "The first answer.",
        FAULTS, HOSTILE),
    "older": Outcome(
        "A bank sends a message of an older round again", "The SuperLink does not take it: every answer belongs to one "
                                                          "request. The same numbers in a new answer are "
        "an answer like any other, within the limits on norm and weight.", "", "", "Everything.", FAULTS, HOSTILE,
    ),
    "nan": Outcome("A bank sends NaN", "Its answer is rejected, the round continues.",
        "not-finite: 2560 of 2560 numbers are NaN or infinite.", "rounds.jsonl, coordinator run", "The other answers.",
        FAULTS, HOSTILE),
    "norm": Outcome("A bank sends a huge delta", "Rejected.",
        "norm: The delta's norm is 1000, more than strategy.max_update_norm=100.", "rounds.jsonl, coordinator run",
        "The other answers.", FAULTS, HOSTILE),
    "layout": Outcome("A bank sends another layout", "Rejected.", "layout: The delta has another layout than",
        "rounds.jsonl, coordinator run", "The other answers.", FAULTS, HOSTILE),
    "name": Outcome("A bank signs with another bank's name", "Rejected.", "malformed: The reply names another bank.",
        "rounds.jsonl, coordinator run", "The other bank's own answer.", FAULTS, HOSTILE),
    "no message": Outcome("A bank sends bytes that are no message", "Rejected.", "unreadable: What came is no reply.",
        "rounds.jsonl, coordinator run", "The other answers.", FAULTS, HOSTILE),
    "stall": Outcome(
        "A bank announces an answer and never sends it", ("The others are accepted meanwhile, the round closes at the "
                                                         "deadline."),
        LATE, "rounds.jsonl, coordinator run", "The other answers.", FAULTS, HOSTILE,
    ),
    "large": Outcome(
        "A bank sends an answer of 64 MiB, to fill the coordinator's disk",
        ("The SuperLink takes as many bytes as the request had and a mebibyte more, and refuses the rest (403). The "
        "round closes without it; the others' answers are taken meanwhile."),
        LATE, "rounds.jsonl, coordinator run", "The other answers.", FAULTS, HOSTILE,
    ),
    "crowd": Outcome(
        "A thousand connections say nothing during a round, and a bank sends its answer at 0.1 byte a second",
        ("The run takes as long as without them; the slow answer counts as late at the deadline, and its connection "
        "ends after five minutes."),
        LATE, "rounds.jsonl, coordinator run", "The other answers.", FAULTS, CROWD,
    ),
    "two coordinators": Outcome(
        "`coordinator start` a second time on the same folder", "The second is refused and touches nothing.",
        "is in use: process", "coordinator start", "Everything.", FAULTS, SECOND,
    ),
    "two gigabytes": Outcome("Anybody sends the SuperLink one request of 2 GB",
        "Refused by its announced length; without one, the connection ends after 16 MiB.", "413", "HTTP status",
        "Everything.", FAULTS, SIZE),
    "clock behind": Outcome("A bank's clock is 4 minutes behind", "Nothing: it works.", "", "", "Everything.", FAULTS,
        OUTSIDE),
    "clock far behind": Outcome("A bank's clock is 6 minutes behind", "It is not let in.",
        "minutes behind the coordinator's", "bank start", "Everything.", FAULTS, OUTSIDE),
    "clock ahead": Outcome("A bank's clock is a minute ahead",
        "It is not let in: Flower takes 5 seconds ahead at most.", "minutes ahead of the coordinator's", "bank start",
        "Everything.", FAULTS, OUTSIDE),
    "authority": Outcome("A bank has another authority's ca.crt, or meets an impostor", "It sends nothing and ends.",
        "Do not continue: it may be somebody else.", "bank start", "Everything.", FAULTS, OUTSIDE),
    "plain": Outcome("A bank is led to a server without TLS", "It sends nothing and ends.", "does not speak TLS",
        "bank start", "Everything.", FAULTS, OUTSIDE),
    "plain client": Outcome("Somebody speaks plain HTTP to the coordinator", "The connection ends without an answer.",
        "", "", "Everything.", FAULTS, OUTSIDE),
    "unregistered": Outcome("An unknown key", "It is not let in.", "has not enrolled", "bank start", "Everything.",
        DEPLOYMENT, "test_a_federation_from_nothing"),
    "revoked": Outcome("A revoked bank", "Its connection ends, and it is not let in again.", "has revoked it",
        "bank start", "Its own history.", DEPLOYMENT, "test_a_federation_from_nothing"),
    "policy": Outcome(
        "The server asks for a model, a method, privacy, steps, rows, code or an hour outside the bank's policy",
        "The bank refuses before a model is loaded; the run continues with the others.",
        "policy-max_rank", "rounds.jsonl, bank history", "The other answers.", DEPLOYMENT,
        "test_a_federation_from_nothing",
    ),
    "other code": Outcome(
        "The server sends the banks other code than they have installed",
        ("A bank's gate refuses the app bundle before anything of it is unpacked, and nothing of it runs; the run "
        "continues with the banks whose policy lists its hash."),
        "client_app/app.py differs from what is installed here", "bank history; `policy-code` in rounds.jsonl",
        "Everything.", FAULTS, CODE,
    ),
    "server nan": Outcome("The server sends an adapter with NaN, or not as declared", "The bank refuses.", "adapter",
        "rounds.jsonl", "The bank's state.", WIRE, "test_an_adapter_that_is_not_as_declared_is_refused"),
    "server path": Outcome("The server sends a path as a run's name",
        "The bank refuses; nothing is written outside its folder.", "config", "rounds.jsonl", "The bank's state.",
        WIRE, "test_a_run_name_that_leaves_its_folder_is_refused"),
    "server lies": Outcome(
        ("The server lies: it asks for noise that it can compute, a large delta, a round without privacy, the rows of "
        "one person, shows a ledger line that never was"),
        "The bank refuses and works on; nothing leaves that is not in its ledger, and its budget is never exceeded. "
        "All that depends on rows, ledger or budget is one code. "
        "[The whole table](../tests/helpers/hostile_server.py) is played over a real deployment.",
        "privacy", "rounds.jsonl; the reason in `bank history`", "The ledger; the other answers.", LYING,
        "test_a_lying_server_gets_nothing_and_the_deployment_continues",
    ),
    "two servers": Outcome(
        "A running run is resumed or overwritten a second time",
        "The second is refused and touches nothing; after kill -9 of the first it resumes, to the same bytes.",
        "is in use", "simulate, centralized, coordinator run", "Everything.", TWO,
        "test_a_second_resume_waits_for_the_end_of_the_first",
    ),
    "cut file": Outcome(
        "A file of a run's folder is cut at a random byte", ("`resume` and `report` do without it or make it again, or "
                                                            "name it and end."),
        "damaged", "simulate, coordinator run, report", "All other files.", CUT,
        "test_a_file_that_was_cut_is_named_or_made_again_by_resume",
    ),
    "round 10,000": Outcome(
        "A run goes beyond 9,999 rounds, and is stopped on the way",
        "It resumes to the same bytes; memory, open files, checkpoints and adapters stay as they are.",
        "", "", "[What is kept](deployment.md#what-is-kept-and-how-long).", GROWTH,
        "test_a_run_that_is_resumed_on_the_way_gives_the_same_bytes",
    ),
    "two runs": Outcome("Two runs train on the same rows at once",
        "Each round waits for the ledger; both together stay within the budget.", "above privacy.budget_epsilon",
        "bank history", "The ledger.", PRIVATE,
        "test_two_runs_on_the_same_rows_at_once_stay_within_the_budget_together"),
    "killed booked": Outcome("A bank is killed between booking and training, or between training and reply",
        "The round stays booked: what could have left is in the ledger.", "", "", "The ledger.", PRIVATE,
        "test_a_bank_killed_on_the_way_has_booked_all_that_could_have_left"),
    "ledger disk": Outcome("A bank's ledger lies on a full, broken or read-only disk",
        "Nothing is trained and nothing leaves, open rounds included.", "nothing private may leave", "bank history",
        "The ledger.", PRIVATE, "test_a_disk_that_takes_no_line"),
    "ledger rolled back": Outcome("A bank's ledger is replaced by an older copy",
        ("The server's requests bring the newest head that it has seen: the bank refuses until its privacy officer has "
        "reconciled."), "rolled back or cut", "bank history", "The history, from which it is reconciled.", PRIVATE,
        "test_a_rolled_back_ledger_is_refused_by_the_head_the_server_saw"),
    "clock back": Outcome("A bank's clock is set back", "What was spent stays spent: no time decides it.", "", "",
        "The ledger.", PRIVATE, "test_a_clock_that_is_set_back_changes_nothing"),
    "bank start killed": Outcome("`bank start` is killed with SIGKILL",
        "Its worker, which has rows in memory, ends at once, also in the middle of its training.", "", "",
        "The ledger.", WORKER, "test_it_ends_at_once_with_the_bank_that_was_killed"),
    "worker killed": Outcome("A bank's worker dies at work",
        "The round fails at this bank and is not done again: it may be booked. The next one has a new worker.",
        "internal", "rounds.jsonl (`privacy` in a private round), worker.log", "The ledger.", WORKER,
        "test_one_that_dies_at_work_is_an_error_and_not_done_again"),
}  # fmt: skip
"""Fault -> what comes of it."""

HEAD = """\
# When something breaks, or lies

Every row is played by the test that it names, in a deployment of real processes over TLS wherever a process, a link or a disk is what breaks. The page is written by
`python -m tests.helpers.reliability > docs/reliability.md` from the table that the tests use, and a test compares the two.

| fault | what the federation does | what the operator reads | what is kept | test |
|---|---|---|---|---|
"""

TAIL = """
## Set a deadline

With `strategy.deadline_s=0`, the default, a round waits for every bank. The SuperLink sees after four minutes that a bank has gone, and the round continues without it; but a bank
whose process hangs, or that announces an answer and never sends it, is there, and would be waited for for ever. Give a deployment `strategy.deadline_s` well above the
slowest bank's round, and `strategy.quorum`: seconds of training, and for a line of so many Mbit/s twice the adapter's megabytes times 8, divided by them, and a tenth more. Llama 3.1 8B at rank 8
(19 MB) over 1 Mbit/s is 330 seconds and the training. Below 0.3 Mbit/s a piece takes longer than Flower waits for its answer.

## What remains

- `superlink.log`, `supernode.log` and `state/worker.log` begin again at 32 MiB, with their last 32 MiB in `superlink.log.1` and so on: no more than 64 MiB each, and what comes in five seconds. The SuperLink logs no line for each request.
- A bank that lies within the limits (a finite delta of acceptable norm, rows that it does not have) is averaged. `strategy.weighting=declared` or `equal` takes its say on the weight away.
- Flower marks a killed run as failed only after it has missed the server's signs of life; until then `coordinator status` calls it running. It delays no one.
- Flower's signed time may be 5 minutes old, but only 5 seconds ahead: keep the banks' clocks on NTP.
"""


def page() -> str:
    """docs/reliability.md."""
    lines = []
    for row in OUTCOMES.values():
        says = f"`{row.says}` ({row.where})" if row.says else "nothing"
        test = f"[{row.test.removeprefix('test_').replace('_', ' ')}](../{row.file})"
        lines.append(f"| {row.fault} | {row.does} | {says} | {row.kept} | {test} |\n")
    return HEAD + "".join(lines) + TAIL


if __name__ == "__main__":
    print(page(), end="")
