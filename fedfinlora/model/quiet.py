"""What transformers and PEFT print while a model loads, and a user cannot act on, is not shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def without_progress_bars() -> None:
    """No bars for weights that are read, converted or written, in this process: our own lines say what happens."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """The same, and meanwhile no notice that PEFT asks transformers by an old name. All other warnings are shown."""
    without_progress_bars()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
