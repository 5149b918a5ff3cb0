"""`coordinator init|enroll|revoke|renew`: the authority, its certificates, and which banks may take part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from fedfinlora.deployment.bank_keys import check_public_key
from fedfinlora.deployment.certificates import (
    CA_CERTIFICATE,
    CA_KEY,
    SERVER_CERTIFICATE,
    SIGNING_CERTIFICATE,
    expiry_words,
    issue_bank,
    issue_server,
    issue_signing,
    make_authority,
    open_authority,
)
from fedfinlora.deployment.coordinator_home import (
    CONNECTION,
    LOOPBACK,
    SETTINGS,
    AuthorityPlace,
    Coordinator,
    enrolled,
    forget_revoked,
    register,
)
from fedfinlora.deployment.flower_link import free_port
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import write_bytes, write_json
from fedfinlora.wire.messages import BANK_NAME


def init(
    home: Path, hosts: Sequence[str], port: int, listen: str, days: int, place: AuthorityPlace | None = None
) -> int:
    """Make authority, certificates and settings; an authority that `place` names and that exists is used."""
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
        register(coordinator)
    else:
        print(f"{name} will be registered when the coordinator starts")
    print(
        f"send {certificate} to the bank (its content is public), which takes it: python -m fedfinlora bank accept "
        f"{certificate.name}"
    )
    return 0


def revoke(home: Path, name: str) -> int:
    """A revoked bank's next request is refused, on an open connection too."""
    coordinator = Coordinator(home)
    kept = home / "enrolled" / f"{name}.pub"
    if not kept.is_file():
        raise UserError(f"No bank {name!r} is enrolled: {', '.join(enrolled(home)) or 'there is none'}.")
    revoked = f".revoked-{int(time.time())}"
    kept.rename(kept.with_suffix(revoked))  # from here on the door is shut
    with contextlib.suppress(FileNotFoundError):
        kept.with_suffix(".crt").rename(kept.with_suffix(f"{revoked}.crt"))
    if coordinator.healthy():
        forget_revoked(coordinator)
    print(f"{name} is revoked; what it sends is not accepted any more")
    return 0


def renew(home: Path, days: int, place: AuthorityPlace | None = None) -> int:
    """New certificates for the server, the signing key and every enrolled bank."""
    coordinator = Coordinator(home)
    authority = coordinator.authority(place)
    issue_server(home, [str(host) for host in coordinator.settings["hosts"]], days, authority)
    issue_signing(home, days, authority)
    print(f"{expiry_words(home / SERVER_CERTIFICATE)}. Restart the coordinator to use it.")
    print(expiry_words(home / SIGNING_CERTIFICATE))
    for name in enrolled(home):
        certificate = home / "enrolled" / f"{name}.crt"
        issue_bank(certificate, name, certificate.with_suffix(".pub").read_bytes(), days, authority)
        print(
            f"{expiry_words(certificate)}. Send it to {name}; until then its old one holds for as long as it is good."
        )
    return 0
