"""Banks fine-tune one quantized Llama together: configuration, adapter algebra, models, training, aggregation, run folder, report.

    import fedfinlora as ff
    run = ff.simulate(banks=2, experiment="demo")

The functions are those of `fedfinlora.api`, imported when they are first used: the package itself loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedfinlora.api import centralized, compare, evaluate, load_run, local, simulate

__version__ = "0.1.0"
__all__ = ["centralized", "compare", "evaluate", "load_run", "local", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedfinlora import api

    return getattr(api, name)
