"""`evaluate` with a model behind a server, and typed wrongly."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluations import cost_of, metrics_of, records_of, scored, words_for
from fake_server import Server, answer_body, fails_for, prompt_of, says, sends, serving
from tiny_runs import result_of, write_lines, write_rows

from eval.remote.model import KEY_VARIABLES
from fedfinlora.cli import main

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for variable in KEY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with serving() as server:
        server.behaviour = says("positive")
        yield server


@pytest.fixture
def few_rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows", test=6)


def remote_words(rows: Path, output: Path, *more: str, name: str = "run") -> list[str]:
    quick = ("evaluation.requests_at_once=1", "evaluation.request_retries=0")
    return words_for(rows, output, *quick, *more, benchmarks="fpb", name=name)


def remote_options(server: Server) -> list[str]:
    return ["--model-url", server.url, "--model-name", "some/model"]


def test_a_remote_model_is_scored_like_any_other(server: Server, few_rows: Path, tmp_path: Path) -> None:
    run = scored(remote_words(few_rows, tmp_path), *remote_options(server))
    assert len(server.requests) == 6
    metrics = metrics_of(run, "remote")
    assert metrics["scores"]["fpb"]["accuracy"] == pytest.approx(2 / 6)
    assert metrics["model"] == {"url": server.url, "model": "some/model", "chat": False}
    assert (metrics["server"]["served_models"], metrics["server"]["api"]) == (["dated-2026-01-01"], "completions")
    assert {record["stopped"] for record in records_of(run, "fpb", "remote")} == {"stop"}
    result = result_of(run)
    assert (result["status"], result["model"], result["quantization"], result["peft"]) == (
        "completed",
        "some/model",
        "unknown",
        "none",
    )
    second = scored(remote_words(few_rows, tmp_path, name="second"), *remote_options(server))
    assert len(server.requests) == 6
    same = ("scores", "skipped", "model", "groups", "finlora_overall")
    assert [metrics_of(second, "remote")[name] for name in same] == [metrics[name] for name in same]


@pytest.mark.parametrize("says_who", [True, False])
def test_answers_of_another_model_behind_the_same_address_are_not_taken(
    server: Server, few_rows: Path, tmp_path: Path, says_who: bool
) -> None:
    if not says_who:
        server.models = [{"id": "some/model", "object": "model"}]
    first = scored(remote_words(few_rows, tmp_path), *remote_options(server))
    server.requests.clear()
    server.behaviour = says("negative")
    if says_who:
        server.models[0]["created"] = 2
    second = scored(remote_words(few_rows, tmp_path, name="second"), *remote_options(server))
    assert len(server.requests) == 6
    assert {record["output"] for record in records_of(second, "fpb", "remote")} == {"negative"}
    assert metrics_of(first, "remote") != metrics_of(second, "remote")


def test_many_answers_that_say_nothing_before_the_budget_are_warned_about(
    server: Server, few_rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut = {"choices": [{"finish_reason": "length", "text": "<think>It could be"}]}
    server.behaviour = lambda handler, body: handler.reply(200, answer_body(body) | cut)
    run = scored(remote_words(few_rows, tmp_path), *remote_options(server))
    assert metrics_of(run, "remote")["scores"]["fpb"]["unparsed"] == 6
    assert "6 of 6 answers were cut off at the benchmark's budget" in caplog.text


def test_answers_that_the_server_held_back_are_warned_about(
    server: Server, few_rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_back = {"choices": [{"finish_reason": "content_filter", "text": ""}]}
    server.behaviour = lambda handler, body: handler.reply(200, answer_body(body) | held_back)
    scored(remote_words(few_rows, tmp_path), *remote_options(server))
    assert "the server held back 6 of 6 answers (content filter)" in caplog.text


@pytest.mark.parametrize("way", ["the same command", "resume", "resume without reuse"])
def test_unanswered_rows_fail_and_the_others_are_not_asked_again(
    server: Server, few_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    bad = json.loads((few_rows / "test" / "fpb_test.jsonl").read_text().splitlines()[2])["context"]
    server.behaviour = fails_for(bad, sends(500))
    words = remote_words(few_rows, tmp_path, *(["evaluation.reuse=false"] if "without" in way else []))
    assert main(["evaluate", *remote_options(server), *words]) == 1
    error = capsys.readouterr().err
    assert "fpb: 1 of 6 rows are unanswered" in error
    assert "Nothing is scored without them" in error
    run = tmp_path / "run"
    result = result_of(run)
    assert (result["status"], result["scores"]) == ("failed", {})
    assert "1 of 6 rows are unanswered" in result["reason"]
    assert not (run / "eval" / "remote" / "metrics.json").exists()
    server.requests.clear()
    server.behaviour = says("positive")
    if way == "the same command":
        run = scored(remote_words(few_rows, tmp_path, name="again"), *remote_options(server))
    else:
        scored([f"resume={run}"])
    assert [prompt_of(body) for _, body, _ in server.requests] == [bad]
    assert result_of(run)["status"] == "completed"
    assert metrics_of(run, "remote")["scores"]["fpb"]["n"] == 6
    assert cost_of(run, "remote")["reused"] == 5


def test_rows_that_the_server_finds_too_long_are_counted(server: Server, few_rows: Path, tmp_path: Path) -> None:
    bad = json.loads((few_rows / "test" / "fpb_test.jsonl").read_text().splitlines()[2])["context"]
    server.behaviour = lambda handler, body: (
        handler.reply(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
        if prompt_of(body) == bad
        else says("positive")(handler, body)
    )
    run = scored(remote_words(few_rows, tmp_path), *remote_options(server))
    assert metrics_of(run, "remote")["scores"]["fpb"]["too_long"] == 1
    assert [record.get("too_long", False) for record in records_of(run, "fpb", "remote")].count(True) == 1


def test_the_key_is_sent_and_is_in_no_file(
    server: Server, few_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """For every end of the evaluation, and also where the server repeats it."""
    monkeypatch.setenv("FEDFINLORA_API_KEY", KEY)
    server.behaviour = says(f"positive {KEY}")
    scored(remote_words(few_rows, tmp_path), *remote_options(server))
    assert {headers["authorization"] for _, _, headers in server.requests} == {f"Bearer {KEY}"}
    server.behaviour = sends(401, {"error": {"message": f"bad key {KEY}"}})
    words = remote_words(few_rows, tmp_path, "evaluation.reuse=false", name="refused")
    assert main(["evaluate", *remote_options(server), *words]) == 1
    assert main(["evaluate", *remote_options(server), "--dry-run", *words]) == 0
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"answers", "run", "refused"} <= {file.relative_to(tmp_path).parts[0] for file in files}
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []
    assert KEY not in "".join(capfd.readouterr())


def test_a_dry_run_sends_nothing_and_counts_what_is_left(
    server: Server, few_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dry(*more: str) -> str:
        words = remote_words(few_rows, tmp_path, name="dry")
        assert main(["evaluate", *remote_options(server), "--dry-run", *words, *more]) == 0
        return capsys.readouterr().out

    def requests(shown: str) -> int:
        found = re.search(r"^fpb +(\d+)", shown, re.MULTILINE)
        assert found
        return int(found[1])

    assert requests(dry()) == 6
    assert server.requests == []
    server.script = [says("positive")] * 4
    server.behaviour = sends(401)
    assert main(["evaluate", *remote_options(server), *remote_words(few_rows, tmp_path)]) == 1
    server.requests.clear()
    capsys.readouterr()
    assert requests(dry()) == 2
    assert requests(dry("evaluation.reuse=false")) == 6
    assert requests(dry("evaluation.shots=1")) == 6, "with examples in front they are other prompts"
    assert "USD" in dry("--price-in", "2", "--price-out", "8")
    assert server.requests == []
    assert not (tmp_path / "dry").exists()


def test_equal_prompts_are_sent_once(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows"
    lines = [json.dumps({"context": "Up? Answer:", "target": target}) for target in ("positive", "neutral", "positive")]
    write_lines(rows / "test" / "fpb_test.jsonl", lines)
    words = remote_words(rows, tmp_path)
    assert main(["evaluate", *remote_options(server), "--dry-run", *words]) == 0
    assert re.search(r"^fpb +1 ", capsys.readouterr().out, re.MULTILINE)
    run = scored(words, *remote_options(server))
    assert len(server.requests) == 1
    assert metrics_of(run, "remote")["scores"]["fpb"]["accuracy"] == pytest.approx(2 / 3)


def test_a_server_that_is_interrupted_keeps_what_came(server: Server, few_rows: Path, tmp_path: Path) -> None:
    words = remote_words(few_rows, tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answered: list[int] = []

    def answer_then_hang(handler: Any, body: dict[str, Any]) -> None:
        if len(answered) == 3:
            handler.server.closing.wait(20)
            handler.close_connection = True
            return
        answered.append(1)
        says("positive")(handler, body)

    server.behaviour = answer_then_hang
    process = subprocess.Popen(
        [sys.executable, "-m", "fedfinlora", "evaluate", *remote_options(server), *words], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while len(server.requests) < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 1
    assert f"resume={tmp_path / 'run'}" in error
    assert result_of(tmp_path / "run")["status"] == "stopped"
    server.behaviour = says("positive")
    scored([f"resume={tmp_path / 'run'}"])
    assert cost_of(tmp_path / "run", "remote")["reused"] == 3


# --- bad usage ------------------------------------------------------------------------------------

URL = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("words", "says_what"),
    [
        (["--model-name", "m"], "go with --model-url"),
        (["--dry-run"], "go with --model-url"),
        (["--price-in", "1"], "go with --dry-run"),
        (["--model-url", URL, "--model-name", "m", "--price-out", "1"], "go with --dry-run"),
        (["--model-url", URL, "--model-name", "m", "--dry-run", "--price-out", "-1"], "price"),
        (["--model-url", URL], "--model-name"),
        (["--model-url", "127.0.0.1:9", "--model-name", "m"], "--model-url must be an address"),
        (["--model-url", URL, "--model-name", "m", "--base"], "leave --adapter, --route and --base out"),
        (["--model-url", URL, "--model-name", "m", "--adapter", "x"], "leave --adapter, --route and --base out"),
        (["--model-url", URL, "--model-name", "m", "evaluation.mode=labels"], "evaluation.mode must be generate"),
        (
            ["--model-url", URL, "--model-name", "m", "--dry-run", "evaluation.mode=both"],
            "evaluation.mode must be generate",
        ),
        (["evaluation.mode=label"], "generate, labels"),
        (["evaluation.stop=never"], "exact, verdict"),
        (["evaluation.cache_gib=-1"], "evaluation.cache_gib must be 0"),
        (["evaluation.benchmarks=[fbp]"], "fpb"),
        (["--adapter"], "expected one argument"),
        (["--price-in", "two"], "invalid float"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_status_2_and_one_line(
    few_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says_what: str
) -> None:
    own = {word.split("=")[0] for word in words if "=" in word}
    with_rows = [word for word in remote_words(few_rows, tmp_path) if word.split("=")[0] not in own]
    try:
        status = main(["evaluate", *words, *(with_rows if "--adapter" not in words[-1:] else [])])
    except SystemExit as ended:
        status = int(ended.code or 0)
    error = capsys.readouterr().err
    assert status == 2
    assert says_what in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
