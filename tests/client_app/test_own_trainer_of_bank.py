"""A bank's own trainer: where it comes from, what of it leaves, and that no request names one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import overrides, write_rows

from client_app.bank import train_round
from client_app.facts import BankFacts, bank_facts
from client_app.published import reported
from fedfinlora.compose import compose
from fedfinlora.config.values import build, to_json
from fedfinlora.deployment.bank_settings import BankSettings, read_settings, settings_text
from fedfinlora.errors import ConfigError
from fedfinlora.model.loading import get_session, initial_adapter
from fedfinlora.run.origin import source_fingerprint
from fedfinlora.train.trainer_names import FOLDER_VARIABLE, VARIABLE, NamedTrainer
from fedfinlora.wire.messages import REVEALABLE, BankError, TrainRequest

SCRIPT = """\
def train(task):
    return {name: tensor + 1 for name, tensor in trainable(task.model).items()}


def fails(task):
    raise RuntimeError(str(task.rows[0]))


from fedfinlora.model.adapter import trainable
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> NamedTrainer:
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "script_of_bank.py").write_text(SCRIPT, "utf-8")
    return NamedTrainer("script_of_bank:train", str(folder))


def request(tmp_path: Path, *more: str) -> TrainRequest:
    config = compose(overrides(write_rows(tmp_path / "rows"), tmp_path / "runs", *more))
    session = get_session(config)
    return TrainRequest(config, "run", 1, session.layout.id, source_fingerprint(), initial_adapter(session, config))


def facts(tmp_path: Path, trainer: NamedTrainer) -> BankFacts:
    return BankFacts("bank-0", 0, 2, "", tmp_path / "state", tmp_path / "ledger", trainer=trainer)


def test_its_delta_leaves_and_what_it_does_not_report_does_not(tmp_path: Path, script: NamedTrainer) -> None:
    reply = train_round(request(tmp_path), facts(tmp_path, script))
    assert set(reply.delta.round(6)) == {1.0}
    assert (reply.figures.rows, reply.figures.steps) == (8, 2), "as planned"
    left = reported(reply.figures, REVEALABLE, has_own_trainer=True)
    assert set(REVEALABLE) - set(left) == {"tokens", "answer_tokens", "train_loss"}
    assert reported(reply.figures, REVEALABLE, has_own_trainer=False) == REVEALABLE


def test_what_fails_in_it_leaves_as_a_code_without_text(
    tmp_path: Path, script: NamedTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BankError, match="script_of_bank:fails failed in round 1: RuntimeError at ") as raised:
        train_round(request(tmp_path), facts(tmp_path, script._replace(name="script_of_bank:fails")))
    assert raised.value.code == "trainer"
    assert "prompt_ids" not in str(raised.value)
    assert "script_of_bank:fails" in caplog.text


def test_a_private_round_is_refused_before_rows_are_read(tmp_path: Path, script: NamedTrainer) -> None:
    asked = request(tmp_path, "privacy=example")
    with pytest.raises(BankError, match="A trainer cannot go with privacy=example") as raised:
        train_round(asked, facts(tmp_path, script))
    assert raised.value.code == "trainer"


def test_a_deployed_bank_takes_it_from_its_own_settings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "os:abort")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert bank_facts({"partition-id": 0, "num-partitions": 2}).trainer.name == "os:abort"
    assert bank_facts({"bank": "north", "data-path": str(tmp_path)}).trainer.name == ""
    file = tmp_path / "bank.yaml"
    for own in ("", "script_of_bank:train"):
        file.write_text(settings_text(BankSettings(name="north", data=str(tmp_path), trainer=own)), "utf-8")
        assert read_settings(file)[0].trainer == own
        assert bank_facts({"settings": str(file)}).trainer == NamedTrainer(own, str(tmp_path) if own else "")
    file.write_text(f"name: north\ndata: {tmp_path}\ntrainer: import os\n", "utf-8")
    with pytest.raises(ConfigError, match=r"trainer: 'import os' is not MODULE:FUNCTION"):
        read_settings(file)


def test_a_request_cannot_name_one(tmp_path: Path) -> None:
    import json

    values = json.loads(to_json(compose(["model=tiny-random"])))
    with pytest.raises(ConfigError, match="trainer"):
        build({**values, "trainer": "script_of_bank:train"})
