"""`evaluate`: the shared evaluator on the base model, on adapter folders, or on a model behind a server; a run folder
of mode "evaluate".
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.catalog import select
from eval.arrow_model import ArrowExpert, ArrowModel
from eval.evaluate import OnEvent, evaluate_models, prompts_to_send
from eval.models import LocalModel
from eval.report import write_run_report
from eval.routing import LABELS, routed
from eval.rows import data_files, require_rows
from eval.xlora_gate import in_order_of, read_gate
from eval.xlora_model import GatedExpert, XLoraModel
from fedfinlora.commands.asked_models import Asked, check_routes, folders_of, labels_of, tasks_of
from fedfinlora.compose import compose
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.words import typed_keys
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import made_as, read_json, write_json
from fedfinlora.model.adapter import load_adapter
from fedfinlora.model.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, differing_settings, peft_settings
from fedfinlora.model.loading import Session, get_session, initial_adapter
from fedfinlora.run.detach import leave_if_detached
from fedfinlora.run.ended import how_to_resume
from fedfinlora.run.evaluation import Evaluation
from fedfinlora.run.events import Phase
from fedfinlora.run.folder import SERVER_LOCK, hold_run, new_run_folder, read_config, write_config, write_manifest
from fedfinlora.run.opening import OpenRun, asked_otherwise, resumed_configuration, run_result
from fedfinlora.run.progress import ShownEvents
from fedfinlora.run.progress_display import ProgressDisplay
from fedfinlora.run.records import RunResult, write_result
from fedfinlora.run.resuming import check_same, record
from server_app.door import check_folders, check_model_here

if TYPE_CHECKING:
    from eval.remote.model import RemoteModel

ASKED_FILE = Path("state") / "evaluate.json"
"""Which models a run folder of mode "evaluate" is about, for resume."""


def evaluate(overrides: Sequence[str], asked: Asked) -> int:
    """Write eval/<label>/ for each model, result.json and report.html.

    Labels are `base`, `final` for a single adapter, the folders' names (or those typed) for several, those of
    `eval.routing.LABELS` for several as one, and `remote`.
    """
    # An adapter's kind is in its folder; the default, QLoRA, would refuse a base that is not quantized.
    plain = ["peft=lora"] if asked.adapters and not _typed(overrides) else []
    config = compose([*overrides, *plain])
    alpha = config.peft.alpha if "alpha" in _typed(overrides) else 0
    asked = replace(asked, adapters=folders_of(asked.adapters), alpha=alpha)
    if config.resume:
        config, asked = _resumed(config, overrides, asked)
    select(config.evaluation.benchmarks)  # an unknown name is refused before a folder is made
    remote = _remote_model(config, asked)
    labels = labels_of(asked.adapters, asked.experts)
    settings = {label: _settings(folder, config, asked, _typed(overrides)) for label, folder in labels.items()}
    check_routes(asked.routes, labels, settings, config.model.path, asked.gate)
    tasks = tasks_of(labels, asked.experts) if "task" in asked.routes else {}
    if not config.resume:
        if not asked.url:
            check_model_here(config)
        check_folders(config)
        require_rows(config)
    run = _open(config, asked, list(settings.values()), labels)
    folder = run.folder
    print(f"run folder: {folder}", flush=True)
    started = time.monotonic()
    leave_if_detached(folder)
    with run.held(), ProgressDisplay() as display, ShownEvents(folder / "progress.jsonl", display.handle) as log:
        start = run.start_event("evaluate", "none", banks=0)
        peft = start.peft if asked.adapters else "none"
        log.write(replace(start, model=asked.name or config.model.name, peft=peft, rounds=0))
        try:
            files = _files(config, labels, asked.gate)
            if (folder / "manifest.json").is_file():
                record(folder, 0, check_same(folder, config, files, with_model=remote is None))
            else:
                write_manifest(folder, run.config, files, with_model=remote is None)
            if remote is not None:
                _score_remote(remote, run, log.write)
            else:
                found = _score_local(labels, settings, asked, run, log.write)
                routed(folder, asked.routes, {label: found[label] for label in labels}, tasks, log.write)
        except BaseException as error:
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            reason = "interrupted" if status == "stopped" else str(error)
            write_result(folder, _result(run, asked, status, reason, time.monotonic() - started))
            log.write(run.done_event(status, reason))
            if isinstance(error, KeyboardInterrupt):
                raise UserError(f"stopped; {how_to_resume(folder)}") from None
            raise
        write_result(folder, _result(run, asked, "completed", "", time.monotonic() - started))
        log.write(run.done_event("completed", "", write_run_report([folder], folder / "report.html")))
    return 0


def dry_run(overrides: Sequence[str], asked: Asked, price_in: float | None, price_out: float | None) -> int:
    """Say what a server would be sent, and what it would cost; send nothing."""
    from eval.remote.dry_run import estimate_requests, render_estimates
    from fedfinlora.model.tokenizers import load_tokenizer

    config = compose(overrides)
    remote = _remote_model(config, asked)
    assert remote is not None
    tokenizer = load_tokenizer(config.model)
    prompts = prompts_to_send(config, _remote_answers(remote, config))
    print(render_estimates(estimate_requests(prompts, tokenizer), config.model.name, price_in, price_out))
    return 0


def _score_local(
    labels: dict[str, Path], settings: dict[str, PeftConfig], asked: Asked, run: OpenRun, on_event: OnEvent
) -> dict[str, Evaluation]:
    """Adapters of one kind are scored in one pass over the rows; each kind needs a session of its own. Returns
    metrics.json by label.
    """
    config = run.config
    scored: dict[str, Evaluation] = {}
    kinds = list(dict.fromkeys(settings.values())) or [config.peft]
    for number, kind in enumerate(kinds):
        here = replace(config, peft=kind)
        on_event(Phase(name="loading model"))
        session = get_session(here)
        models: dict[str, LocalModel] = {}
        if number == 0 and (asked.base or not labels):
            models["base"] = LocalModel(session, here, initial_adapter(session, here))
        for label, folder in labels.items():
            if settings[label] == kind:
                models[label] = LocalModel(
                    session, here, load_adapter(folder, session.layout, here.model, session.frozen)
                )
        if number == 0 and "arrow" in asked.routes:
            models[LABELS["arrow"]] = ArrowModel.of(session, here, _arrow_experts(session, labels, settings, config))
        if number == 0 and "xlora" in asked.routes:
            models[LABELS["xlora"]] = _xlora_model(session, here, asked, labels, settings)
        on_event(Phase(name=f"evaluating {', '.join(models)}"))
        found = evaluate_models(models, here, run.folder, on_event)
        _require_scores(found)
        scored |= found
    return scored


def _arrow_experts(
    session: Session, labels: dict[str, Path], settings: dict[str, PeftConfig], config: Config
) -> list[ArrowExpert]:
    """All adapters, in a session of the first one's kind: `check_routes` has found them to be of one form."""
    return [
        ArrowExpert(settings[label], load_adapter(folder, session.layout, config.model, session.frozen))
        for label, folder in labels.items()
    ]


def _xlora_model(
    session: Session, config: Config, asked: Asked, labels: dict[str, Path], settings: dict[str, PeftConfig]
) -> XLoraModel:
    """All adapters under the gate, in a session of the first one's kind."""
    gate = read_gate(Path(asked.gate))
    ordered = in_order_of(gate, Path(asked.gate), labels, settings)
    experts = [GatedExpert(settings[label], labels[label]) for label in ordered]
    return XLoraModel.of(session, config, experts, gate)


def _score_remote(model: RemoteModel, run: OpenRun, on_event: OnEvent) -> None:
    answers = _remote_answers(model, run.config)
    with answers.remote:
        on_event(Phase(name=f"asking {model.name}"))
        _require_scores(evaluate_models({"remote": answers}, run.config, run.folder, on_event))


def _remote_answers(model: RemoteModel, config: Config) -> Any:
    from eval.models import RemoteAnswers
    from eval.remote.answers import RemoteSession

    return RemoteAnswers(RemoteSession(model), config)


def _require_scores(summaries: dict[str, Evaluation]) -> None:
    for summary in summaries.values():
        if not summary.scores:
            reason = next(iter(summary.skipped.values()), "evaluation.benchmarks names none")
            raise UserError(f"Nothing was scored: {reason}")


def _result(run: OpenRun, asked: Asked, status: str, reason: str, wall_s: float) -> RunResult:
    result = run_result(run, status, reason, wall_s, "evaluate")
    if asked.url:
        return replace(result, model=asked.name, quantization="unknown", peft="none")
    return result if asked.adapters else replace(result, peft="none")


def _remote_model(config: Config, asked: Asked) -> RemoteModel | None:
    if not asked.url:
        return None
    from eval.remote.model import RemoteModel

    if asked.adapters or asked.base or asked.routes:
        raise ConfigError("--model-url names the model: leave --adapter, --route and --base out.")
    if config.evaluation.mode != "generate":
        raise ConfigError("--model-url: servers are asked for text only, so evaluation.mode must be generate.")
    return RemoteModel(asked.url, asked.name, config.evaluation, config.dataset.chat_template, config.seed)


def _typed(overrides: Sequence[str]) -> set[str]:
    """Which settings of the adapter the command line names: "method" (also as peft=NAME), "rank", …"""
    keys = typed_keys(overrides)
    return {key.removeprefix("peft.") for key in keys if key.startswith("peft.")} | (
        {"method"} if "peft" in keys else set()
    )


def _settings(folder: Path, config: Config, asked: Asked, typed: Set[str]) -> PeftConfig:
    """An adapter's settings are its folder's. What is typed must agree with them, but for alpha, which takes its
    place.
    """
    found = peft_settings(folder, config)
    differing = differing_settings(found, config.peft, typed - {"alpha"})
    if differing:
        raise ConfigError(
            f"{folder} holds another kind of adapter. Leave the words that begin with peft out, or set "
            f"{', '.join(differing)}."
        )
    return replace(found, alpha=asked.alpha) if asked.alpha else found


def _files(config: Config, labels: dict[str, Path], gate: str = "") -> dict[str, str]:
    """What is scored on and what is scored: file -> SHA-256."""
    found = data_files(config)
    places = {f"adapter {label}": folder for label, folder in labels.items()} | ({"gate": Path(gate)} if gate else {})
    for name, folder in places.items():
        for file in (folder / CONFIG_FILE, folder / WEIGHTS_FILE):
            if file.is_file():
                with open(file, "rb") as stream:
                    found[f"{name}/{file.name}"] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _open(config: Config, asked: Asked, settings: Sequence[PeftConfig], labels: dict[str, Path]) -> OpenRun:
    """The folder of a new evaluation, or the one to resume."""
    config = replace(config, peft=settings[0]) if settings else config
    if config.resume:
        folder = Path(config.resume)
        return OpenRun(folder, config, folder.name, None, hold_run(folder, SERVER_LOCK))
    what = "remote" if asked.url else next(iter(labels), "base")
    name = (
        config.run_name
        or f"{time.strftime('%Y%m%d-%H%M%S')}-{(asked.name or config.model.name).split('/')[-1]}-evaluate-{what}"
    )
    config = replace(config, run_name=name)
    folder = new_run_folder(config)
    lock = hold_run(folder, SERVER_LOCK)
    try:
        with made_as(folder):
            write_config(folder, config)
            write_json(folder / ASKED_FILE, asked.as_json())
    except BaseException:
        lock.release()
        raise
    return OpenRun(folder, config, name, None, lock)


def _resumed(config: Config, overrides: Sequence[str], asked: Asked) -> tuple[Config, Asked]:
    """The configuration and the models of an evaluation that was interrupted. Other ones asked for are refused."""
    folder = Path(config.resume)
    own = read_config(folder)
    if not (folder / ASKED_FILE).is_file():
        raise UserError(
            f"{folder} is not the folder of an evaluation. Resume it by the command that it was started with."
        )
    former = Asked.from_json(read_json(folder / ASKED_FILE))
    named = asked_otherwise(overrides)
    if named:
        again = compose(named)
        own = resumed_configuration(folder, replace(again, peft=replace(own.peft, alpha=asked.alpha or own.peft.alpha)))
    if replace(asked, alpha=0) not in (Asked(), replace(former, alpha=0)):
        raise UserError(f"{folder} is about other models. Give resume={folder} alone, which takes them from the run.")
    return replace(own, resume=config.resume, resume_anyway=config.resume_anyway), former
