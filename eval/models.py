"""The models that an evaluation asks: ours, with one adapter, or one behind a server. Both answer the same prompts.

What a model is asked and what decides its answer, besides the prompt, is in `settings`: answers are kept under the hash
of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from data.catalog import Benchmark
from data.encode import cut_rows, encode_prompts, moves_space
from data.rows import Row
from eval.answers import ModelAnswer, prompt_id
from eval.decoding.cache_memory import held_cache
from eval.decoding.generation import Answer, generate
from eval.decoding.labels import label_logprobs
from eval.decoding.plain_generation import generate_plainly
from eval.decoding.stopping import READ_BY_FIRST_LABEL, StoppingRule, fewest_marker_tokens
from eval.scoring.row_score import read_answer
from fedfinlora.config.schema import Config
from fedfinlora.model.adapter import Vector, read_adapter, write_adapter
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.devices import pick_dtype
from fedfinlora.model.embedded import CACHE_FORMAT, is_embedded
from fedfinlora.model.loading import Session
from fedfinlora.model.peft_methods import METHODS
from fedfinlora.run.checkpoint import adapter_checksum

if TYPE_CHECKING:
    from torch import nn

    from eval.remote.answers import RemoteSession

OnAnswer = Callable[[int, ModelAnswer], None]
"""Called with the number of a row and its answer."""
TOO_LONG = "too_long"


@dataclass
class Work:
    """What answering cost; nothing of it decides a score."""

    read_tokens: int = 0
    prompt_tokens: int = 0
    written_tokens: int = 0
    peak_cache_bytes: int = 0


class Model(Protocol):
    """A model under test."""

    work: Work

    @property
    def identity(self) -> Mapping[str, Any]:
        """Plain values that distinguish it from every other model."""
        ...

    def account(self) -> dict[str, Any]:
        """What else is worth keeping next to the scores."""
        ...

    def length(self) -> Callable[[str], int]:
        """How many tokens a prompt has, as far as is known here."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether `settings` distinguish the model from every other one, so that its answers may be kept for other
        evaluations.
        """
        ...

    def settings(self, benchmark: Benchmark, rows: Sequence[Row], labels: bool) -> dict[str, Any]:
        """Everything, besides the prompt, that decides the answers to a benchmark (all of its evaluated rows are
        given).
        """
        ...

    def prompts(self, rows: Sequence[Row], benchmark: Benchmark) -> list[str | None]:
        """The id of each row's prompt, None where it does not fit the context window."""
        ...

    def generate(self, benchmark: Benchmark, rows: Sequence[Row], asked: Sequence[int], on_answer: OnAnswer) -> None:
        """Answer the rows numbered in `asked`."""
        ...

    def compare_labels(
        self, benchmark: Benchmark, rows: Sequence[Row], asked: Sequence[int], on_answer: OnAnswer
    ) -> None:
        """Score every label of a closed label set for the rows numbered in `asked`."""
        ...


@dataclass
class LocalModel:
    """The session's base model with one adapter."""

    session: Session
    config: Config
    adapter: Vector
    """(layout.size,) float32, put into the session before it answers."""
    work: Work = field(default_factory=Work)

    lasting = True
    """Its weights are in `settings`."""
    fixed: ClassVar[bool | None] = None
    """Of `eval.decoding.generation.generate`: whether decoding steps may be CUDA graphs."""

    @classmethod
    def as_it_is(cls, session: Session, config: Config) -> LocalModel:
        """The session's model with the adapter that is in it."""
        return cls(session, config, read_adapter(session.model))

    @contextmanager
    def in_place(self) -> Iterator[nn.Module]:
        """The session's model with this adapter in it."""
        write_adapter(self.session.model, self.adapter)
        yield self.session.model

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        model = self.config.model
        peft = self.config.peft
        adapter = {"adapter": "none"}
        if not METHODS[peft.method].adds_nothing(self.session.layout.views(self.adapter)):
            adapter = {
                "adapter": adapter_checksum(self.adapter),
                "layout": self.session.layout.id,
                "method": "lora"
                if peft.method == "qlora"
                else peft.method,  # QLoRA is LoRA on a base that is named above
                "rank": str(peft.rank),
                "alpha": str(peft.alpha),
                **({"freeze_a": f"seed {self.config.seed}"} if peft.freeze_a else {}),
            }
        return {
            "model": model.path,
            "revision": model.revision,
            "weights": weights_fingerprint(self.session, self.config),
            "quantization": model.quantization,
            **({"int8_threshold": model.int8_threshold} if model.quantization == "int8" else {}),
            "dtype": str(pick_dtype(model.dtype, self.session.device)).removeprefix("torch."),
            "device": self.session.device.type,
            **adapter,
        }

    def account(self) -> dict[str, Any]:
        return {}

    def length(self) -> Callable[[str], int]:
        tokenizer, chat = self.session.tokenizer, self.config.dataset.chat_template
        return lambda prompt: len(encode_prompts(tokenizer, [prompt], chat)[0])

    def settings(self, benchmark: Benchmark, rows: Sequence[Row], labels: bool) -> dict[str, Any]:
        asked: dict[str, Any] = {"what": "labels", "labels": list(benchmark.labels)}
        if not labels:
            asked = {"what": "generate", "budget": benchmark.budget_tokens, "ends": end_ids(self.session)}
            if benchmark.parser in READ_BY_FIRST_LABEL:  # when a row may stop depends on the labels
                targets = sorted({row.target for row in rows})
                asked |= {"stop": self.config.evaluation.stop, "targets": targets}
                asked |= {"parser": benchmark.parser, "labels": list(benchmark.labels)}
        if self._answer_space:
            asked["answer_space"] = True
        return {**self.identity, **asked}

    def prompts(self, rows: Sequence[Row], benchmark: Benchmark) -> list[str | None]:
        room = context_tokens(self.config.model) - benchmark.budget_tokens
        return [prompt_id(tokens) if len(tokens) <= room else None for tokens in self._tokens(rows)]

    def generate(self, benchmark: Benchmark, rows: Sequence[Row], asked: Sequence[int], on_answer: OnAnswer) -> None:
        tokens = self._tokens(rows)
        rule = self._stopping_rule(benchmark, rows)

        def stops_early(number: int, written: list[int], left: int) -> bool:
            return rule.stops(self._text(rows[asked[number]], written), left)

        def keep(number: int, answer: Answer) -> None:
            on_answer(asked[number], ModelAnswer(self._text(rows[asked[number]], answer.tokens), answer.stopped))

        evaluation = self.config.evaluation
        with self.in_place() as model:
            done = generate(
                model,
                [tokens[number] for number in asked],
                benchmark.budget_tokens,
                end_ids(self.session),
                batch_tokens=evaluation.batch_tokens,
                cache=held_cache(model, evaluation.cache_gib),
                stops_early=stops_early if benchmark.parser in READ_BY_FIRST_LABEL else None,
                on_answer=keep,
                fixed=self.fixed,
            )
        self.work.read_tokens += done.read_tokens
        self.work.prompt_tokens += done.prompt_tokens
        self.work.written_tokens += done.written_tokens
        self.work.peak_cache_bytes = max(self.work.peak_cache_bytes, done.peak_cache_bytes)

    def generate_plainly(self, benchmark: Benchmark, rows: Sequence[Row]) -> list[str]:
        """The answers of transformers' own `generate`, row by row, to check ours against."""
        with self.in_place() as model:
            plain = generate_plainly(model, self._tokens(rows), benchmark.budget_tokens, end_ids(self.session))
            return [self._text(row, tokens) for row, tokens in zip(rows, plain, strict=True)]

    def compare_labels(
        self, benchmark: Benchmark, rows: Sequence[Row], asked: Sequence[int], on_answer: OnAnswer
    ) -> None:
        tokens = self._tokens(rows)
        tokenizer = self.session.tokenizer
        for space in ("", " "):  # the answers to some prompts begin with the space that was the prompt's
            part = [number for number in asked if self._moves(rows[number]) == bool(space)]
            texts = [space + label for label in benchmark.labels]
            ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            labels = [(*label, tokenizer.eos_token_id) for label in ids]

            def keep(number: int, logprobs: list[float], part: Sequence[int] = part) -> None:
                on_answer(part[number], ModelAnswer(label_logprobs=dict(zip(benchmark.labels, logprobs, strict=True))))

            prompts = [tokens[number] for number in part]
            with self.in_place() as model:
                label_logprobs(model, prompts, labels, self.config.evaluation.batch_tokens, keep)

    def _stopping_rule(self, benchmark: Benchmark, rows: Sequence[Row]) -> StoppingRule:
        marker_tokens = fewest_marker_tokens(self.session.tokenizer.get_vocab())
        targets = [row.target for row in rows]
        return StoppingRule.of(benchmark, targets, marker_tokens, restarts=self.config.evaluation.stop == "exact")

    def _tokens(self, rows: Sequence[Row]) -> list[tuple[int, ...]]:
        prompts, _ = cut_rows([row.prompt for row in rows], [row.target for row in rows], self._answer_space)
        return encode_prompts(self.session.tokenizer, prompts, self.config.dataset.chat_template)

    @property
    def _answer_space(self) -> bool:
        return self.config.dataset.answer_space and not self.config.dataset.chat_template

    def _moves(self, row: Row) -> bool:
        return self._answer_space and moves_space(row.prompt)

    def _text(self, row: Row, tokens: Sequence[int]) -> str:
        """The answer without the space that was the prompt's."""
        text: str = self.session.tokenizer.decode(tokens, skip_special_tokens=True)
        return text.removeprefix(" ") if self._moves(row) else text


def choice_of(benchmark: Benchmark, logprobs: Mapping[str, float]) -> str:
    """The most probable label, as answers are read (NWGI's seven levels give three). Ties go to the earlier label."""
    best = max(benchmark.labels, key=lambda label: logprobs[label])
    return str(read_answer(benchmark, best) or best)


@dataclass
class RemoteAnswers:
    """A model behind an OpenAI-compatible server."""

    remote: RemoteSession
    config: Config
    work: Work = field(default_factory=Work)

    @property
    def lasting(self) -> bool:
        return self.config.evaluation.reuse and self.remote.served is not None

    @property
    def identity(self) -> Mapping[str, Any]:
        model = self.remote.model
        return {"url": model.url, "model": model.name, "chat": model.chat}

    def account(self) -> dict[str, Any]:
        return self.remote.account()

    def length(self) -> Callable[[str], int]:
        """By the configured model's tokenizer: the server's own is not known."""
        from fedfinlora.model.tokenizers import load_tokenizer

        tokenizer = load_tokenizer(self.config.model)
        return lambda prompt: len(tokenizer(prompt)["input_ids"])

    def settings(self, benchmark: Benchmark, rows: Sequence[Row], labels: bool) -> dict[str, Any]:
        reported = {"served": self.remote.served} if self.lasting else {}
        return {**self.identity, **reported, "what": "generate", "budget": benchmark.budget_tokens}

    def prompts(self, rows: Sequence[Row], benchmark: Benchmark) -> list[str | None]:
        return [prompt_id(row.prompt) for row in rows]

    def generate(self, benchmark: Benchmark, rows: Sequence[Row], asked: Sequence[int], on_answer: OnAnswer) -> None:
        prompts = [rows[number].prompt for number in asked]
        for number, answer in self.remote.answers(prompts, benchmark.budget_tokens, benchmark.key):
            on_answer(asked[number], ModelAnswer(answer.text, answer.finish_reason, answer.api, answer.served_model))
            self.work.read_tokens += answer.prompt_tokens or 0
            self.work.prompt_tokens += answer.prompt_tokens or 0
            self.work.written_tokens += answer.answer_tokens or 0

    def compare_labels(
        self, benchmark: Benchmark, rows: Sequence[Row], asked: Sequence[int], on_answer: OnAnswer
    ) -> None:
        raise NotImplementedError(
            "servers are asked for text only; the command line refuses evaluation.mode=labels with one"
        )


def end_ids(session: Session) -> list[int]:
    """End-of-sequence tokens: the tokenizer's, which training used, first, and those of the model's generation
    settings.
    """
    configured = getattr(session.model.generation_config, "eos_token_id", None) or []
    more = configured if isinstance(configured, list) else [configured]
    return [session.tokenizer.eos_token_id, *(token for token in more if token != session.tokenizer.eos_token_id)]


def weights_fingerprint(session: Session, config: Config) -> str:
    """What identifies the weights behind a path: the commit of a hub model, sizes and times of a folder's files."""
    path = config.model.path
    if is_embedded(path):
        return f"embedded-{CACHE_FORMAT}"
    folder = Path(path).expanduser()
    if folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".bin"))
        return prompt_id(";".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files))
    return str(getattr(session.model.config, "_commit_hash", "") or config.model.revision)
