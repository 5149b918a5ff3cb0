"""Noise of libraries is not shown; warnings that matter are."""

from __future__ import annotations

import warnings

import pytest

from fedfinlora.model.quiet import quiet_libraries


def test_only_the_notice_about_an_old_name_is_hushed() -> None:
    def warn() -> None:
        with quiet_libraries():
            warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
            warnings.warn("the adapter does not fit", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="does not fit") as shown:
        warn()
    assert len(shown) == 1


def test_transformers_shows_no_bars() -> None:
    from transformers.utils import logging

    with quiet_libraries():
        assert not logging.is_progress_bar_enabled()
