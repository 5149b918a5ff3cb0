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
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedfinlora.cli import main
from fedfinlora.deployment.bank_keys import check_bank_certificate, check_public_key, make_node_key
from fedfinlora.deployment.certificates import (
    common_name,
    days_left,
    expiry_words,
    issue_bank,
    issue_server,
    issue_signing,
    make_authority,
    open_authority,
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


def test_the_end_of_a_certificate_is_shown_and_warned_about(authority: Path) -> None:
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
    (tmp_path / "ed.pub").write_bytes(
        other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    (tmp_path / "text.pub").write_text("hello")
    for name, message in (
        ("node.key", "must not leave its bank"),
        ("ed.pub", "not an elliptic-curve key"),
        ("text.pub", "no public key"),
        ("missing.pub", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            check_public_key(tmp_path / name)


class TestAuthorityElsewhere:
    """`coordinator init --authority FOLDER` and an encrypted ca.key."""

    @pytest.fixture
    def bank(self, tmp_path: Path) -> Path:
        make_node_key(tmp_path / "bank" / "node.key", "north")
        return tmp_path / "bank" / "node.key.pub"

    def test_the_key_stays_outside_the_folder_and_is_needed_to_issue(self, tmp_path: Path, bank: Path) -> None:
        home, stick = tmp_path / "home", tmp_path / "stick"
        assert main(["coordinator", "init", "--home", str(home), "--authority", str(stick)]) == 0
        assert (stick / "ca.key").exists()
        assert not (home / "ca.key").exists()
        assert home.stat().st_mode & 0o777 == 0o700
        enroll = ["coordinator", "enroll", str(bank), "--name", "north", "--home", str(home)]
        (stick / "ca.key").rename(tmp_path / "away.key")
        assert main(enroll) == 1
        assert not (home / "enrolled" / "north.pub").exists(), "nothing was changed"
        (tmp_path / "away.key").rename(stick / "ca.key")
        assert main(enroll) == 0
        assert common_name(x509.load_pem_x509_certificate((home / "enrolled" / "north.crt").read_bytes())) == "north"

    def test_an_authority_that_is_there_is_used_and_not_overwritten(self, tmp_path: Path) -> None:
        make_authority(tmp_path / "stick", 100)
        before = (tmp_path / "stick" / "ca.key").read_bytes()
        assert (
            main(["coordinator", "init", "--home", str(tmp_path / "home"), "--authority", str(tmp_path / "stick")]) == 0
        )
        assert (tmp_path / "stick" / "ca.key").read_bytes() == before
        assert (tmp_path / "home" / "ca.crt").read_bytes() == (tmp_path / "stick" / "ca.crt").read_bytes()

    def test_an_encrypted_key_opens_with_its_passphrase_alone(
        self, tmp_path: Path, bank: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home, words = tmp_path / "home", tmp_path / "words"
        words.write_text("correct horse battery\n")
        opens = ["--passphrase-file", str(words)]
        assert main(["coordinator", "init", "--home", str(home), *opens]) == 0
        assert b"ENCRYPTED" in (home / "ca.key").read_bytes()
        enroll = ["coordinator", "enroll", str(bank), "--name", "north", "--home", str(home)]
        monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
        assert main(enroll) == 1
        assert "FEDFINLORA_CA_PASSPHRASE_FILE" in capsys.readouterr().err
        (tmp_path / "wrong").write_text("correct horse battery staple")
        assert main([*enroll, "--passphrase-file", str(tmp_path / "wrong")]) == 1
        assert "does not open with this passphrase" in capsys.readouterr().err
        assert main([*enroll, *opens]) == 0
        monkeypatch.setenv("FEDFINLORA_CA_PASSPHRASE_FILE", str(words))
        assert main(["coordinator", "renew", "--home", str(home)]) == 0

    def test_a_short_passphrase_makes_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "words").write_text("short")
        init = ["coordinator", "init", "--home", str(tmp_path / "home"), "--passphrase-file", str(tmp_path / "words")]
        assert main(init) == 1
        assert "12 characters or more" in capsys.readouterr().err
        assert not (tmp_path / "home" / "ca.key").exists()


class TestBankCertificate:
    def folder(self, place: Path, name: str = "north", days: int = 10) -> Path:
        make_authority(place, 100)
        make_node_key(place / "node.key", "north")
        issue_bank(place / "north.crt", name, (place / "node.key.pub").read_bytes(), days, open_authority(place))
        return place

    def check(self, place: Path) -> bytes:
        return check_bank_certificate(place / "north.crt", place / "node.key", place / "ca.crt", "north")

    def test_a_banks_own_is_taken(self, tmp_path: Path) -> None:
        assert self.check(self.folder(tmp_path)).startswith(b"-----BEGIN CERTIFICATE")

    def test_one_for_another_key_name_authority_or_time_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="names the bank 'south'"):
            self.check(self.folder(tmp_path / "name", name="south"))
        with pytest.raises(UserError, match="has ended"):
            self.check(self.folder(tmp_path / "time", days=0))
        key = self.folder(tmp_path / "key")
        (key / "node.key").unlink()
        make_node_key(key / "node.key", "north")
        with pytest.raises(UserError, match=r"not for this bank's node\.key"):
            self.check(key)
        other = self.folder(tmp_path / "other")
        (other / "ca.key").unlink()
        make_authority(other, 100)
        with pytest.raises(UserError, match="was not issued by the authority"):
            self.check(other)

    def test_a_certificate_is_good_for_its_purpose_alone(self, authority: Path) -> None:
        """TLS looks at the purpose: a server's or a signing certificate opens no door, and a bank's serves none."""
        issue_signing(authority, 10)
        make_node_key(authority / "node.key", "north")
        issue_bank(
            authority / "bank.crt", "north", (authority / "node.key.pub").read_bytes(), 10, open_authority(authority)
        )
        purposes = {"server.crt": "SERVER_AUTH", "signing.crt": "CODE_SIGNING", "bank.crt": "CLIENT_AUTH"}
        for name, purpose in purposes.items():
            certificate = x509.load_pem_x509_certificate((authority / name).read_bytes())
            [found] = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            assert found == getattr(ExtendedKeyUsageOID, purpose)
