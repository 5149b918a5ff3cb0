"""`simulate`: the main job through a real `flwr run` on a private SuperLink.

`flwr run` returns at once, and with --stream returns 0 even when the app has failed; its daemon keeps the environment
of its first start. So each simulation has its own SuperLink.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from eval.rows import data_files
from fedfinlora.commands.stages import Way, run_stages
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.deployment.flower_link import Link, flower_environment, free_port, program, wait_for_superlink
from fedfinlora.deployment.following import final_status, watch
from fedfinlora.deployment.simulated_banks import crowded, resources_of
from fedfinlora.errors import ConfigError, UserError, as_sentence
from fedfinlora.files import made_as, write_bytes
from fedfinlora.model.adapter_folder import start_files
from fedfinlora.model.devices import GPU_SHARE
from fedfinlora.report.loggers import require_loggers
from fedfinlora.run.checkpoint import latest_round
from fedfinlora.run.detach import leave_if_detached
from fedfinlora.run.ended import how_to_resume, record_end
from fedfinlora.run.folder import COMMAND_LOCK, SERVER_LOCK, hold_run, new_run_folder, read_config
from fedfinlora.run.opening import asked_otherwise, resumed_configuration
from fedfinlora.run.origin import note_origin
from fedfinlora.run.resuming import check_same
from fedfinlora.system.family import family
from fedfinlora.system.locks import check_free
from fedfinlora.system.web import client_for
from fedfinlora.train.own_trainer import reason_against
from fedfinlora.train.trainer_names import NO_TRAINER, NamedTrainer, trainer_files
from server_app.door import check_settings_on_disk


def simulate(overrides: Sequence[str], trainer: NamedTrainer = NO_TRAINER) -> int:
    """Run to the end; 0 only when result.json says "completed". The banks train with `trainer`, if one is named."""
    way = Way(
        "federated",
        partial(_check, trainer=trainer),
        lambda config: _follow(_begun(config), trainer),
        lambda words: simulate(words, trainer),
    )
    if (status := run_stages(overrides, way)) is not None:
        return status
    return _follow(prepare(overrides, trainer), trainer)


def _follow(config: Config, trainer: NamedTrainer) -> int:
    run = Path(config.resume) if config.resume else Path(config.output_dir) / config.run_name
    print(f"run folder: {run}", flush=True)
    crowd = crowded(config)
    if crowd:
        print(f"warning: {crowd}", file=sys.stderr)
    with hold_run(run, COMMAND_LOCK), made_as(run):
        check_free(run / SERVER_LOCK, f"The run {run}")
        leave_if_detached(run)
        return _simulate(run, config, trainer)


def _simulate(run: Path, config: Config, trainer: NamedTrainer) -> int:
    try:
        note_origin(run)
        with _superlink(run, trainer, resources_of(config).banks_per_gpu) as link:
            run_id = link.start(config)
            watch(link, run, run_id)
    except KeyboardInterrupt:
        record_end(run, "stopped", "interrupted")
        with contextlib.suppress(OSError):
            print(f"\n{how_to_resume(run)}", file=sys.stderr, flush=True)
        return 1
    except Exception as error:
        record_end(run, "failed", str(error) or type(error).__name__)
        if isinstance(error, UserError) and latest_round(run) >= 0:
            raise UserError(f"{error} {as_sentence(how_to_resume(run))}") from error
        raise
    return final_status(run)


def prepare(overrides: Sequence[str], trainer: NamedTrainer = NO_TRAINER) -> Config:
    """The resolved configuration for the server, with its run folder made."""
    config = compose(overrides)
    if config.resume:
        _check_trainer(config, trainer)
        folder = Path(config.resume)
        own = read_config(folder)
        for lock in (COMMAND_LOCK, SERVER_LOCK):
            check_free(folder / lock, f"The run {folder}")
        named = asked_otherwise(overrides)
        banks = [] if any(each.startswith("banks=") for each in named) else [f"banks={own.banks}"]
        asked = compose([*named, *banks]) if named else own
        going_on = replace(
            resumed_configuration(folder, asked), resume=config.resume, resume_anyway=config.resume_anyway
        )
        check_same(folder, going_on, data_files(going_on) | start_files(going_on) | trainer_files(trainer))
        return going_on
    _check(config, trainer)
    return _begun(config)


def _check(config: Config, trainer: NamedTrainer) -> None:
    """What is wrong with the rows is said here: from inside, a bank may only send a code."""
    from client_app.own_rows import divide

    _check_trainer(config, trainer)
    require_loggers(config.loggers)
    check_settings_on_disk(config)
    divide(config, config.banks)


def _check_trainer(config: Config, trainer: NamedTrainer) -> None:
    if trainer.name and (reason := reason_against(config)):
        raise ConfigError(reason)


def _begun(config: Config) -> Config:
    """The configuration of a new run, with its folder made."""
    return replace(config, run_name=new_run_folder(config).name, overwrite=False)


@contextmanager
def _superlink(run: Path, trainer: NamedTrainer, banks_per_gpu: int) -> Iterator[Link]:
    home = run / "state" / "flwr"
    shutil.rmtree(home, ignore_errors=True)
    port = free_port()
    connection = (
        f'[superlink]\ndefault = "private"\n\n[superlink.private]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    write_bytes(home / "config.toml", connection.encode())
    environment = flower_environment(home) | {
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds; Flower's own second is for many runs on one SuperLink
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "false",  # processes that Flower's own workers take the place of
        "FEDFINLORA_BANK_STATE": str(run / "state" / "banks"),
        GPU_SHARE: str(banks_per_gpu),
        **trainer.environment,
    }
    log_file = run / "state" / "superlink.log"
    command = [
        program("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1",
        "--port", str(port), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with family(command, environment, log_file, run) as process:
        wait_for_superlink(process, log_file, lambda: _answers(f"http://127.0.0.1:{port}/health"))
        yield Link(run, environment, process)


def _answers(address: str) -> bool:
    import httpx

    try:
        with client_for(address, 1.0) as client:
            return client.get(address).is_success
    except httpx.HTTPError:
        return False
