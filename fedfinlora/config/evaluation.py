"""The settings of the evaluator: `evaluation.*`."""

from __future__ import annotations

from dataclasses import dataclass

from fedfinlora.config.checks import require
from fedfinlora.errors import choose


@dataclass(frozen=True)
class EvaluationConfig:
    """The shared evaluator."""

    benchmarks: tuple[str, ...] = ("all",)
    """Benchmark keys, group names (general, certificate, reporting, analysis, flare), all (FinLoRA's 19), or none."""
    general_knowledge: bool = False
    """Also ask base and adapter 48 bundled questions outside finance, four options each: the forgetting check. Not of a
    model behind a server.
    """
    limit: int = 8
    """Rows of each benchmark (a seeded sample); 0 = every row."""
    base: bool = True
    """Score the untouched base model too."""
    mode: str = "generate"
    """generate (greedy decoding, as FinLoRA), labels (log-probabilities of the labels of closed label sets, one pass),
    or both.
    """
    stop: str = "exact"
    """Besides end-of-sequence and budget: exact (as soon as nothing that could follow changes a score), or verdict (as
    soon as only a second "Answer:" in the same output could, which FinLoRA's rules would read again).
    """
    shots: int = 0
    """Solved examples in front of each prompt, drawn (seeded) from the benchmark's train rows; the same ones for all of
    its rows.
    """
    every: int = 0
    """Also score the global adapter every so many rounds; 0 = only at the end."""
    round_limit: int = 0
    """Rows of each benchmark in the scores by round (a seeded sample of those scored at the end); 0 = the same rows."""
    validation_rows: int = 0
    """Public validation: so many train rows of each evaluated benchmark (seeded, at most half of them) are set aside
    before simulated banks divide the rest; the server scores them every `every` rounds and after the last one. 0 =
    none.
    """
    keep: str = "last"
    """Which round becomes adapters/final: last, or best (highest mean score on the validation rows; the earlier of
    equal ones).
    """
    patience: int = 0
    """Stop after so many validations in a row without a better score; learning rates go as if all rounds came. 0 = run
    all rounds.
    """
    batch_tokens: int = 4096
    """Most new prompt tokens in one forward pass; a longer prompt is a pass of its own."""
    cache_gib: float = 0.0
    """Most memory for keys and values while generating, in GiB; fewer rows are decoded together where it would not do.
    0 = 2 GiB on a CPU, 0.6 of what is free on a GPU.
    """
    check_rows: int = 0
    """Rows of each benchmark (seeded) that are also decoded one by one with transformers' generate; the share that
    differs is reported.
    """
    reuse: bool = True
    """Take answers that the same model, adapter, prompt and settings gave before from `answers_dir`, and keep new ones
    there.
    """
    answers_dir: str = "~/.fedfinlora/answers"
    """Where answers are kept for later evaluations: model outputs in clear, prompts as hashes."""
    bertscore_model: str = "auto"
    """BERTScore's encoder: an id or folder, embedded (MiniLM), or auto (ProsusAI/finbert if reachable, else embedded).
    """
    requests_at_once: int = 4
    """With --model-url: requests that wait for an answer at the same time."""
    requests_per_minute: float = 0.0
    """With --model-url: most requests started in a minute; 0 = no limit but the server's own."""
    request_timeout_s: float = 120.0
    """With --model-url: longest wait for one answer."""
    request_retries: int = 6
    """With --model-url: further tries, with growing pauses, after a busy, failing, silent or garbled answer."""

    def __post_init__(self) -> None:
        choose(self.mode, ("generate", "labels", "both"), "evaluation.mode")
        choose(self.stop, ("exact", "verdict"), "evaluation.stop")
        choose(self.keep, ("last", "best"), "evaluation.keep")
        for name, zero_means in (
            ("limit", "all rows"),
            ("every", "only at the end"),
            ("shots", "none"),
            ("round_limit", "the same rows"),
            ("validation_rows", "none"),
            ("patience", "run all rounds"),
            ("check_rows", "none"),
            ("cache_gib", "as the device allows"),
            ("requests_per_minute", "no limit"),
            ("request_retries", "none"),
        ):
            value = getattr(self, name)
            require(value >= 0, f"evaluation.{name} must be 0 ({zero_means}) or more, not {value}.")
        for name in ("batch_tokens", "requests_at_once", "request_timeout_s"):
            require(getattr(self, name) > 0, f"evaluation.{name} must be above 0, not {getattr(self, name)}.")
        require(len(self.benchmarks) > 0, "evaluation.benchmarks is empty. Name some, or use all or none.")
        chooses = self.keep == "best" or self.patience > 0
        require(
            not chooses or (self.validation_rows > 0 and self.every > 0),
            "evaluation.keep=best and evaluation.patience choose by public validation rows, never by test rows: set "
            "evaluation.validation_rows and evaluation.every above 0.",
        )
