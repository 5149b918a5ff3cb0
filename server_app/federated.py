"""A federated run from configuration to report: start or resume, rounds, scores, result."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval.report import write_run_report
from eval.rounds import RunScores, scores_anything, validation_rows
from eval.rows import data_files
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import MOMENT_RULES
from fedfinlora.config.values import to_json
from fedfinlora.deployment.app_bundle import bundle_sha256
from fedfinlora.errors import UserError, plural
from fedfinlora.files import write_json
from fedfinlora.logs import about, also_in, belongs
from fedfinlora.model.adapter_folder import start_files
from fedfinlora.model.block_means import fault_in
from fedfinlora.model.layout_only import server_session
from fedfinlora.model.loading import Session, first_adapter
from fedfinlora.model.rank_limit import check_rank
from fedfinlora.provenance.audits import bound_audit
from fedfinlora.provenance.chain import Chain, begin_line, end_line, saved_files, saved_line
from fedfinlora.provenance.deltas import keep_start
from fedfinlora.provenance.enrolled import enrolled_banks
from fedfinlora.provenance.evidence import ServerKeys, server_keys
from fedfinlora.provenance.lines import Attempt
from fedfinlora.provenance.release import write_release
from fedfinlora.report.loggers import Board, require_loggers
from fedfinlora.run.checkpoint import Checkpoint, adapter_checksum, checkpoint_file, save_checkpoint
from fedfinlora.run.events import Message, Phase, RoundStart, Trainable
from fedfinlora.run.far_factors import warning
from fedfinlora.run.folder import write_manifest
from fedfinlora.run.opening import OpenRun, open_run, run_result
from fedfinlora.run.privacy_card import privacy_card
from fedfinlora.run.progress import EventWriter
from fedfinlora.run.records import BankEntry, RoundLine, RoundPrivacy, read_rounds, write_result
from fedfinlora.run.typed import plain
from fedfinlora.train.own_columns import trained_size
from fedfinlora.train.trainer_names import trainer_files, trainer_of_environment
from server_app.door import check_settings_on_disk
from server_app.exchange import MessageGrid, roster
from server_app.own_ranks import with_announced
from server_app.plain_run import logged_events
from server_app.rounds import Federation, run_round
from server_app.strategies import strategy_of
from server_app.strategies.strategy import ServerState, Strategy
from server_app.witness import Witness, witness_root

log = logging.getLogger("fedfinlora.server")


def run_federated(grid: MessageGrid, config: Config) -> Path:
    """The whole run. Returns its folder; raises UserError after writing a result.json with status "failed"."""
    belongs(run=Path(config.resume).name or config.run_name)
    ranks: dict[str, int] = {}
    banks = roster(grid, config.strategy, config.strategy.min_banks, enrolled_banks(), ranks)
    config = with_announced(config, ranks)
    run = open_run(config, len(banks), "federated", lambda own: _files(own), saved_files)
    if len(banks) != run.config.banks and not run.config.dataset.source == "jsonl":
        raise UserError(
            f"{run.folder} was started with {plural(run.config.banks, 'bank')}, {len(banks)} are here. "
            "Resume it with as many: "
            "the rows would "
            "otherwise be divided again."
        )
    belongs(run=run.run_id)  # as the banks know it
    log.info("run folder: %s", run.folder)
    started = time.monotonic()
    keys = server_keys()
    with (
        run.held(),
        logged_events(run.folder / "progress.jsonl") as events,
        also_in(run.folder / "state" / "server.log"),
    ):
        try:
            _train(grid, banks, run, events, keys)
        except UserError as error:
            finish(run, events, started, "failed", str(error), keys)
            raise
        except BaseException as error:
            status = "stopped" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
            finish(run, events, started, status, f"{type(error).__name__}: {error}", keys)
            raise
        finish(run, events, started, "completed", "", keys)
    log.info("run folder: %s", run.folder)
    return run.folder


def _files(config: Config) -> dict[str, str]:
    """Each file that the run depends on -> its SHA-256."""
    return data_files(config) | start_files(config) | trainer_files(trainer_of_environment())


def _train(grid: MessageGrid, banks: Mapping[str, int], run: OpenRun, events: EventWriter, keys: ServerKeys) -> None:
    config, folder = run.config, run.folder
    require_loggers(config.loggers)
    chain = Chain(folder, keys.signer)
    events.write(run.start_event("federated", config.strategy.name, len(banks), tuple(sorted(banks))))
    events.write(Phase(name="loading model"))
    if run.checkpoint is None:
        check_settings_on_disk(config)
        check_rank(config.model, config.peft)
    validation = validation_rows(config, events.write)
    session = server_session(config, scores_anything(config))
    events.write(Trainable(parameters=trained_size(session.layout, config), load_s=session.load_s))
    rule = strategy_of(config, list(banks), session.layout.size)
    board = Board(folder, config, log.warning)
    state = _first_state(run, session, rule)
    if run.checkpoint is None:
        write_manifest(folder, config, _files(config))
        save_checkpoint(folder, Checkpoint(0, session.layout.id, {"adapter": state.adapter}, {}))
        if config.strategy.keep_deltas:
            keep_start(folder, state.adapter)
    code = bundle_sha256()
    start = adapter_checksum(state.adapter)
    chain.append(begin_line(folder, run.run_id, to_json(config), code, keys, state.round, start))
    scores = RunScores(session, config, folder, validation, events.write, board)
    scores.base()
    events.write(Phase(name="training"))
    selection = scores.resume_from(run.checkpoint)
    chain.append(saved_line(folder, run.run_id, state.round, with_base=True))
    witness = Witness(witness_root(), read_rounds(folder))
    federation = Federation(grid, run, rule, session.layout, witness, keys, code, events)
    seconds: dict[str, float] = {}
    while scores.more(state.round, selection):
        with about(run=run.run_id, round=state.round + 1):
            state, line, evidence = _one_round(federation, banks, state, seconds)
        chain.append(evidence)
        selection = scores.close_round({"adapter": state.adapter, **state.arrays}, line, selection)
        chain.append(saved_line(folder, run.run_id, state.round))
    scores.finish(state.adapter, state.round, selection)
    board.close()


def _first_state(run: OpenRun, session: Session, rule: Strategy) -> ServerState:
    if run.checkpoint is None:
        return ServerState(0, first_adapter(session, run.config), rule.first_arrays(session.layout.id))
    if run.checkpoint.layout_id != session.layout.id:
        raise UserError(
            f"The checkpoint in {run.folder} belongs to another adapter than config.yaml says. Put config.yaml back, "
            "or start a new run."
        )
    arrays = dict(run.checkpoint.arrays)
    state = ServerState(run.checkpoint.round, arrays.pop("adapter"), arrays)
    means = rule.second_moments(state)
    is_sent = run.config.strategy.name in MOMENT_RULES and (state.round or means.size)
    if is_sent and (fault := fault_in(means, session.layout, run.config.train.clip_norm)):
        raise UserError(
            f"{checkpoint_file(run.folder, state.round)} is damaged: its second moments are not those of this run "
            f"({fault}). Delete it to resume from the round before, or start the run again."
        )
    return state


def _one_round(
    federation: Federation, banks: Mapping[str, int], state: ServerState, seconds: dict[str, float]
) -> tuple[ServerState, RoundLine, Attempt]:
    """The next state, the round's line of rounds.jsonl, still without scores, and that of provenance.jsonl. `seconds`
    is how long each bank took last time; it is brought up to date.
    """
    config, events = federation.run.config, federation.events
    number = state.round + 1
    events.write(RoundStart(round=number))
    privacy: RoundPrivacy | None = None
    if booked := federation.rule.book(federation.run, list(banks), state):
        banks, privacy = {name: banks[name] for name in booked.banks}, booked.privacy
        events.write(Message(level="info", text=str(booked)))
    result = run_round(federation, banks, state, seconds)
    state, line = result.state, replace(result.line, privacy=privacy)
    seconds.update((name, timing.train_s or 0.0) for name, timing in line.timings.banks.items())
    if number == 1 and not config.privacy.in_the_bank and line.banks:
        answers, tokens = sum(bank.answer_tokens for bank in line.banks), sum(bank.tokens for bank in line.banks)
        text = f"{answers:,} of {tokens:,} tokens carry loss: answers and their ends only"
        events.write(Message(level="info", text=text))
    if line.noise_alone:
        text = f"round {number}: no bank's reply came: the step is noise alone"
        events.write(Message(level="warning", text=text))
    if line.factors and (text := warning(line.factors, config.strategy.name)):
        log.warning("round %d: %s", number, text)
        events.write(Message(level="warning", text=f"round {number}: {text}"))
    if number == 1 and config.privacy.mode == "dp_lora":
        events.write(Message(level="info", text=what_dp_lora_promises(line.banks)))
    return state, line, result.evidence


def what_dp_lora_promises(banks: Sequence[BankEntry]) -> str:
    """The largest epsilon that a bank plans, and what it rests on."""
    planned = [
        (bank.privacy.epsilon_planned, bank.privacy.delta)
        for bank in banks
        if bank.privacy and bank.privacy.epsilon_planned
    ]
    if not planned:
        return "DP-LoRA as published: no bank has trained privately"
    epsilon, delta = max(planned)
    return (
        f"DP-LoRA as published: epsilon {epsilon:.3g} at delta {delta:.0e} for this run, if one row may be in every "
        "minibatch and "
        "turn both clipped gradients round (sensitivity 2 sqrt(2) C; the paper assumes C)"
    )


def finish(run: OpenRun, events: EventWriter, started: float, status: str, reason: str, keys: ServerKeys) -> None:
    """Write result.json, the report and provenance.jsonl's last line, also after an error, and update the display."""
    result = run_result(run, status, reason, time.monotonic() - started)
    report = ""
    try:
        write_card(run, keys)
        if status == "completed":
            write_release(run.folder, run.config, keys.signer)
        write_result(run.folder, result)
        report = str(write_run_report([run.folder], run.folder / "report.html"))
        Chain(run.folder, keys.signer).append(end_line(run.folder, run.run_id, status))
    except Exception as error:  # the run's own outcome must not be hidden by its report
        log.exception("no report")
        if status == "completed":
            events.write(run.done_event("failed", f"no report: {error}"))
            raise
    events.write(run.done_event(status, reason, report))


def write_card(run: OpenRun, keys: ServerKeys) -> None:
    """privacy.json, where privacy is on. An audit is in it if the run's chain has it."""
    card = privacy_card(run.config, read_rounds(run.folder), bound_audit(run.folder, keys.signer))
    if card:
        write_json(run.folder / "privacy.json", plain(card))
