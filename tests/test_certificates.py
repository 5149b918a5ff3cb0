"""Authority, server certificate and node keys: what they hold, who may read them, and what is refused."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedfinlora.deployment.certificates import (
    check_public_key,
    days_left,
    expiry_words,
    issue_server,
    make_authority,
    make_node_key,
    write_private,
)
from fedfinlora.errors import UserError


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    make_authority(tmp_path, 100)
    issue_server(tmp_path, ["localhost", "127.0.0.1", "bank.example"], 20)
    return tmp_path


def handshake(folder: Path, trusted: Path, name: str) -> None:
    """A real TLS handshake on loopback."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            try:
                with server.wrap_socket(connection, server_side=True) as wrapped:
                    wrapped.recv(1)
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            client = ssl.create_default_context(cafile=str(trusted))
            with (
                socket.create_connection(listening.getsockname(), timeout=5) as plain,
                client.wrap_socket(plain, server_hostname=name) as wrapped,
            ):
                wrapped.send(b"x")
        finally:
            thread.join(timeout=10)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "bank.example"])
def test_a_client_that_trusts_the_authority_is_let_in_by_every_name(authority: Path, name: str) -> None:
    handshake(authority, authority / "ca.crt", name)


def test_another_name_and_another_authority_are_turned_away(authority: Path, tmp_path: Path) -> None:
    make_authority(tmp_path / "other", 100)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority, authority / "ca.crt", "elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority, tmp_path / "other" / "ca.crt", "localhost")


def test_private_keys_are_their_owners_alone_and_never_overwritten(authority: Path) -> None:
    make_node_key(authority / "node.key", "north")
    for name in ("ca.key", "server.key", "node.key"):
        assert (authority / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(UserError, match="is not overwritten"):
        write_private(authority / "node.key", b"x")
    with pytest.raises(UserError, match="is not overwritten"):
        make_authority(authority, 100)


def test_a_renewed_server_certificate_is_of_the_same_authority(authority: Path) -> None:
    before = (authority / "server.crt").read_bytes()
    issue_server(authority, ["localhost"], 40)
    assert (authority / "server.crt").read_bytes() != before
    handshake(authority, authority / "ca.crt", "localhost")
    assert 39 < days_left(authority / "server.crt") <= 40


def test_the_end_of_a_certificate_is_told_and_warned_about(authority: Path) -> None:
    assert "RENEW IT SOON" in expiry_words(authority / "server.crt")
    assert "RENEW" not in expiry_words(authority / "ca.crt")
    issue_server(authority, ["localhost"], 0)
    assert "ENDED" in expiry_words(authority / "server.crt")
    with pytest.raises(UserError, match="no certificate"):
        expiry_words(authority / "server.key")


def test_the_authority_signs_certificates_and_the_server_does_not(authority: Path) -> None:
    for name, signs in (("ca.crt", True), ("server.crt", False)):
        certificate = x509.load_pem_x509_certificate((authority / name).read_bytes())
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is signs


def test_a_banks_public_key_is_taken_and_anything_else_refused(tmp_path: Path) -> None:
    make_node_key(tmp_path / "node.key", "north")
    key = serialization.load_ssh_public_key(check_public_key(tmp_path / "node.key.pub"))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp384r1"
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    (tmp_path / "ed.pub").write_bytes(other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH))
    (tmp_path / "text.pub").write_text("hello")
    for name, message in (
        ("node.key", "must not leave its bank"),
        ("ed.pub", "not an elliptic-curve key"),
        ("text.pub", "no public key"),
        ("missing.pub", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            check_public_key(tmp_path / name)
