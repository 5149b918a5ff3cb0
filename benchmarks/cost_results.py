"""Seconds and bytes for docs/results.md: the speed of each benchmark, what a deployed round takes outside training, and
many banks.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.benches.evaluate import TARGETS, grouped
from benchmarks.benches.paired import NO_VERDICT
from benchmarks.provenance import provenance, shown_command
from data.catalog import BENCHMARKS
from fedfinlora.errors import UserError
from fedfinlora.files import read_json, read_lines


def speed(measured: Sequence[Mapping[str, Any]]) -> str:
    """One line a benchmark, and one for each group and set of `bench evaluate`."""
    lines = [
        "| benchmark | ratio | aim | bound | ours | reference | difference | rows |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for figures in measured:
        if figures.get("verdict") == NO_VERDICT:
            raise UserError(
                f"bench {figures['bench']} gave no verdict (spread {figures['spread']:.2f}): measure it again."
            )
    shown = merged(measured)
    for figures in shown:
        lines.append(
            f"| `{bench_name(figures)}` | {figures['ratio']:.2f} | | | {_short(figures['ours'])} | "
            f"{_short(figures['reference'])} | "
            f"{_short(figures['differs'])} | {figures['rows']} |"
        )
        for title, group in figures.get("groups", {}).items():
            lines.append(
                f"| {title} | {group['ratio']:.2f} | {group['aim']:g} | {group['bound']:.1f} | "
                f"{group['ours_rows_per_s']:.3g} rows a second | "
                f"{group['reference_rows_per_s']:.3g} rows a second | {_differing(group)} | {group['rows']} |"
            )
        for key, one in figures.get("benchmarks", {}).items():
            lines.append(
                f"| – {BENCHMARKS[key].title}, {one['prompt_tokens']:.0f} prompt tokens, "
                f"{one['read_tokens_per_row']:.0f} read | "
                f"{one['ratio']:.2f} | | {one['reference_s_per_row'] / one['products_s_per_row']:.1f} | "
                f"{one['ours_s_per_row']:.3f} s a row | "
                f"{one['reference_s_per_row']:.3f} s a row | {_differing(one)} | {one['rows']} |"
            )
    machine = measured[0]["machine"]
    loads = [figures["load"] for figures in measured if figures.get("load")]
    reported = f"On {machine['cpus']} CPUs, {machine['gpu'] or 'no GPU'}."
    if loads:
        reported += " Load: " + ", ".join(f"{one['before']} before and {one['after']} after" for one in loads) + "."
    for figures in shown:
        if "peak_cache_gib" in figures:
            reported += (
                f" `bench evaluate`: {figures['peak_cache_gib']:.2f} GiB of keys and values at most (limit "
                f"{figures['cache_gib']:g}), "
                f"{figures['peak_memory_gib']:.1f} GiB in all. Bound: the ratio if the matrix products of the tokens "
                "that ours reads and writes "
                f"were all that takes time, at the {figures['products_flop_per_s'] / 1e9:.0f} GFLOP/s that this "
                "machine reaches in "
                f"{figures['dtype']}; no evaluator that reads these tokens in this precision can do better."
            )
    origins = [
        f"- `{shown_command(one['command'])}`, commit `{one['git_commit']}`." for one in measured if one.get("command")
    ]
    return "\n".join([*lines, "", reported, *(["", *origins] if origins else [])])


def merged(measured: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Several files of `bench evaluate` as one: a benchmark that was measured again counts as measured last, sums are
    made again.
    """
    evaluations = [figures for figures in measured if figures["bench"] == "evaluate"]
    if len(evaluations) < 2:
        return list(measured)
    benchmarks: dict[str, Any] = {}
    for figures in evaluations:
        benchmarks |= figures["benchmarks"]
    everything = grouped(benchmarks)
    one = dict(evaluations[0]) | {"benchmarks": benchmarks, "ratio": everything["ratio"], "rows": everything["rows"]}
    one["ours"] = {"rows_per_s": everything["ours_rows_per_s"]}
    one["reference"] = evaluations[0]["reference"] | {"rows_per_s": everything["reference_rows_per_s"]}
    one["differs"] = {
        "outputs": everything["differs"], "row_by_row": everything["differs_row_by_row"], "of": everything["compared"],
    }  # fmt: skip
    one["groups"] = {
        title: group | grouped({key: benchmarks[key] for key in TARGETS[title][0] if key in benchmarks})
        for title, group in evaluations[0]["groups"].items()
    }
    for name in ("peak_cache_gib", "peak_memory_gib"):
        one[name] = max(figures[name] for figures in evaluations)
    return [one, *(figures for figures in measured if figures["bench"] != "evaluate")]


def bench_name(figures: Mapping[str, Any]) -> str:
    """`bench train`, with the rows it was run on where they are not the usual ones."""
    words = shlex.split(figures.get("command", ""))
    rows = words[words.index("--rows") : words.index("--rows") + 2] if "--rows" in words else []
    return " ".join(["bench", figures["bench"], *rows])


def _differing(figures: Mapping[str, Any]) -> str:
    """Outputs that are not the reference's, and how many of them its padding explains."""
    shown = f"{figures['differs']} of {figures['compared']} outputs"
    return f"{shown} ({figures['differs_row_by_row']} row by row)" if figures["differs"] else shown


def deployed_round(figures: Mapping[str, Any]) -> str:
    """Each round's seconds outside the longest training of a bank, with resident workers and with a process that loads
    the model for each message.
    """
    found = figures["rounds"]
    heads = ["round", "with workers", "of it loading", "without", "of it loading"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for number, (resident, alone) in enumerate(zip(found["worker"], found["no worker"], strict=True), 1):
        seconds = [one[key] for one in (resident, alone) for key in ("overhead_s", "load_s")]
        lines.append(f"| {number} | {' | '.join(f'{value:.1f} s' for value in seconds)} |")
    reported = (
        f"Two banks and their aggregator on one machine with {figures['machine']['cpus']} CPUs, TLS and node "
        f"authentication on; {figures['model']}, "
        f"{figures['quantization']}. After the first round {figures['ours']['overhead_s']:.1f} s a round pass outside "
        "training with workers "
        f"and {figures['reference']['overhead_s']:.1f} s without (aim: at most 10 s with them)."
    )
    return "\n".join(
        [*lines, "", reported, "", f"- `{shown_command(figures['command'])}`, commit `{figures['git_commit']}`."]
    )


def many_banks(load: Mapping[str, Any], crowd: Path | None) -> str:
    """A line for each number of banks that the aggregator was measured with; and the simulated run, where there is
    one.
    """
    lines = [
        (
            "| banks | a round | s a bank | averaging | up and down a round | server memory beyond its start, in "
            "adapters "
            "| SuperLink's |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for run in load["runs"]:
        seconds = fmean(run["round_s"])
        lines.append(
            f"| {run['banks']} | {seconds:.1f} s | {seconds / run['banks']:.2f} | {fmean(run['aggregate_s']):.2f} s | "
            f"{(run['bytes_up'] + run['bytes_down']) / 1e9:.2f} GB | {run['server_beyond_start_adapters']:.1f} | "
            f"{run['superlink_beyond_start_adapters']:.1f} |"
        )
    first, last = load["runs"][0], load["runs"][-1]
    reported = (
        "The aggregator alone, on loopback with TLS and node authentication: the banks answer at once with "
        f"{first['adapter_bytes'] / 4:,.0f} random numbers "
        f"({first['adapter_bytes'] / 1e6:.1f} MB), as many as the adapter of Llama 3.1 8B with rank 8 on q, k and v. "
        "All banks run in one process on the same "
        f"{load['cpus']} CPUs. The server starts with "
        f"{fmean(run['server_start_bytes'] for run in load['runs']) / 2**20:.0f} MiB. What it keeps of a round lies on "
        "its "
        "disk; the SuperLink is Flower's, and holds what was not fetched yet. How cost grows: time and bytes with the "
        "number of banks "
        f"({fmean(first['round_s']) / first['banks']:.2f} s a bank with {first['banks']}, "
        f"{fmean(last['round_s']) / last['banks']:.2f} with {last['banks']}), memory hardly "
        f"({first['server_beyond_start_adapters']:.1f} adapters at the server and "
        f"{first['superlink_beyond_start_adapters']:.1f} at the SuperLink with {first['banks']}, "
        f"{last['server_beyond_start_adapters']:.1f} and {last['superlink_beyond_start_adapters']:.1f} with "
        f"{last['banks']})."
    )
    lines += ["", reported, "", f"- `{load['command']}`, commit `{load['git_commit']}`."]
    if crowd:
        rounds, result = read_lines(crowd / "rounds.jsonl"), read_json(crowd / "result.json")
        seconds = fmean(line["timings"]["total_s"] for line in rounds)
        gathered = sum(bank["status"] == "ok" for line in rounds for bank in line["banks"])
        lines[-2:-2] = [
            "",
            f"In simulation, {result['banks']:,} banks with the tiny model and one step of one row each: {seconds:.1f} "
            "s a round "
            f"({1000 * seconds / result['banks']:.0f} ms a bank), {gathered:,} of {len(rounds) * result['banks']:,} "
            "replies accepted.",
        ]
        lines.append(provenance("simulation", crowd))
    return "\n".join(lines)


def _short(figures: Mapping[str, Any]) -> str:
    shown = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in figures.items() if isinstance(value, int | float)]
    return ", ".join(shown)
