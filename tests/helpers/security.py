"""Who can try what against a deployment, and what comes of it: the table behind docs/security.md and the tests that
play it.

    python -m tests.helpers.security > docs/security.md

Each row names its test, which tests/project/test_security.py looks for; a test that plays several attempts names them all. Add
a row with its test, never without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FAULTS, DEPLOYMENT, LYING, GATE, POLICY, WIRE, DOOR, BINDING, CERTIFICATES, PRIVATE, WORKER = (
    f"tests/{name}.py"
    for name in ("deployment/test_faults", "deployment/test_deployment", "deployment/test_hostile_server", "deployment/test_gate", "deployment/test_policy", "wire/test_wire", "deployment/test_door", "deployment/test_binding", "deployment/test_certificates", "client_app/test_private_bank", "client_app/test_worker")
)  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One row: what somebody can try, what happens, and the test that does it (file, and name of the function)."""

    tries: str
    happens: str
    file: str
    test: str


DRIFT_AND_FROZEN = "tests/provenance/test_verify_drift_and_frozen.py"
HOSTILE = "test_killed_late_and_hostile_banks_cost_their_own_answers_only"
OUTSIDE = "test_a_refused_bank_learns_the_reason"
MODES = "tests/commands/test_run_modes.py"
ROUNDS, PLAN, GUARDED = (
    f"tests/{name}.py" for name in ("server_app/test_rounds", "deployment/test_plan", "server_app/test_guarded_grid")
)
SIGNATURES, VERIFY, LIES, CHAIN, RELEASE = (
    f"tests/{name}.py"
    for name in (
        "provenance/test_signatures",
        "provenance/test_verify",
        "provenance/test_verify_lies",
        "provenance/test_verify_chain",
        "provenance/test_release",
    )
)

ATTACKERS: Mapping[str, tuple[Attempt, ...]] = {
    "A stranger who reaches the coordinator's port": (
        Attempt(
            ("asks for every path that Flower serves, without a certificate, with another authority's, or with one "
             "that "
            "has ended"),
            "No connection: TLS ends before a byte of HTTP is read.", DOOR,
            "test_every_path_that_flower_serves_is_shut_to_a_stranger",
        ),
        Attempt(
            "has a certificate of the authority for an enrolled bank's name, and another key",
            "401 on every path: the key is what counts.", DOOR,
            "test_a_key_that_is_not_enrolled_is_refused_on_every_path",
        ),
        Attempt(
            "opens a thousand connections and says nothing",
            "An address has 32 at a time before it has shown a certificate, for 10 seconds; banks continue.", DOOR,
            "test_a_thousand_idle_connections_disturb_no_bank",
        ),
        Attempt(
            "opens a thousand connections again and again during a round",
            "The run takes as long as without them.", FAULTS,
            "test_a_run_survives_a_thousand_idle_connections_and_a_trickling_bank",
        ),
        Attempt("speaks plain HTTP", "The connection ends without an answer.", FAULTS, OUTSIDE),
        Attempt(
            "plays the coordinator to a bank, with another authority's certificate or without TLS",
            "The bank sends nothing and ends.", FAULTS, OUTSIDE
        ),
    ),
    "An enrolled bank": (
        Attempt(
            "sends an honest product in factors that spoil their mean, (B Q)(Q^-1 A), or an update near 0 that "
            "FLTrust would lengthen",
            "With a robust rule nothing changes: it decides and steps on the product. Mean rules are open to it.",
            "tests/server_app/test_robust_rules.py", "test_factors_that_a_liar_chooses_do_not_spoil_the_step",
        ),
        Attempt(
            "announces a rank that no run can give it, to stop the start", "It is named and left out; the others go on.",
            "tests/server_app/test_rounds.py", "test_a_bank_with_an_impossible_rank_is_rejected",
        ),
        Attempt(
            "asks for Control and Runtime paths, to start or stop runs and to take the server's task",
            "404: the public address serves ten Fleet paths and /health.", DOOR,
            "test_an_enrolled_bank_finds_the_fleet_interface_and_nothing_else",
        ),
        Attempt(
            "pushes a reply as another bank, with the right id of that bank's request",
            "403: a node pushes replies of its own only.", BINDING,
            "test_a_node_cannot_reply_for_another_even_if_it_knows_the_request",
        ),
        Attempt("confirms, and so deletes, another bank's request", "403; the request stays.", BINDING,
            "test_a_node_deletes_no_request_of_another"),
        Attempt("fetches what another bank was sent", "403.", BINDING,
            "test_a_node_pulls_the_parts_of_its_own_requests_only"),
        Attempt("fetches what another bank has answered", "403.", BINDING,
            "test_a_node_does_not_pull_what_another_has_answered"),
        Attempt(
            "sends a recorded request of another bank again within Flower's five minutes",
            "401: the key in it is not that of the connection.", DOOR,
            "test_a_recorded_request_is_of_no_use_over_another_banks_connection",
        ),
        Attempt(
            "was revoked and has a connection open", "401 at its next request.", DOOR,
            "test_a_revoked_bank_is_refused_on_an_open_connection",
        ),
        Attempt(
            "opens more connections than it needs, or sends a head that never ends",
            "Sixteen at a time; a head has 20 seconds and 64 KiB.", DOOR,
            "test_a_head_without_end_and_one_that_dawdles_are_closed",
        ),
        Attempt(
            "sends the body of a request at 0.1 byte a second", "Ended after five minutes; the round continues.", DOOR,
            "test_a_slow_body_ends_at_its_deadline_and_others_are_served",
        ),
        Attempt(
            "fills the coordinator's disk with the parts of its answers",
            "They are taken up to the size of the request and a mebibyte; more is refused (403).", BINDING,
            "test_reply_parts_are_limited_to_the_request_size_and_a_mebibyte",
        ),
        Attempt(
            "cuts an answer into a great many pieces", "Refused (403).", BINDING,
            "test_a_reply_in_a_great_many_pieces_is_refused",
        ),
        Attempt(
            "pushes answers without a request, or one to the same request again and again",
            "Nothing of them is taken, and no row of them stays in Flower's database.", BINDING,
            "test_pushes_that_answer_nothing_leave_no_row_in_flowers_database",
        ),
        Attempt(
            "answers in another bank's name", "Its answer is rejected; the other bank's own is taken.", FAULTS, HOSTILE
        ),
        Attempt(
            ("sends NaN, a huge delta, another layout, 64 MiB, bytes that are no message, an old answer, two answers, "
            "or announces one and never sends it"),
            "Its own answer is rejected or late; the others are averaged.", FAULTS, HOSTILE,
        ),
        Attempt(
            "forges another bank's reply to the right message, in which everything is right but the key",
            "Rejected (`signature`) before anything else of it is read.",
            SIGNATURES, "test_a_forged_reply_to_the_right_message_is_refused",
        ),
        Attempt(
            "sends a signed reply of its own to another round, attempt or run again",
            "Rejected: a reply names the request that it answers by its hash.",
            SIGNATURES, "test_a_reply_to_another_round_attempt_or_run_is_refused",
        ),
        Attempt(
            "signs a request, or an adapter, with the certificate that it has for its connections",
            "Refused: that certificate is not for signing.",
            SIGNATURES, "test_only_a_coordinator_of_the_banks_own_authority_is_obeyed",
        ),
        Attempt(
            "claims a trillion rows, or figures that overflow, are no numbers or are missing",
            "Rejected by the table of ranges, with the figure's name; the run continues.",
            WIRE, "test_a_figure_out_of_its_range_or_type_is_refused_by_name",
        ),
        Attempt(
            "claims as many rows as are believed, to be the average",
            "It weighs no more than strategy.max_share; deployments do not weigh by claims at all.", ROUNDS,
            "test_a_claim_of_all_rows_weighs_no_more_than_the_cap",
        ),
        Attempt(
            "denies later the wrong answer for which it was rejected",
            "The run's chain has what it signed: head and figures, and the hash of its delta.", SIGNATURES,
            "test_what_a_rejected_bank_has_signed_is_kept_and_can_be_shown",
        ),
        Attempt(
            "signs a reply with a book in its head, to fill the run's folder", "Rejected (`malformed`) and not kept.",
            SIGNATURES,
            "test_a_reply_with_a_book_in_its_head_is_not_kept",
        ),
        Attempt("signs a release in the coordinator's name", "`verify` refuses it.", RELEASE,
            "test_a_bank_cannot_sign_a_release"),
        Attempt(
            "puts records, figures or texts into its reply that have no name there, or are long",
            "Rejected (`malformed`); nothing of them is in the run's folder.",
            "tests/wire/test_wire_form.py", "test_a_reply_that_is_refused_for_its_form_is_not_kept_in_the_run",
        ),
        Attempt(
            "writes a sentence of its own into a refusal, to have it in run folder, history and report",
            "Only a code crosses the line; the reader has the sentence for it, or writes that the reason is unknown.",
            WIRE,
            "test_no_text_of_a_banks_own_is_read_in_its_error",
        ),
        Attempt(
            "signs a reply with a sentence in the place of its name, to have it in the run's folder",
            "Rejected (`malformed`) and not kept.", SIGNATURES,
            "test_what_a_rejected_bank_has_signed_is_kept_and_can_be_shown",
        ),
        Attempt("names a run of its own making in its reply, to have the text in the run's folder",
            "Rejected (`signature`) and not kept.", "tests/wire/test_wire_form.py",
            "test_a_run_name_of_the_banks_own_is_not_kept_in_the_run",
        ),
        Attempt(
            "answers with an error in Flower's form, with a book as its text", "The text is dropped; the code counts.",
            GUARDED,
            "test_an_error_from_a_bank_is_its_code_without_its_text",
        ),
        Attempt(
            "answers with the error by which Flower says that a simulation's process has died, to end the run",
            "Rejected (`unreadable`); the round closes without it.", GUARDED,
            "test_what_is_no_reply_is_an_error_of_the_servers_own",
        ),
        Attempt(
            "makes the coordinator's log grow", ("superlink.log has no line for a request, and begins again at 32 MiB; "
                                                "the 32 MiB before are kept."), "tests/deployment/test_bounded_logs.py",
            "test_a_log_that_another_process_floods_stays_short",
        ),
    ),
    "The coordinator, or whoever has taken its place": (
        Attempt(
            "starts a run with other code than is installed at the coordinator", "403: nothing of it runs there.",
            FAULTS,
            "test_code_that_a_bank_has_not_installed_does_not_run_there",
        ),
        Attempt(
            "sends a bank other code than it has installed",
            "The bank's gate refuses the app bundle before anything of it is unpacked.", FAULTS,
            "test_code_that_a_bank_has_not_installed_does_not_run_there",
        ),
        Attempt(
            ("asks for noise that it can compute, a large delta, a round without privacy, the rows of one person, or "
            "shows a ledger line that never was"),
            "The bank refuses and works on; its budget is never exceeded.", LYING,
            "test_a_lying_server_gets_nothing_and_the_deployment_continues",
        ),
        Attempt(
            ("asks without a signature of the consortium's coordinator, or with one by another authority, of a bank, "
             "of "
            "the server, or ended"),
            "The bank refuses (`unsigned`) before it reads anything else; its rows are not touched.", SIGNATURES,
            "test_only_a_coordinator_of_the_banks_own_authority_is_obeyed",
        ),
        Attempt(
            "asks for an adapter on lm_head, or for a step on one row, to read that row's answer",
            "The bank's default policy refuses each by a rule of its own (`target_modules`, `optimizer`, `min_rows`).",
            LYING, "test_the_default_policy_refuses_the_head_and_rounds_on_one_row",
        ),
        Attempt(
            "asks for private rounds of a bank that declares no sizes, to read them off the noise",
            "Refused (`privacy`); the bank's history says what to add.", PLAN,
            "test_a_bank_without_declared_rows_refuses_private_rounds",
        ),
        Attempt(
            "shows one plan and asks for another", ("A request is judged by the functions that judged the plan, so "
                                                    "more "
                                                   "than the bank allows is refused."), LYING,
            "test_a_lie_gets_nothing_that_is_not_accounted_for",
        ),
        Attempt(
            "denies later what it has asked", ("The bank has the signed request, and `verify` shows it to anybody who "
                                              "has ca.crt."), SIGNATURES,
            "test_what_the_coordinator_signed_is_taken_and_kept_with_the_answer",
        ),
        Attempt(
            "writes figures, deltas, weights or rounds of a finished run again, with hashes that are right",
            "Signatures that it does not have are missing: `verify --enrolled` says where.",
            VERIFY, "test_a_rewritten_chain_cannot_be_signed",
        ),
        Attempt(
            ("changes losses, bytes, norms, weights, scores, verdicts or hashes in a run's folder and signs the whole "
            "chain again, with hashes that are right"),
            "`verify` computes each again from what it follows from, and names file, line, key and both values.", LIES,
            "test_a_lie_of_the_folders_owner_is_named",
        ),
        Attempt(
            ("closes a round without any accepted reply, or without weights, leaves a bank out of it, or ends a run "
            "before its last round"),
            "`verify` names it: no such round is closed, and seed and configuration say who is asked and how long.",
            LIES,
            "test_a_lie_of_the_folders_owner_is_named",
        ),
        Attempt(
            "closes rounds of `sync=drift` otherwise than the banks' distances say, or invents what was not sent",
            "`verify` computes plan, drift and bytes again from the round's own records, and names the line.",
            DRIFT_AND_FROZEN, "test_a_lie_on_a_run_by_drift_is_named",
        ),
        Attempt(
            "moves the frozen ranks of an earlier stage in the global adapter",
            "`verify` compares them in all saved adapters, and names the first that differs.", DRIFT_AND_FROZEN,
            "test_a_server_that_moves_what_is_frozen_is_named",
        ),
        Attempt(
            "asks for steps that forget every row but the last: weight decay of 1 over the learning rate",
            "The bank's default policy refuses it (`optimizer`), as any rate or pull that lets one row's step through.",
            "tests/deployment/test_policy.py", "test_each_rule_refuses_what_it_names_and_nothing_else",
        ),
        Attempt(
            "puts another checkpoint into a run's folder, for the run to resume from",
            "`verify` names the file: it holds its round's adapter and what the rule remembers.", LIES,
            "test_another_checkpoint_is_named",
        ),
        Attempt(
            "gives the reply of a bank to another, with its own signature over all of it",
            "A reply says whose it is, signed by the bank: `verify` names it.", VERIFY,
            "test_a_coordinator_cannot_give_a_banks_reply_to_another",
        ),
        Attempt(
            "releases an adapter with a statement of its origin that is not the run's",
            "`verify RUN` names the field that differs.", VERIFY,
            "test_a_statement_that_differs_from_the_chain_is_named_by_field",
        ),
        Attempt(
            "puts another delta under a run whose deltas were kept, without keys",
            "`verify` computes every round again and finds another adapter.", VERIFY,
            "test_updates_that_give_another_adapter_are_found_despite_right_hashes",
        ),
        Attempt(
            "asks for the loss of one or a few held-out rows",
            "The bank refuses (`policy-generation`): none, or at least its min_rows.", "tests/client_app/test_held_out.py",
            "test_fewer_held_out_rows_than_min_rows_are_refused_by_name",
        ),
        Attempt(
            ("varies seed, fractions, limits, tasks or the window, to read single rows off differences of held-out "
            "losses"),
            "The bank draws the rows with its own key, the same in all runs; a task is scored whole or not at all.",
            "tests/client_app/test_held_out.py",
            "test_nothing_in_a_request_moves_the_rows",
        ),
        Attempt(
            ("asks again and again for what the bank does not allow, each time with another configuration, to fill its "
            "disk"),
            ("After 200 refusals on a day the bank looks at one request in ten minutes, and counts the others; "
            "configurations are kept once each, a gibibyte at most."),
            "tests/deployment/test_refusals.py", "test_beyond_the_limit_refusals_are_only_counted",
        ),
        Attempt(
            "compares the figures of two rounds without privacy whose rows differ by one",
            "Counts leave with two significant digits, losses and seconds with three; the update itself still differs.", "tests/client_app/test_published.py",
            "test_two_answers_that_differ_in_a_row_have_the_same_figures",
        ),
        Attempt(
            "puts values into its request that have no name there, or are long",
            "The bank refuses (`config`) and keeps nothing of them.", "tests/wire/test_wire_form.py",
            "test_a_request_that_is_refused_for_its_form_is_not_kept_at_the_bank",
        ),
    ),
    "Another user of the coordinator's or a bank's machine": (
        Attempt(
            "connects to Flower's control and runtime interfaces on loopback",
            "The connection is closed before a byte is read: its other end is not the coordinator's own user's.",
            DOOR, "test_another_user_of_the_machine_gets_nothing_from_the_inner_listener",
        ),
        Attempt(
            "takes a bank's task through the SuperNode's loopback interface", "The same.", DOOR,
            "test_another_user_of_the_banks_machine_gets_nothing_from_its_supernode",
        ),
        Attempt("reads keys of the coordinator", "Folders are 0700, keys 0600.", DOOR,
            "test_private_keys_and_folders_are_the_coordinators_own"),
        Attempt(
            "reads targets, outputs, adapters or keys in the folder of a run or a bank",
            "Folders have mode 0700 and files 0600, unless their owner opens them with chmod.",
            MODES, "test_everything_in_a_finished_run_is_its_owners_alone",
        ),
        Attempt("reads a privacy ledger", "Folder 0700, files 0600.", MODES, "test_a_ledger_is_its_owners_alone"),
        Attempt(
            "has the number of the SuperLink's user because a user namespace maps neither",
            "Nothing starts, and no connection is accepted.", "tests/deployment/test_own_user.py",
            "test_nothing_starts_in_a_user_namespace_that_maps_no_user",
        ),
    ),
    "Whoever reads files or listens on the line": (
        Attempt(
            "takes ca.key from the coordinator's machine", "It can be kept elsewhere, or encrypted.", CERTIFICATES,
            "test_an_encrypted_key_opens_with_its_passphrase_alone",
        ),
        Attempt(
            "searches all that a bank sends, and all that the aggregator holds, for rows, paths and keys",
            "Nothing is found.", FAULTS, HOSTILE
        ),
        Attempt(
            "changes a request or a reply on its way", "Refused: the signature is over all of it.", SIGNATURES,
            "test_a_reply_that_was_changed_after_signing_is_refused",
        ),
        Attempt("changes one bit of a run's folder", "`verify` names the file.", VERIFY,
            "test_one_flipped_bit_anywhere_is_found_and_named"),
        Attempt(
            "puts a link, FIFO, socket or dotfile into a run's folder, or in the place of a file",
            "`verify` names it, and opens nothing of the kind.", VERIFY,
            "test_what_is_no_file_is_named_and_not_opened",
        ),
        Attempt(
            "cuts any file of a run's folder", "`verify`, `report` and `resume` work or name the file.", VERIFY,
            "test_every_file_cut_at_a_random_byte_is_named_or_not_needed",
        ),
        Attempt(
            "changes a file of a run that was killed", ("Each round's files are bound once it is closed: `verify` "
                                                        "names "
                                                       "the file. That no later rounds were cut off is not proven: "
                                                       "status 3."),
            CHAIN, "test_each_of_its_files_that_was_changed_is_named",
        ),
        Attempt(
            "puts a forged audit.json into a run's folder, and its sentence into the privacy card",
            ("`verify` says that neither is proven: status 3. The coordinator takes no audit into its card that its "
            "chain does not have."),
            CHAIN, "test_a_forged_audit_is_not_proven",
        ),
        Attempt(
            "empties a bank's record, cuts off its end, or adds files to the bank's home",
            ("`verify` compares the record with the bank's history and its ledger, and names what is missing or too "
            "much."),
            "tests/provenance/test_verify_bank.py", "test_a_lie_is_named",
        ),
        Attempt(
            "changes a released adapter, or adds a file to it",
            "`verify`, and OpenSSF's own tool, refuse it and name the file.", RELEASE,
            "test_every_file_that_is_changed_or_missing_is_named",
        ),
        Attempt(
            "takes lines out of a bank's own record, or moves or changes them",
            "`verify` names the line: each holds the hash of the one before, sealed by the bank.",
            "tests/provenance/test_bank_record.py", "test_a_line_that_is_missing_added_or_changed_is_named",
        ),
    ),
}  # fmt: skip
"""Who -> what they can try, the gravest first."""

HEAD = """\
# Who can try what

Every row is played by the test that it names, in a deployment of real processes over mutual TLS wherever a process, a connection or a file is what is attacked. The page is written by
`python -m tests.helpers.security > docs/security.md` from the table next to the tests, and a test compares the two. What breaks without anybody's ill will is in
[reliability.md](reliability.md), what noise protects in [privacy.md](privacy.md).

| who | tries | what happens | test |
|---|---|---|---|
"""

TAIL = """
## What remains

- Without noise, an update is a function of the bank's rows: two updates that start from the same adapter and whose rows differ by one differ by what that row did. Rounding the figures
  (`client_app/published.py`) does not change that. Where strategy.weighting=rows, the rows of a round are exact, for they are the bank's weight.
- The coordinator sees each bank's delta, within what the bank's policy allows to be trained; noise at the bank (`privacy=example`) or at the aggregator is what limits what a delta tells.
- Who owns a run's folder can lie in what nothing else there follows from: the answers of a model, wall times, the reason of a refusal without a signature. Without banks'
  signatures, as in a simulation, the whole run can be another one. `verify --ca` alone shows that the coordinator says so; that the banks do, too, is shown by `--enrolled` with keys that
  they gave. Where deltas were not kept (`strategy.keep_deltas=true`), the step of a round is the coordinator's word; of LoRA-XS, and of a frozen A, `verify` says that the saved numbers
  are not proven, and ends with 3. Whether a coordinator had a cause to reject a reply is shown by its kept head and figures, not by its delta.
- Root on a party's machine, and whoever can write its checkout or its Python packages, is that party.
- Addresses, sizes and times of connections are visible on the line.
- A flood of packets is the firewall's to stop: what is limited here is connections and bytes of those that arrive.
"""


def page() -> str:
    """docs/security.md."""
    lines = []
    for who, attempts in ATTACKERS.items():
        for row in attempts:
            test = f"[{row.test.removeprefix('test_').replace('_', ' ')}](../{row.file})"
            lines.append(f"| {who} | {row.tries} | {row.happens} | {test} |\n")
    return HEAD + "".join(lines) + TAIL


if __name__ == "__main__":
    print(page(), end="")
