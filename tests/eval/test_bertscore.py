"""BERTScore with the embedded encoder: sane scores, true zeros, a named encoder, and no network."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from data.catalog import BENCHMARKS
from data.rows import Row
from eval.metrics import bertscore as module
from eval.metrics.bertscore import EMBEDDED, FINBERT, BertScores, bertscore, find_encoder
from eval.scoring.records import score_rows
from fedfinlora.errors import UserError

pytestmark = pytest.mark.slow

REFERENCE = "Amount of cash paid to suppliers during the period."


@pytest.fixture(autouse=True)
def forget_encoders():
    find_encoder.cache_clear()
    yield
    find_encoder.cache_clear()


def f1_of(scores: BertScores) -> list[float]:
    return [f1 for _, _, f1 in scores.scores]


def test_scores_order_texts_as_a_reader_would() -> None:
    candidates = [REFERENCE, "The sum of money that suppliers were paid in the period.", "A blue whale swims."]
    scores = bertscore(candidates, [REFERENCE] * 3, "embedded")
    f1 = f1_of(scores)
    assert f1[0] == pytest.approx(1.0, abs=1e-5)
    assert f1[0] > f1[1] > f1[2]
    assert scores.encoder == (EMBEDDED, 5)
    for p, r, f in scores.scores:
        assert f == pytest.approx(2 * p * r / (p + r), abs=1e-5)


def test_empty_candidates_score_zero() -> None:
    scores = bertscore(["", " \n", "...", REFERENCE], [REFERENCE] * 4, "embedded")
    assert f1_of(scores) == [0, 0, 0, pytest.approx(1.0, abs=1e-5)]
    assert bertscore([], [], "embedded").scores == []


def test_long_texts_are_cut_instead_of_failing() -> None:
    assert 0 < f1_of(bertscore(["long words " * 900], [REFERENCE], "embedded"))[0] < 1


def test_it_is_silent(capfd) -> None:
    module._scorer.cache_clear()
    bertscore(["cash paid"], [REFERENCE], "embedded")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_auto_offline_takes_the_embedded_encoder_without_asking(monkeypatch) -> None:
    import huggingface_hub

    def no_network(*arguments, **named):
        raise AssertionError("asked the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(module, "_cached", lambda repository: None)
    monkeypatch.setattr(huggingface_hub, "HfApi", no_network)
    assert find_encoder("auto").name == EMBEDDED


def test_auto_does_not_wait_for_a_hub_that_hangs(monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    class Hanging:
        def model_info(self, repository, timeout):
            time.sleep(30)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hanging)
    monkeypatch.setattr(module, "_cached", lambda repository: None)
    monkeypatch.setattr(module, "PROBE_TIMEOUT_S", 0.2)
    began = time.monotonic()
    assert find_encoder("auto").name == EMBEDDED
    assert time.monotonic() - began < 5


def test_auto_prefers_finbert_at_its_tuned_layer(monkeypatch) -> None:
    monkeypatch.setattr(module, "_cached", lambda repository: Path("/somewhere"))
    encoder = find_encoder("auto")
    assert (encoder.name, encoder.layer) == (FINBERT, 10)


def test_unknown_encoders_end_in_one_clear_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="neither a folder nor in the local cache"):
        find_encoder("nobody/no-such-encoder")
    with pytest.raises(UserError, match=r"no config\.json"):
        find_encoder(str(tmp_path))


def test_records_name_the_encoder() -> None:
    rows = [Row(f"xbrl_term/test/{i:06d}", "xbrl_term", "Answer:", REFERENCE) for i in range(2)]
    records, metrics = score_rows(BENCHMARKS["xbrl_term"], rows, [f"noise Answer: {REFERENCE}", ""], "embedded")
    assert records[0].bertscore_f1 == pytest.approx(1.0, abs=1e-5)
    assert (records[0].correct, records[0].finlora_correct, records[1].parsed) == (None, None, None)
    assert metrics.value("bertscore_f1") == pytest.approx(0.5, abs=1e-5)
    assert (metrics.bertscore_model, metrics.unparsed, metrics.n) == (EMBEDDED, 1, 2)
