"""Banks fine-tune one quantized Llama together: configuration, adapter algebra, models, training, aggregation, run
folder, report.

    import fedfinlora as ff
    run = ff.simulate(banks=2, experiment="demo")

The functions are those of `fedfinlora.api`, imported when they are first used: the package itself loads nothing.
"""

# Nothing is imported here: under `python -m fedfinlora` a typing.py in the working directory would be taken for the
# library (`fedfinlora.system.shadows`).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from fedfinlora.api import centralized, compare, evaluate, load_run, local, simulate
    from fedfinlora.train import trainers

__version__ = "0.1.0"
__all__ = ["centralized", "compare", "evaluate", "load_run", "local", "simulate", "trainers"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedfinlora import api

    found: object = getattr(api, name)
    return found
