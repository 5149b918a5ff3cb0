"""The pages' templates (Jinja2), with the filters that they print values with.

They are texts in Python modules because Flower's app bundle takes no .html, .css or .js files. Every value is escaped,
so names and reasons out of run folders stay text; only charts, which `fedfinlora.report.drawing` has escaped, and the
constants here are markup.
"""

from __future__ import annotations

import base64
import hashlib

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from fedfinlora.report import formats
from fedfinlora.report.drawing import chart_style, marker, picture, standalone
from fedfinlora.report.means import ALL
from fedfinlora.report.palette import DARK, LIGHT, PRINT, SHADES
from fedfinlora.report.templates import benchmarks, macros, page, run, scores, script, status, style

FORMATS = ("interval", "percent", "points", "fraction", "count", "decimal", "significant", "seconds", "size", "plural")


def _printable(value: object) -> object:
    """Text without unprintable characters; markup and other values as they are."""
    return formats.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


ENVIRONMENT = Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_printable,
    loader=DictLoader({
        "macros": macros.TEMPLATE, "scores": scores.TEMPLATE, "benchmarks": benchmarks.TEMPLATE, "run": run.TEMPLATE,
        "report.html": page.TEMPLATE, "status.html": status.TEMPLATE, "style.css": style.TEMPLATE,
        "report.js": script.REPORT, "status.js": script.STATUS,
    }),
)  # fmt: skip
ENVIRONMENT.filters |= {
    **{name: getattr(formats, name) for name in FORMATS},
    "base64": lambda content: base64.b64encode(content.encode()).decode(),
    "picture": picture,
    "standalone": standalone,
}
ENVIRONMENT.globals |= {
    "DASH": formats.DASH,
    "ALL": ALL,
    "marker": lambda slot: Markup(marker(slot, 7, 6, 3.6)),
    "charts": Markup(chart_style("var(--{})".format, "var(--sans)")),
    "palette": {"light": LIGHT, "dark": DARK, "print": PRINT, "shades": SHADES},
}


def render(name: str, **values: object) -> Markup:
    """A template's text with `values` in it."""
    return Markup(ENVIRONMENT.get_template(name).render(values))


def allowed(style: str, script: str, *more: str) -> str:
    """The Content-Security-Policy of a page that has this style and this script alone and loads nothing."""

    def digest(content: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    rules = ("default-src 'none'", "img-src data:", f"style-src {digest(style)}", f"script-src {digest(script)}", *more)
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))
