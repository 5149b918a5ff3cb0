"""How the figures for papers look, and their two file forms: PNG at 300 dpi and PDF with embedded fonts.

Drawn by matplotlib (the extra `figures`). Colours are `petroff8` (Petroff 2021, arXiv 2107.02270), which stay apart for
colour-blind readers; each series has a marker and a dash pattern too, so that a grey print can be read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedfinlora.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 300
COLUMN_IN, PAGE_IN = 3.4, 7.0
"""Width of one and of two columns of a paper, inches."""
LETTERS_AN_INCH, LETTERS_OF_A_MARK = 16, 9
"""Of a legend: what fits, so that long names of runs go below each other."""
MARKERS = "osD^vPX*"
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}
MISSING = "Figures in PNG and PDF need matplotlib. Install it with: pip install 'fedfinlora[figures]'"


def require_matplotlib() -> None:
    """Raise UserError, which names what to install, where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(MISSING) from error


@contextmanager
def paper_style() -> Iterator[None]:
    """The style above, within the block only."""
    import matplotlib

    style: Any = STYLE  # matplotlib names every key in a type of its own
    with matplotlib.rc_context(style):
        yield


def colours() -> list[Any]:
    """Eight colours, by slot."""
    import matplotlib

    return list(matplotlib.color_sequences["petroff8"])


def look(slot: int) -> dict[str, Any]:
    """Colour, marker and dash pattern of a line: slot 0 to 7, then from the first again."""
    slot %= len(MARKERS)
    return {"color": colours()[slot], "marker": MARKERS[slot], "linestyle": DASHES[slot]}


def panels(count: int, height_in: float = 2.4, width_in: float | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels side by side, each with a y axis of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in or (COLUMN_IN if count == 1 else PAGE_IN), height_in))
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def legend_below(figure: Figure, panels: Sequence[Axes], columns: int = 3) -> None:
    """One legend under all panels; a name that several have is shown once."""
    found = {name: mark for axes in panels for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if found:
        fitting = int(LETTERS_AN_INCH * figure.get_figwidth() / (max(map(len, found)) + LETTERS_OF_A_MARK))
        columns = max(1, min(columns, len(found), fitting))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, handlelength=3)


def rounds_axis(axes: Axes) -> None:
    """Whole numbers on an x axis of rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def file_forms(figure: Figure) -> dict[str, bytes]:
    """File ending -> content. The same figure gives the same bytes."""
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Producer": None})
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}
