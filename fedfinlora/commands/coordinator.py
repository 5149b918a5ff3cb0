"""`coordinator`: the aggregator's side of a deployment, on Flower's SuperLink with TLS and known banks only.

Each action prints the Flower command that it runs. Everything lies in one folder (default ~/.fedfinlora/coordinator):
the certificates, the SuperLink's database, the enrolled banks' public keys and certificates, and Flower's own settings;
the authority's private key may lie elsewhere, and may be encrypted.

The SuperLink listens twice. Banks reach Flower's Fleet API at the public address, over mutual TLS. Flower's control and
runtime interfaces, which know no accounts, are on loopback and closed to every other user of the machine
(`fedfinlora.deployment.door`).
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.rows import data_files
from fedfinlora.compose import PROJECT_ROOT, compose
from fedfinlora.config.schema import Config
from fedfinlora.config.words import typed_keys
from fedfinlora.deployment.app_bundle import code_sha256, installed_files
from fedfinlora.deployment.bounded_logs import bounded
from fedfinlora.deployment.certificates import (
    CA_CERTIFICATE,
    CA_KEY,
    LEAST_PASSPHRASE,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    SIGNING_CERTIFICATE,
    SIGNING_KEY,
    Authority,
    check_public_key,
    expiry_words,
    issue_bank,
    issue_server,
    issue_signing,
    make_authority,
    open_authority,
)
from fedfinlora.deployment.flower_link import Link, flower, free_port
from fedfinlora.deployment.following import watch
from fedfinlora.deployment.local_server import close
from fedfinlora.deployment.own_user import check_user
from fedfinlora.deployment.plan import deployment_config, plan_text
from fedfinlora.deployment.run_list import note_run
from fedfinlora.deployment.watching import Listen, watch_coordinator
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import made_as, read_json, write_bytes, write_json
from fedfinlora.model.adapter_folder import check_start, start_files
from fedfinlora.provenance.enrolled import ENROLLED, PUBLIC, SIGNING
from fedfinlora.run.folder import COMMAND_LOCK, SERVER_LOCK, alone_in, hold_run, new_run_folder, read_config
from fedfinlora.run.origin import ORIGIN_FILE, origin_of_this_process
from fedfinlora.run.resuming import check_same
from fedfinlora.system.family import end_family
from fedfinlora.system.locks import check_free
from fedfinlora.system.surroundings import corrected
from fedfinlora.system.web import client_for
from fedfinlora.wire.messages import BANK_NAME
from server_app.witness import WITNESS_VARIABLE

CONNECTION = "coordinator"
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 120.0
SETTINGS = "coordinator.json"
CERTIFICATES = (CA_CERTIFICATE, SERVER_CERTIFICATE, SIGNING_CERTIFICATE)
PASSPHRASE_FILE = "FEDFINLORA_CA_PASSPHRASE_FILE"
"""In the environment: a file whose first line opens ca.key."""


@dataclass(frozen=True)
class Coordinator:
    """A coordinator's folder."""

    home: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        """host, port and names. UserError before `init`."""
        file = self.home / SETTINGS
        if not file.is_file():
            raise UserError(
                f"There is no coordinator in {self.home}. Run `python -m fedfinlora coordinator init` first."
            )
        found: Mapping[str, Any] = read_json(file)
        return found

    @property
    def environment(self) -> dict[str, str]:
        """Of every Flower process: its own settings folder, no downloads, no telemetry."""
        return corrected(os.environ) | {
            "FLWR_HOME": str(self.home / "flwr"),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            # Whole adapters come and go in several threads: give what is freed back to the system instead of keeping it
            # for later.
            "MALLOC_ARENA_MAX": "2",
            "MALLOC_MMAP_THRESHOLD_": str(2**20),
            "MALLOC_TRIM_THRESHOLD_": str(2**20),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    @property
    def banks_file(self) -> Path:
        """Name -> node id of the registered banks."""
        return self.home / "banks.json"

    def link(self, run: Path) -> Link:
        """The running SuperLink, to start and follow runs."""
        return Link(run, self.environment, None, CONNECTION)

    def healthy(self) -> bool:
        """Whether the SuperLink answers over TLS with the certificate of this consortium."""
        import httpx

        context = ssl.create_default_context(cafile=str(self.home / "ca.crt"))
        try:
            with client_for(f"https://{self._address}", 5.0, verify=context) as client:
                return client.get(f"https://{self._address}/health").is_success
        except httpx.HTTPError:
            return False

    @property
    def _address(self) -> str:
        """Where Flower's control interface is."""
        return f"{LOOPBACK}:{self.settings['control_port']}"

    def authority(self, place: AuthorityPlace | None) -> Authority:
        """Opened where it is kept."""
        place = place or AuthorityPlace()
        return open_authority(place.folder or Path(str(self.settings["authority"])), place.passphrase)


@dataclass(frozen=True)
class AuthorityPlace:
    """Where the authority's private key is kept, and how it is opened."""

    folder: Path | None = None
    """None: in the coordinator's folder."""
    passphrase_file: Path | None = None
    """Its first line opens ca.key; None: PASSPHRASE_FILE in the environment, else it is asked for on a terminal."""
    encrypt: bool = False
    """Whether a new ca.key is encrypted though no file has the passphrase: it is then asked for."""

    def passphrase(self) -> bytes:
        """UserError where it is named nowhere and there is no terminal to ask."""
        named = str(self.passphrase_file or os.environ.get(PASSPHRASE_FILE, ""))
        if named:
            try:
                return Path(named).read_bytes().split(b"\n")[0].rstrip(b"\r")
            except OSError as error:
                raise UserError(f"The passphrase of ca.key cannot be read from {named} ({error.strerror}).") from error
        if not sys.stdin.isatty():
            raise UserError(
                "The passphrase of ca.key is asked for on a terminal, or read from --passphrase-file or "
                f"${PASSPHRASE_FILE}."
            )
        return getpass.getpass("passphrase of ca.key: ").encode()

    def new_passphrase(self) -> bytes | None:
        """None where a new ca.key is not to be encrypted. UserError if it was typed twice, and differently."""
        if not (self.encrypt or self.passphrase_file or PASSPHRASE_FILE in os.environ):
            return None
        found = self.passphrase()
        from_file = self.passphrase_file or PASSPHRASE_FILE in os.environ
        if not from_file and getpass.getpass(f"once more, {LEAST_PASSPHRASE} characters or more: ").encode() != found:
            raise UserError("The two passphrases differ. Nothing was made.")
        return found


def init(
    home: Path, hosts: Sequence[str], port: int, listen: str, days: int, place: AuthorityPlace | None = None
) -> int:
    """Make authority, certificates and settings. What is there already is not touched; an authority that `place` names
    and that exists is used.
    """
    if (home / SETTINGS).exists():
        raise UserError(f"{home} is already a coordinator's folder. Nothing was changed.")
    place = place or AuthorityPlace()
    folder = place.folder or home
    if not ((folder / CA_KEY).exists() and folder != home):
        make_authority(folder, 10 * days, place.new_passphrase())
    authority = open_authority(folder, place.passphrase)
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    if folder != home:
        write_bytes(home / CA_CERTIFICATE, (folder / CA_CERTIFICATE).read_bytes())
    names = list(dict.fromkeys([*hosts, "localhost", LOOPBACK, *([] if listen in ("0.0.0.0", "::") else [listen])]))
    issue_server(home, names, days, authority)
    issue_signing(home, days, authority)
    control = free_port()
    write_bytes(
        home / "flwr" / "config.toml",
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{LOOPBACK}:{control}"\n'
        f'root-certificates = "{home / CA_CERTIFICATE}"\n'.encode(),
    )
    (home / "enrolled").mkdir(exist_ok=True)
    settings = {
        "listen": listen,
        "port": port,
        "control_port": control,
        "hosts": names,
        "authority": str(folder.absolute()),
    }
    write_json(home / SETTINGS, settings)
    print(f"coordinator in {home}, for {', '.join(names)}, port {port}")
    print(f"1. give {home / CA_CERTIFICATE} to every bank (its content is public; ca.key stays in {folder})")
    print("2. enroll each bank's node.key.pub, and give it the certificate that this makes:")
    print("   python -m fedfinlora coordinator enroll node.key.pub --name BANK")
    print("3. python -m fedfinlora coordinator start")
    return 0


def enroll(home: Path, key: Path, name: str, days: int = 365, place: AuthorityPlace | None = None) -> int:
    """Take a bank's public key and issue its certificate; it is registered now, or when the coordinator starts."""
    coordinator = Coordinator(home)
    _ = coordinator.settings
    if not BANK_NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} is not a plain name of letters, digits, '.', '_' and '-'.")
    content = check_public_key(key)
    kept = home / "enrolled" / f"{name}.pub"
    if kept.exists() and kept.read_bytes() != content:
        raise UserError(
            f"{name} is enrolled with another key. Revoke it first: python -m fedfinlora coordinator revoke {name}"
        )
    for other in sorted((home / "enrolled").glob("*.pub")):
        if other.stem != name and other.read_bytes().split()[:2] == content.split()[:2]:
            raise UserError(f"This key is already enrolled, as {other.stem}. Every bank needs a key of its own.")
    certificate = kept.with_suffix(".crt")
    issue_bank(certificate, name, content, days, coordinator.authority(place))
    write_bytes(kept, content)
    if coordinator.healthy():
        _register(coordinator)
    else:
        print(f"{name} will be registered when the coordinator starts")
    print(
        f"send {certificate} to the bank (its content is public), which takes it: python -m fedfinlora bank accept "
        f"{certificate.name}"
    )
    return 0


def revoke(home: Path, name: str) -> int:
    """Let a bank in no more: its next request is refused, on an open connection too."""
    coordinator = Coordinator(home)
    kept = home / "enrolled" / f"{name}.pub"
    if not kept.is_file():
        raise UserError(f"No bank {name!r} is enrolled: {', '.join(_enrolled(home)) or 'there is none'}.")
    revoked = f".revoked-{int(time.time())}"
    kept.rename(kept.with_suffix(revoked))  # from here on the door is shut
    with contextlib.suppress(FileNotFoundError):
        kept.with_suffix(".crt").rename(kept.with_suffix(f"{revoked}.crt"))
    if coordinator.healthy():
        _forget_revoked(coordinator)
    print(f"{name} is revoked; what it sends is not accepted any more")
    return 0


def renew(home: Path, days: int, place: AuthorityPlace | None = None) -> int:
    """New certificates of the same authority: the server's, for the same names, the signing key's, and every enrolled
    bank's.
    """
    coordinator = Coordinator(home)
    authority = coordinator.authority(place)
    issue_server(home, [str(host) for host in coordinator.settings["hosts"]], days, authority)
    issue_signing(home, days, authority)
    print(f"{expiry_words(home / SERVER_CERTIFICATE)}. Restart the coordinator to use it.")
    print(expiry_words(home / SIGNING_CERTIFICATE))
    for name in _enrolled(home):
        certificate = home / "enrolled" / f"{name}.crt"
        issue_bank(certificate, name, certificate.with_suffix(".pub").read_bytes(), days, authority)
        print(
            f"{expiry_words(certificate)}. Send it to {name}; until then its old one holds for as long as it is good."
        )
    return 0


def start(home: Path, listen: Listen) -> int:
    """Run the SuperLink in the foreground until it is ended by SIGTERM or Ctrl-C; register enrolled banks as soon as it
    answers.

    Metrics and the status page are served as `listen` says. UserError that says who runs it where the coordinator runs
    already.
    """
    _ = Coordinator(home).settings
    check_user()
    with alone_in(home, f"The coordinator {home}"), bounded(home / "superlink.log"):
        return _serve(home, listen)


def _serve(home: Path, listen: Listen) -> int:
    coordinator = Coordinator(home)
    settings = coordinator.settings
    for name in CERTIFICATES:
        print(expiry_words(home / name))
    command = [
        *flower("superlink"), "--ssl-ca-certfile", str(home / CA_CERTIFICATE), "--ssl-certfile",
            str(home / SERVER_CERTIFICATE), "--ssl-keyfile",
        str(home / SERVER_KEY), "--enable-supernode-auth", "--host", LOOPBACK, "--port", str(settings["control_port"]),
            "--database",
        str(home / "state.db"), "--isolation", "subprocess", "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    print(shlex.join([Path(command[0]).name, *command[1:]]), flush=True)
    watching = watch_coordinator(home, str(settings["hosts"][0]), coordinator.healthy, listen)
    with open(home / "superlink.log", "ab") as log:
        own = {
            ENROLLED: str(coordinator.banks_file),
            SIGNING: str(home / SIGNING_KEY),
            WITNESS_VARIABLE: str(home / "witness"),
            PUBLIC: f"{settings['listen']}:{settings['port']}",
        }
        environment = coordinator.environment | own
        process = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not coordinator.healthy():
            if process.poll() is not None:
                raise UserError(f"The SuperLink ended with status {process.returncode}; see {home / 'superlink.log'}.")
            if time.monotonic() > deadline:
                raise UserError(
                    f"The SuperLink did not answer within {START_TIMEOUT_S:g} s; see {home / 'superlink.log'}."
                )
            time.sleep(0.2)
        _register(coordinator)
        print(f"coordinator is up on port {settings['port']}", flush=True)
        status = process.wait()
        raise UserError(f"The SuperLink ended with status {status}; see {home / 'superlink.log'}.")
    except KeyboardInterrupt:
        print("coordinator ended", flush=True)
        return 0
    finally:
        close(watching)
        end_family(process)


def status(home: Path) -> int:
    """Certificates, the hash of the code that a run sends to the banks, banks and runs; 0 when the SuperLink
    answers.
    """
    coordinator = Coordinator(home)
    _ = coordinator.settings
    for name in CERTIFICATES:
        print(expiry_words(home / name))
    for name in _enrolled(home):
        print(expiry_words(home / "enrolled" / f"{name}.crt"))
    print(f"code {code_sha256(installed_files())}")
    if not coordinator.healthy():
        print("coordinator: NOT RUNNING")
        return 1
    print("coordinator: up")
    nodes = _nodes(coordinator)
    for name in _enrolled(home):
        print(f"bank {name}: {nodes.get(name, {}).get('status', 'not registered')}")
    answer = coordinator.link(home).flwr("ls", CONNECTION)
    for run in answer.get("runs", []):
        print(f"run {run['run-id']}: {run['status']}")
    return 0


def plan(home: Path, overrides: Sequence[str], out: Path | None, min_banks: int) -> int:
    """Write what `run` with these words would ask of each bank, for `bank try`; nothing is started. On the terminal
    where no file is named.
    """
    banks = min_banks or (len(_enrolled(home)) if (home / SETTINGS).is_file() else 0)
    text, said = plan_text(overrides, banks)
    for sentence in said:
        print(sentence, file=sys.stderr)
    if out is None:
        print(text, end="")
        return 0
    write_bytes(out, text.encode())
    print(f"plan: {out}. Give it to the banks: python -m fedfinlora bank try {out.name}")
    return 0


def run(home: Path, overrides: Sequence[str], min_banks: int) -> int:
    """Start a run with every bank that is connected, and follow it; 0 only when it completes.

    Ctrl-C ends the display, not the run: it continues at the coordinator, and `flwr stop` ends it.
    """
    coordinator = Coordinator(home)
    if not coordinator.healthy():
        raise UserError("The coordinator is not running. Start it: python -m fedfinlora coordinator start")
    banks = min_banks or len(_enrolled(home))
    if not banks:
        raise UserError("No bank is enrolled: python -m fedfinlora coordinator enroll node.key.pub --name BANK")
    config, said = (compose(overrides), []) if "resume" in typed_keys(overrides) else deployment_config(overrides)
    for sentence in said:
        print(sentence, flush=True)
    if config.resume:
        folder = Path(config.resume)
        config = replace(read_config(folder), resume=config.resume, resume_anyway=config.resume_anyway)
        check_same(folder, config, data_files(config) | start_files(config))
    else:
        check_start(config)
        folder = new_run_folder(config)
        strategy = replace(config.strategy, min_banks=config.strategy.min_banks or banks)
        config = replace(config, run_name=folder.name, overwrite=False, banks=banks, strategy=strategy)
    with hold_run(folder, COMMAND_LOCK), made_as(folder):
        check_free(folder / SERVER_LOCK, f"The run {folder}")
        return _run_in(folder, coordinator, config)


def _run_in(folder: Path, coordinator: Coordinator, config: Config) -> int:
    home = coordinator.home
    if not config.resume and not config.strategy.deadline_s:
        print(
            "warning: with strategy.deadline_s=0 a round waits for ever for an answer that was lost on its way",
            file=sys.stderr,
        )
    print(f"run folder: {folder}", flush=True)
    write_json(folder / ORIGIN_FILE, origin_of_this_process())
    note_run(home, folder)
    link = coordinator.link(folder)
    run_id = link.start(config)
    print(
        f"flwr run {PROJECT_ROOT} {CONNECTION} --run-config {folder / 'state' / 'run-config.toml'}  (run {run_id})",
        flush=True,
    )
    try:
        watch(link, folder, run_id)
    except UserError as error:
        raise UserError(f"{error} {_how_to_resume(coordinator, folder)}") from error
    except KeyboardInterrupt:
        stop = f"FLWR_HOME={home / 'flwr'} flwr stop {run_id} {CONNECTION}"
        print(f"\nThe run continues without you, in {folder}. To end it: {stop}", file=sys.stderr)
        return 1
    result = read_json(folder / "result.json")
    if result["status"] != "completed":
        raise UserError(f"{result['reason']} {_how_to_resume(coordinator, folder)}")
    return 0


def _how_to_resume(coordinator: Coordinator, folder: Path) -> str:
    first = "" if coordinator.healthy() else "The coordinator is not running: start it again. "
    return f"{first}Resume with: python -m fedfinlora coordinator run resume={folder}"


def _register(coordinator: Coordinator) -> None:
    """Register every enrolled key that the SuperLink does not know yet, and keep its node id by the bank's name."""
    _forget_revoked(coordinator)
    known, ids = _nodes(coordinator), _ids(coordinator.home)
    for name in _enrolled(coordinator.home):
        if name not in known:
            key = coordinator.home / "enrolled" / f"{name}.pub"
            ids[name] = str(
                _tell(coordinator, "supernode", "register", str(key), CONNECTION, "--name", name)["node-id"]
            )
            write_json(coordinator.banks_file, ids)
            print(f"bank {name} is registered", flush=True)


def _forget_revoked(coordinator: Coordinator) -> None:
    """Take the nodes of revoked banks from the SuperLink."""
    ids, known = _ids(coordinator.home), _nodes(coordinator)
    for name in sorted(set(ids) - set(_enrolled(coordinator.home))):
        if name in known:
            _tell(coordinator, "supernode", "unregister", str(known[name]["node-id"]), CONNECTION)
        del ids[name]
        write_json(coordinator.banks_file, ids)


def _nodes(coordinator: Coordinator) -> dict[str, dict[str, Any]]:
    """Name -> what the SuperLink says of each registered bank."""
    answer = coordinator.link(coordinator.home).flwr("supernode", "ls", CONNECTION)
    by_id = {str(node["node-id"]): node for node in answer.get("nodes", [])}
    return {name: by_id[node] for name, node in _ids(coordinator.home).items() if node in by_id}


def _ids(home: Path) -> dict[str, str]:
    """Name -> node id of the registered banks."""
    file = Coordinator(home).banks_file
    return dict(read_json(file)) if file.is_file() else {}


def _tell(coordinator: Coordinator, *words: str) -> dict[str, Any]:
    print(shlex.join(["flwr", *words]), flush=True)
    answer: dict[str, Any] = coordinator.link(coordinator.home).flwr(*words)
    return answer


def _enrolled(home: Path) -> list[str]:
    return sorted(file.stem for file in (home / "enrolled").glob("*.pub"))
