"""Figures and tables for papers, each by its name: `report RUN --export DIR --figure NAME` writes one of them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fedfinlora.report.content import Content
from fedfinlora.report.formats import file_name
from fedfinlora.report.paper_comparison import efficiency_figure, performance_figure
from fedfinlora.report.paper_curves import load_figure, loss_figure, score_figure
from fedfinlora.report.paper_drawing import file_forms, paper_style, require_matplotlib
from fedfinlora.report.paper_tables import FAMILIES, accuracy_f1_table, resources_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: Mapping[str, Callable[[Content], Mapping[str, Figure | None]]] = {
    "loss": lambda content: {"loss": loss_figure(content)},
    "score": lambda content: {"score": score_figure(content)},
    "load": lambda content: {
        "load" if len(content.runs) == 1 else f"load-{file_name(run.name)}": load_figure(run) for run in content.runs
    },
    "performance": lambda content: {"performance": performance_figure(content)},
    "efficiency": lambda content: {"efficiency": efficiency_figure(content)},
}
"""Name -> the figures under it by the stem of their files; None where the runs have nothing to draw."""

TABLES: Mapping[str, Callable[[Content], str]] = {
    **{name: lambda content, name=name: accuracy_f1_table(content, name) for name in FAMILIES},  # type: ignore[misc]
    "resources": resources_table,
}
NAMES = (*FIGURES, *TABLES)


def figure_files(content: Content, name: str) -> dict[str, bytes]:
    """File name -> content of a figure as PNG and PDF; {} where there is nothing to draw. UserError without
    matplotlib.
    """
    require_matplotlib()
    with paper_style():
        drawn = {stem: figure for stem, figure in FIGURES[name](content).items() if figure is not None}
        return {
            f"{stem}.{ending}": form for stem, figure in drawn.items() for ending, form in file_forms(figure).items()
        }


def table_files(content: Content, name: str) -> dict[str, bytes]:
    """File name -> content of a table in LaTeX."""
    return {f"{name}.tex": TABLES[name](content).encode()}
