"""LaTeX tables in the form of the FinLoRA and FedFinLoRA papers: accuracy / F1 with the best in bold, and resources."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedfinlora.report.content import Content
from fedfinlora.report.formats import fraction, percent
from fedfinlora.report.resources import resources_of
from fedfinlora.report.systems import System
from fedfinlora.report.text_tables import SYNTHETIC, latex
from fedfinlora.report.verdict import is_synthetic

NOTHING = "--"
Pair = tuple[float | None, float | None]
"""(accuracy, F1), fractions; of a benchmark scored by BERTScore (None, its F1)."""
FAMILIES = {
    "accuracy_f1": ("accuracy", "f1_weighted", "Accuracy in percent / weighted F1 of parsed answers"),
    "accuracy_f1_finlora": ("finlora_accuracy", "finlora_f1", "Accuracy in percent / weighted F1 by FinLoRA's rules"),
}
"""File stem -> figure of accuracy, figure of F1, caption."""


def accuracy_f1_table(content: Content, name: str) -> str:
    """A row for each benchmark, a column for each system; the best accuracy and the best F1 of a row in bold."""
    accuracy, f1, caption = FAMILIES[name]
    rows = []
    for group, items in content.groups.items():
        scored = [item for item in items if any(item.key in system.scores for system in content.systems)]
        if scored:
            rows.append(rf"\multicolumn{{{1 + len(content.systems)}}}{{@{{}}l}}{{\itshape {latex(group)}}} \\")
        for item in scored:
            pairs = [_pair(system, item.key, accuracy, f1) for system in content.systems]
            cells = zip(_bold([pair[0] for pair in pairs], percent), _bold([pair[1] for pair in pairs], fraction),
                        strict=True)  # fmt: skip
            rows.append(" & ".join([latex(item.title), *map(_cell, cells)]) + r" \\")
    heads = " & ".join(["Benchmark", *(latex(system.heading) for system in content.systems)])
    said = f"{caption}; BERTScore F1 where there is no accuracy. Best in bold."
    return _table(_noted(content, said), "l" + "r" * len(content.systems), heads, rows)


def resources_table(content: Content) -> str:
    """A row for each trained system; the lowest figure of a column in bold."""
    found = [(system, spent) for system in content.systems if (spent := resources_of(content, system)) is not None]
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("Trainable parameters", "parameters", lambda value: f"{value:,.0f}"),
        ("Traffic, MB", "megabytes", lambda value: f"{value:,.2f}"),
        ("Training, s", "seconds", lambda value: f"{value:,.1f}"),
        ("Memory, GiB", "memory_gib", lambda value: f"{value:.2f}"),
        ("GPU memory, GiB", "gpu_memory_gib", lambda value: f"{value:.2f}"),
    ]
    cells = [
        _bold([getattr(spent, name) for _, spent in found], show, best=min) for _, name, show in columns
    ]  # fmt: skip
    rows = [
        " & ".join([latex(system.heading), latex(system.model), *(column[number] for column in cells)]) + r" \\"
        for number, (system, _) in enumerate(found)
    ]
    heads = " & ".join(["System", "Base model", *(latex(title) for title, _, _ in columns)])
    said = "Resources of training. Traffic is sent and received by all banks. Lowest in bold."
    return _table(_noted(content, said), "ll" + "r" * len(columns), heads, rows)


def _pair(system: System, key: str, accuracy: str, f1: str) -> Pair:
    score = system.scores.get(key)
    if score is None:
        return None, None
    return (None, score.value) if score.bertscore else (score.value_of(accuracy), score.value_of(f1))


def _bold(
    values: Sequence[float | None],
    show: Callable[[float], str],
    best: Callable[[Sequence[float]], float] = max,
) -> list[str]:
    """The values as printed, the best in bold: all that print the same as the best, none where all do.

    >>> _bold([0.5, 0.7, None, 0.7001], lambda value: f"{value:.1f}")
    ['0.5', '\\\\textbf{0.7}', '--', '\\\\textbf{0.7}']
    """
    known = [value for value in values if value is not None]
    mark = show(best(known)) if len(set(map(show, known))) > 1 else ""
    shown = [NOTHING if value is None else show(value) for value in values]
    return [rf"\textbf{{{text}}}" if text == mark else text for text in shown]


def _cell(pair: tuple[str, str]) -> str:
    accuracy, f1 = pair
    return NOTHING if pair == (NOTHING, NOTHING) else f"{accuracy} / {f1}"


def _noted(content: Content, caption: str) -> str:
    return caption + (f" {SYNTHETIC}" if any(map(is_synthetic, content.runs)) else "")


def _table(caption: str, columns: str, heads: str, rows: Sequence[str]) -> str:
    return "\n".join([
        r"% Needs \usepackage{booktabs}.", r"\begin{table}", r"\centering\small", rf"\caption{{{latex(caption)}}}",
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule", rf"{heads} \\", r"\midrule", *rows,
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip
