"""What each simulated bank takes of this machine."""

from __future__ import annotations

import os

from fedfinlora.config.schema import Config
from fedfinlora.model.devices import ActorResources, actor_resources, gpus_here


def crowded(config: Config) -> str:
    """What is wrong where simulated banks would fight for cores: their threads spin while they wait for each other.
    With two workers of two threads on two cores a round took 38 s, with one worker 11.
    """
    cores = len(os.sched_getaffinity(0))
    workers = simulated_workers(config)
    if gpus_here() or not config.model.threads or workers * config.model.threads <= cores:
        return ""
    return (
        f"{workers} workers with model.threads={config.model.threads} each are more than the {cores} cores: they would "
        f"wait for each other. Set workers={max(1, cores // config.model.threads)}, or leave model.threads at 0."
    )


def simulated_workers(config: Config) -> int:
    """How many simulated banks train at the same time, each in processes with a base model of their own."""
    at_once = (gpus_here() or len(os.sched_getaffinity(0))) // config.train.processes
    return min(config.workers or max(1, at_once), config.banks)


def worker_resources(config: Config) -> str:
    """`resources_of` as options of Flower's."""
    needed = resources_of(config)
    return (
        f"client-resources-num-cpus={needed.cpus} client-resources-num-gpus={needed.gpus:.4f} "
        f"init-args-num-cpus={needed.all_cpus} init-args-num-gpus={gpus_here()}"
    )


def resources_of(config: Config) -> ActorResources:
    """Cores and GPUs of each simulated bank."""
    return actor_resources(simulated_workers(config), len(os.sched_getaffinity(0)), gpus_here())
