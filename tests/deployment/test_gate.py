"""What a bank lets run: the comparison of an app bundle with the installed code, hostile archives, and Flower's own
code behind the gate.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import HTTPException
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.cli.archive_utils import safe_extract_zip
from flwr.cli.build import build_fab_from_files
from flwr.cli.install import install_from_fab
from flwr.common.constant import APP_DIR, FAB_HASH_TRUNCATION, FAB_MAX_SIZE, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab, GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesResponse,
    RegisterNodeFleetResponse,
    UnregisterNodeFleetResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse, PushObjectResponse
from flwr.proto.run_pb2 import GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode import start_client_internal
from flwr.supernode.cli.flower_supernode import (
    _parse_args_run_supernode,
    _try_obtain_trusted_entities,
    _validate_public_keys_ed25519,
)
from flwr.supernode.nodestate import NodeStateFactory
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfinlora.compose import PROJECT_ROOT
from fedfinlora.deployment import flower
from fedfinlora.deployment import gate as gate_module
from fedfinlora.deployment.app_bundle import (
    LIST,
    MOST_BYTES,
    RefusedBundle,
    code_sha256,
    first_difference,
    installed_files,
    lean_copy,
    read_bundle,
)
from fedfinlora.deployment.bank_settings import BankSettings, settings_text
from fedfinlora.deployment.gate import Gate, gated, installed_only
from fedfinlora.deployment.policy import Policy
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.privacy.history import history_file, read_history

APP, RUN_ID = ("fedfinlora/fedfinlora", "0.1.0"), 77
Sources = dict[str, bytes]
Change = Callable[[Sources], object]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def installed() -> Sources:
    """What an aggregator with the bank's own code would build its bundle of."""
    return {name: (PROJECT_ROOT / name).read_bytes() for name in installed_files()}


def built(sources: Sources, change: Change = lambda sources: None) -> bytes:
    """What `flwr build` makes of the sources after a change."""
    changed = dict(sources)
    change(changed)
    return build_fab_from_files(changed)[0]


class Bank:
    """A bank's folder and its gate."""

    def __init__(self, home: Path, *code: str) -> None:
        self.home = home
        self.allows(*code)
        self.gate = Gate(home)

    def allows(self, *code: str) -> None:
        own = BankSettings(name="north", data="/rows", coordinator="host:1", policy=Policy(code=code))
        (self.home / "bank.yaml").write_text(settings_text(own), "utf-8")

    def lets_in(self, content: bytes, app: tuple[str, str] = APP) -> bool:
        return self.gate.judges(content, sha256(content), app, RUN_ID, 3) is not None

    @property
    def said(self) -> list[str]:
        """Why bundles were refused, in its history."""
        lines = read_history(history_file(self.home / "state", "north"))
        assert {(line["run"], line["round"], line["outcome"], line["code"]) for line in lines} <= {
            ("77", 3, "refused", "policy-code")
        }
        return [line["detail"] for line in lines]


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(tmp_path)


def other_line(sources: Sources) -> None:
    sources["client_app/app.py"] += b"import os\n"


def other_clientapp(sources: Sources) -> None:
    sources["pyproject.toml"] = sources["pyproject.toml"].replace(b"client_app.app:app", b"server_app.app:app")


def another_publisher(sources: Sources) -> None:
    sources["pyproject.toml"] = sources["pyproject.toml"].replace(
        b'publisher = "fedfinlora"', b'publisher = "somebody"'
    )


def a_module_more(sources: Sources) -> None:
    sources["torch/__init__.py"] = b""
    sources["pyproject.toml"] = sources["pyproject.toml"].replace(b'"/LICENSE", ', b'"/LICENSE", "torch/*.py", ')


class TestComparison:
    def test_what_is_installed_is_let_in(self, bank: Bank, installed: Sources) -> None:
        assert bank.lets_in(built(installed))
        assert bank.said == []

    def test_comments_and_order_in_pyproject_are_flowers_to_lose(self, bank: Bank, installed: Sources) -> None:
        def rewritten(sources: Sources) -> None:
            sources["pyproject.toml"] = b"# read me\n" + sources["pyproject.toml"].replace(
                b"[tool.", b"\n# and me\n[tool."
            )

        assert b"SuperLink may install" not in built(installed)
        assert bank.lets_in(built(installed, rewritten))

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (other_line, "client_app/app.py differs"),
            (lambda sources: sources.update({"conf/peft/other.yaml": b"rank: 8"}),
                "conf/peft/other.yaml is not installed here"),
            (lambda sources: sources.update({"data/sample/train/fpb_train.jsonl": b""}),
                "data/sample/train/fpb_train.jsonl differs"),
            (lambda sources: sources.update({"client_app/os.py": b""}), "client_app/os.py is not installed here"),
            (lambda sources: sources.pop("fedfinlora/wire/messages.py"), "fedfinlora/wire/messages.py is missing"),
            (lambda sources: sources.pop("README.md") and sources.update({"README.md": b""}), "README.md differs"),
            (other_clientapp, "pyproject.toml differs"),
            (another_publisher, "pyproject.toml differs"),
            (a_module_more, "pyproject.toml differs"),
        ],
    )  # fmt: skip
    def test_any_other_file_is_refused_by_name(
        self, bank: Bank, installed: Sources, change: Change, named: str
    ) -> None:
        assert not bank.lets_in(built(installed, change))
        [said] = bank.said
        assert said.startswith(named)

    def test_a_listed_hash_lets_that_bundle_in_and_no_other(self, tmp_path: Path, installed: Sources) -> None:
        content = built(installed, other_line)
        bank = Bank(tmp_path, code_sha256(read_bundle(content, sha256(content))))
        assert bank.lets_in(content)
        assert not bank.lets_in(built(installed))
        assert not bank.lets_in(
            built(installed, lambda sources: (other_line(sources), sources.pop("eval/scoring/parsers.py", b"")))
        )
        assert "which the policy does not list" in bank.said[0]

    def test_the_history_tells_the_hash_that_would_have_to_be_listed(self, bank: Bank, installed: Sources) -> None:
        content = built(installed, other_line)
        assert not bank.lets_in(content)
        bank.allows(bank.said[0].rpartition("(code ")[2].rstrip(")"))
        assert bank.lets_in(content), "the policy is read again for each bundle"
        bank.allows()
        assert not bank.lets_in(content)

    def test_a_bank_without_a_readable_policy_lets_nothing_in(self, bank: Bank, installed: Sources) -> None:
        (bank.home / "bank.yaml").write_text("name: [")
        assert not bank.lets_in(built(installed))
        assert "is not YAML" in bank.said[0]

    def test_a_gate_that_fails_lets_nothing_in(
        self, bank: Bank, installed: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*arguments: object) -> None:
            raise RecursionError("too deep")

        monkeypatch.setattr(gate_module, "read_bundle", broken)
        assert not bank.lets_in(built(installed))
        assert bank.said == ["the gate failed (RecursionError); see supernode.log"]

    def test_a_refusal_that_cannot_be_written_down_is_one(self, bank: Bank, installed: Sources) -> None:
        (bank.home / "state").write_text("in the way")
        assert not bank.lets_in(built(installed, other_line))
        assert bank.lets_in(built(installed))

    def test_the_bundle_runs_under_its_own_name_only(self, bank: Bank, installed: Sources) -> None:
        """Flower makes a folder's name of what the aggregator calls the app."""
        assert not bank.lets_in(built(installed), ("fedfinlora/fedfinlora", "0.1.0/../../../../../tmp/x"))
        assert not bank.lets_in(built(installed), ("somebody/fedfinlora", "0.1.0"))

    def test_a_bundle_whose_hash_begins_like_that_of_another_is_refused(
        self, bank: Bank, installed: Sources, monkeypatch: Any
    ) -> None:
        """Flower would run the one that is installed already."""
        monkeypatch.setattr(gate_module, "HASH_DIGITS", 0)
        assert bank.lets_in(built(installed))
        assert bank.lets_in(built(installed))
        assert not bank.lets_in(built(installed) + b"\n")
        assert "begins alike" in bank.said[-1]

    def test_a_project_that_makes_no_bundle_is_reported(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="No app bundle"):
            installed_files(tmp_path)

    def test_a_policy_lists_whole_hashes(self) -> None:
        with pytest.raises(ConfigError, match="64 digits"):
            Policy(code=("abc",))

    def test_files_that_trade_their_contents_have_another_hash(self) -> None:
        assert code_sha256({"a": b"x", "b": b"y"}) != code_sha256({"a": b"y", "b": b"x"})
        assert code_sha256({"a": b"x", "b": b"y"}) == code_sha256({"b": b"y", "a": b"x"})
        assert first_difference({"a": b"x"}, {"a": b"x"}) == ""


# --- archives that are not as `flwr build` makes them ---------------------------------------------

PROJECT = b"""[project]
name = "p"
version = "1"
[tool.flwr.app]
publisher = "x"
"""
Entries = list[tuple[str | zipfile.ZipInfo, bytes]]


def packed(*more: tuple[str | zipfile.ZipInfo, bytes], reported: str | None = None, compressed: bool = False) -> bytes:
    """A bundle of a project with one module and `more`, whose list says `reported`."""
    entries: Entries = [("pyproject.toml", PROJECT), ("a.py", b"pass"), *more]
    names = [entry if isinstance(entry, str) else entry.filename for entry, _ in entries]
    lines = [f"{name},{sha256(data)},{8 * len(data)}" for name, (_, data) in zip(names, entries, strict=True)]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
        archive.writestr(LIST, "\n".join(lines) if reported is None else reported)
    return stream.getvalue()


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    """An entry of a name that zipfile itself would put right, or of another kind."""
    made = zipfile.ZipInfo("x")
    made.filename = made.orig_filename = name
    made.external_attr = mode << 16
    return made


def lying(content: bytes, **fields: int) -> bytes:
    """The archive with another figure in the central directory's entry of a.py: its size at 24, packed at 20 (4 bytes
    each).
    """
    changed = bytearray(content)
    start = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    for place, value in fields.items():
        at = start + int(place.removeprefix("at_"))
        changed[at : at + 4] = value.to_bytes(4, "little")
    return bytes(changed)


class TestArchive:
    def test_a_valid_one_is_read(self) -> None:
        content = packed(("b/c.yaml", b"d: 1"))
        files = read_bundle(content, sha256(content))
        assert set(files) == {"pyproject.toml", "a.py", "b/c.yaml"}
        assert files["b/c.yaml"] == b"d: 1"

    @pytest.mark.parametrize("name", [
        "../a.py", "b/../../a.py", "..", ".", "./a.py", "b/./a.py", "b//a.py", "/etc/cron.d/x", "//host/x", "b\\a.py",
        "C:/a.py", "b/", "",
        "a.py\0.txt", "b c.py", "ä.py", "\x1b[2Jx.py", "a" * 256,
    ])  # fmt: skip
    def test_names_that_are_no_plain_relative_path_are_refused(self, name: str) -> None:
        content = packed((entry(name), b""))
        with pytest.raises(RefusedBundle, match="no plain relative path") as refusal:
            read_bundle(content, sha256(content))
        assert str(refusal.value).isprintable()
        assert str(refusal.value).isascii()

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_a_name_twice_is_refused(self) -> None:
        content = packed(("a.py", b"import os"))
        with pytest.raises(RefusedBundle, match=r"'a\.py' is in it twice"):
            read_bundle(content, sha256(content))

    @pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO])
    def test_links_and_other_kinds_are_refused(self, kind: int) -> None:
        content = packed((entry("link", kind | 0o777), b"/etc/passwd"))
        with pytest.raises(RefusedBundle, match="no plain file"):
            read_bundle(content, sha256(content))

    def test_a_bomb_is_refused_before_it_is_opened(self) -> None:
        content = packed(("zeros.py", bytes(2**26)), compressed=True)
        assert len(content) < 2**17
        with pytest.raises(RefusedBundle, match="is compressed"):
            read_bundle(content, sha256(content))

    def test_files_that_share_their_bytes_are_refused(self) -> None:
        """The sizes of two entries reach over the whole archive."""
        content = packed()
        content = lying(content, at_20=len(content), at_24=len(content))
        with pytest.raises(RefusedBundle, match="more bytes than it has itself"):
            read_bundle(content, sha256(content))

    @pytest.mark.parametrize("reported", ["", "/etc/passwd,00,0", "a.py,00,0", "no list", "\xff"])
    def test_a_list_that_is_not_that_of_the_files_is_refused(self, reported: str) -> None:
        """Flower would look at the file that it names, wherever that is, and answer whether it has the hash."""
        content = packed(reported=reported)
        with pytest.raises(RefusedBundle, match="not the list"):
            read_bundle(content, sha256(content))

    @pytest.mark.parametrize(
        "content", [b"", b"PK\x05\x06", b"no archive" * 100, packed()[:-30]], ids=["empty", "end", "text", "cut"]
    )
    def test_what_is_no_archive_is_refused(self, content: bytes) -> None:
        with pytest.raises(RefusedBundle, match="cannot be read"):
            read_bundle(content, sha256(content))

    def test_a_bundle_that_is_too_large_or_not_the_one_asked_for_is_refused(self) -> None:
        with pytest.raises(RefusedBundle, match="more than 10,485,760"):
            read_bundle(bytes(MOST_BYTES + 1), "")
        with pytest.raises(RefusedBundle, match="whose hash"):
            read_bundle(packed(), sha256(b""))

    @given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
    @settings(deadline=None, max_examples=300)
    def test_flower_unpacks_what_was_read_and_nothing_else(self, changes: list[tuple[int, int]]) -> None:
        """For all changed bytes: if the gate can read it, Flower's own unpacking gives the same files."""
        from tempfile import TemporaryDirectory

        content = bytearray(packed(("b/c.py", b"import a")))
        for place, value in changes:
            content[place % len(content)] = value
        try:
            files = dict(read_bundle(bytes(content), sha256(content)))
        except RefusedBundle:
            return
        with TemporaryDirectory() as folder:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                safe_extract_zip(archive, Path(folder))
            found = {
                file.relative_to(folder).as_posix(): file.read_bytes()
                for file in Path(folder).rglob("*")
                if file.is_file()
            }
        del found[LIST]
        assert tomllib.loads(found.pop("pyproject.toml").decode())
        del files["pyproject.toml"]
        assert found == files


# --- Flower's code behind the gate ----------------------------------------------------------------


class SuperLink:
    """Flower's client of a SuperLink that asks for one round of a run with a bundle."""

    content = b""
    confirmed: list[str]
    """Messages that the bank has said to have."""
    answers: list[Message]
    pushed: list[bytes]
    """Contents of the objects of its answers."""

    @classmethod
    def from_server_address(cls, *arguments: Any, **options: Any) -> Any:
        return cls()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def ActivateNode(self, request: Any) -> Any:
        return ActivateNodeResponse(node_id=5)

    def DeactivateNode(self, request: Any) -> Any:
        return DeactivateNodeResponse()

    def RegisterNode(self, request: Any) -> Any:
        return RegisterNodeFleetResponse()

    def UnregisterNode(self, request: Any) -> Any:
        return UnregisterNodeFleetResponse()

    def SendNodeHeartbeat(self, request: Any) -> Any:
        return SendNodeHeartbeatResponse(success=True)

    def PullMessages(self, request: Any) -> Any:
        metadata = Metadata(
            run_id=RUN_ID, message_id="", src_node_id=1, dst_node_id=5, reply_to_message_id="", group_id="3",
            created_at=time.time(), ttl=600.0,
            message_type="train",
        )  # fmt: skip
        message = make_message(metadata=metadata, content=RecordDict({"request": ConfigRecord({"x": 1})}))
        message.metadata.__dict__["_message_id"] = message.object_id
        self.objects = {each: found.deflate() for each, found in get_all_nested_objects(message).items()}
        proto = message_to_proto(remove_content_from_message(message))
        return PullMessagesResponse(messages_list=[proto], message_object_trees=[get_object_tree(message)])

    def GetRun(self, request: Any) -> Any:
        run = Run(run_id=RUN_ID, fab_id=APP[0], fab_version=APP[1], fab_hash=sha256(self.content), series_id=1)
        return GetRunResponse(run=run)

    def GetFab(self, request: Any) -> Any:
        return GetFabResponse(
            fab=Fab(hash_str=request.hash_str, content=self.content, verifications={"valid_license": "yes", "me": "{}"})
        )

    def PullObject(self, request: Any) -> Any:
        return PullObjectResponse(
            object_found=True, object_available=True, object_content=self.objects[request.object_id]
        )

    def PushMessages(self, request: Any) -> Any:
        self.answers.extend(message_from_proto(message) for message in request.messages_list)
        wanted = [each.object_id for each in request.message_object_trees]
        return PushMessagesResponse(objects_to_push=wanted, session_id="s")

    def PushObject(self, request: Any) -> Any:
        self.pushed.append(request.object_content)
        return PushObjectResponse(stored=True)

    def ConfirmMessageReceived(self, request: Any) -> Any:
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


def superlink(content: bytes, **more: Any) -> type[Any]:
    """A class of its own, so that each test has its own lists."""
    return type(
        "OneSuperLink", (SuperLink,), {"content": content, "confirmed": [], "answers": [], "pushed": [], **more}
    )


@contextmanager
def connected(client: type[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Flower's own connection, through a client."""
    connection: Any = import_module("flwr.supernode.fleet_http_connection")
    monkeypatch.setattr(connection, "FleetHttpClient", client)
    with connection.http_request_response("host:1", True) as found:
        yield found


class Node:
    """The state of Flower's SuperNode after it has taken one message, started with the options that the gate gives."""

    def __init__(self, client: type[Any], bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
        stores = ObjectStoreFactory()
        self.state = NodeStateFactory(objectstore_factory=stores).state()
        self.state.set_node_id(5)
        monkeypatch.setenv("FLWR_HOME", str(bank.home / "flwr"))
        trusted = _try_obtain_trusted_entities(
            _parse_args_run_supernode().parse_args(bank.gate.begins()).trusted_entities
        )
        assert trusted
        _validate_public_keys_ed25519(trusted)
        with connected(client, monkeypatch) as (_, receive, send, get_run, get_fab, pull_object, push_object, confirm):
            start_client_internal._pull_and_store_message(
                self.state,
                stores.store(),
                {},
                receive,
                get_run,
                get_fab,
                pull_object,
                confirm,
                trusted_entities=trusted,
            )
            if not self.has(client.content):
                start_client_internal._push_messages(self.state, stores.store(), send, push_object)
        self.errors = [message.error.code for message in client.answers]
        self.reported = b"".join(client.pushed)

    def has(self, content: bytes) -> bool:
        """Whether anything could run of a bundle: a process gets it from here."""
        known = self.state.get_run(RUN_ID) is not None
        assert known == (self.state.get_fab(sha256(content)) is not None)
        return known


class TestBehindTheGate:
    """These fail where a new Flower takes another way than the one on which the gate relies."""

    def test_what_the_gate_lets_in_is_run(
        self, bank: Bank, installed: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = superlink(built(installed))
        node = Node(gated(client, bank.gate), bank, monkeypatch)
        assert node.has(client.content)
        assert node.errors == []
        assert bank.said == []

    def test_what_it_refuses_is_answered_and_not_kept(
        self, bank: Bank, installed: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = superlink(built(installed, other_line))
        node = Node(gated(client, bank.gate), bank, monkeypatch)
        assert not node.has(client.content)
        assert node.errors == [ErrorCode.INVALID_FAB]
        assert b"The FAB could not be verified." in node.reported
        assert b"client_app" not in node.reported
        assert str(bank.home).encode() not in node.reported
        assert len(client.confirmed) == 1
        assert len(bank.said) == 1

    def test_what_it_has_not_seen_is_refused(
        self, bank: Bank, installed: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if Flower got bundles by another way: they have no signature, even one with what is installed."""
        client = superlink(built(installed))
        node = Node(client, bank, monkeypatch)
        assert not node.has(client.content)
        assert node.errors == [ErrorCode.INVALID_FAB]

    def test_a_signature_is_for_one_bundle_and_one_start(
        self, bank: Bank, installed: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = built(installed)
        signature = bank.gate.judges(honest, sha256(honest), APP, RUN_ID, 3)

        def replayed(content: bytes) -> type[Any]:
            def get_fab(self: Any, request: Any) -> Any:
                return GetFabResponse(fab=Fab(hash_str=request.hash_str, content=content, verifications=signature))

            return superlink(content, GetFab=get_fab)

        assert Node(replayed(honest), bank, monkeypatch).has(honest)
        assert not Node(replayed(honest + b"\n"), bank, monkeypatch).has(honest + b"\n")
        assert not Node(replayed(honest), Bank(bank.home), monkeypatch).has(honest)

    def test_apps_that_were_installed_before_are_removed(
        self, bank: Bank, installed: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FLWR_HOME", str(bank.home / "flwr"))
        content = built(installed)
        folder = install_from_fab(content, skip_prompt=True)
        assert folder.parent == bank.home / "flwr" / gate_module.APPS
        assert folder.name.endswith(f".{sha256(content)[: gate_module.HASH_DIGITS]}")
        bank.gate.begins()
        assert not folder.exists()
        bank.gate.begins()

    def test_flowers_own_figures_are_those_that_the_gate_rests_on(self) -> None:
        assert (gate_module.APPS, gate_module.HASH_DIGITS) == (APP_DIR, FAB_HASH_TRUNCATION)
        assert FAB_MAX_SIZE == MOST_BYTES

    def test_bank_start_puts_the_gate_there(
        self, bank: Bank, installed: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The whole of `flower.py supernode` but for Flower's main loop."""
        connection: Any = import_module("flwr.supernode.fleet_http_connection")
        for name in ("make_simple_http_retry_invoker", "HEARTBEAT_DEFAULT_INTERVAL"):
            monkeypatch.setattr(connection, name, getattr(connection, name))
        monkeypatch.setattr(uvicorn, "Server", uvicorn.Server)
        honest, other = (superlink(built(installed, change)) for change in (lambda sources: None, other_line))
        found: list[bytes] = []

        def flower_supernode() -> None:
            assert _try_obtain_trusted_entities(_parse_args_run_supernode().parse_args().trusted_entities)
            client = connection.FleetHttpClient()
            client.GetRun(None)
            fab = client.GetFab(GetFabRequest(hash_str=sha256(client.content), run_id=RUN_ID)).fab
            assert "me" not in fab.verifications, "the aggregator's own word is taken away"
            found.append(fab.content)

        monkeypatch.setattr(import_module("flwr.supernode.cli.flower_supernode"), "flower_supernode", flower_supernode)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("FLWR_HOME", str(bank.home / "flwr"))
        monkeypatch.chdir(bank.home)
        for client in (honest, other):
            monkeypatch.setattr(sys, "argv", ["flower-supernode"])
            monkeypatch.setattr(connection, "FleetHttpClient", client)
            flower.supernode()
        assert found == [honest.content, b""]

    def test_a_round_is_in_the_history_as_flower_has_it(self, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
        client = gated(superlink(b"x"), bank.gate)()
        client.PullMessages(PullMessagesRequest())
        client.GetFab(GetFabRequest(hash_str="", run_id=RUN_ID))
        assert bank.said == ["it is not the bundle whose hash the run names"]


class TestCoordinatorsGate:
    """What `flower.py superlink` puts before Flower's way to start a run."""

    def start(self, content: bytes) -> list[Any]:
        """What came through to Flower."""
        started: list[Any] = []
        installed_only(lambda request, *_: started.append(request))(
            StartRunRequest(fab=Fab(content=content)), None, None
        )
        return started

    def test_what_is_installed_is_started(self, installed: Sources) -> None:
        assert len(self.start(built(installed))) == 1

    @pytest.mark.parametrize("change", [other_line, a_module_more])
    def test_anything_else_is_refused_by_name(self, installed: Sources, change: Callable[[Sources], Any]) -> None:
        with pytest.raises(HTTPException, match="only the code that is installed") as refusal:
            self.start(built(installed, change))
        assert refusal.value.status_code == 403

    @pytest.mark.parametrize("content", [b"", b"no bundle"])
    def test_an_app_of_flowers_hub_and_what_is_no_bundle_are_refused(self, content: bytes) -> None:
        with pytest.raises(HTTPException, match="cannot be read"):
            self.start(content)


def test_every_module_is_in_the_bundle() -> None:
    """Flower leaves out what looks like a test by its name, such as `self_test.py`."""
    modules = [file for folder in ("fedfinlora", "data", "eval", "client_app", "server_app")
               for file in (PROJECT_ROOT / folder).rglob("*.py")]  # fmt: skip
    assert not {file.relative_to(PROJECT_ROOT).as_posix() for file in modules} - set(installed_files())


def test_the_bundle_of_the_lean_copy_is_the_checkouts(tmp_path: Path) -> None:
    """To the byte, though nothing else of the checkout is looked at."""
    from flwr.cli.build import build_fab_from_disk

    names = [*installed_files(), ".gitignore"]
    for name in names:
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_bytes((PROJECT_ROOT / name).read_bytes())
    (tmp_path / "project" / ".venv").mkdir()
    (tmp_path / "project" / ".venv" / "large.py").write_text("x = 1\n")
    with lean_copy(tmp_path / "project") as copy:
        assert {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()} == set(names)
        assert build_fab_from_disk(copy) == build_fab_from_disk(tmp_path / "project")
    assert not copy.exists()
    (tmp_path / "project" / "pyproject.toml").write_text("[tool]\n")
    with pytest.raises(UserError, match="No app bundle can be made"), lean_copy(tmp_path / "project"):
        pass


def test_a_full_disk_for_the_copy_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UserError, match="set TMPDIR to a folder that has some"), lean_copy():
        pass
