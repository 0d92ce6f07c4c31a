"""The private authority of `make certificates`: what it issues, when it issues anew, and how one follows another."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from deploy.certificates import AUTHORITY_DAYS, DAYS, Certified, issue, main

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SERVERS = {"kafka": ["kafka", "127.0.0.1"], "redis": ["redis"]}


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def handshake(files: Certified, trusted: str, name: str) -> None:
    """What TLS itself makes of it, at any time of the certificate's life. Raises `ssl.SSLError`."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(files.both)
    asking = ssl.create_default_context(cadata=trusted)
    asking.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT | 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            serving.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        asking.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


def is_trusted(files: Certified, trusted: str, name: str) -> bool:
    try:
        handshake(files, trusted, name)
    except ssl.SSLCertVerificationError:
        return False
    return True


def test_a_certificate_is_for_its_names_and_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    assert issue(folder, SERVERS, NOW) == ["kafka", "redis"]
    kafka, trusted = Certified(folder, "kafka"), (folder / "ca.pem").read_text()
    for name, expected in {"kafka": True, "127.0.0.1": True, "redis": False, "127.0.0.2": False}.items():
        assert is_trusted(kafka, trusted, name) is expected
    issue(tmp_path / "other", SERVERS, NOW)
    assert not is_trusted(kafka, (tmp_path / "other" / "ca.pem").read_text(), "kafka")
    found = certificate(kafka.certificate)
    assert found.not_valid_after_utc == NOW + DAYS * DAY
    assert found.not_valid_before_utc < NOW, "a clock may be behind"
    modes = {path.relative_to(folder): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    private = {path for path, mode in modes.items() if not mode & 0o077}
    assert {path for path in private if path.suffix} == {
        *(Path(server, file) for server in SERVERS for file in ("server.key", "both.pem")),
        Path("authority", "1.key"),
    }
    assert Path("authority") in private


def test_it_may_be_repeated_and_renews_when_a_third_of_a_life_is_left(tmp_path: Path) -> None:
    issue(tmp_path, SERVERS, NOW)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert issue(tmp_path, SERVERS, NOW + (DAYS * 2 // 3 - 1) * DAY) == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert issue(tmp_path, SERVERS, NOW + (DAYS * 2 // 3 + 1) * DAY) == ["kafka", "redis"]
    assert (tmp_path / "ca.pem").read_bytes() == before[tmp_path / "ca.pem"]


def test_other_names_and_what_was_cut_short_are_issued_anew(tmp_path: Path) -> None:
    issue(tmp_path, SERVERS, NOW)
    assert issue(tmp_path, {**SERVERS, "redis": ["redis", "cache"]}, NOW) == ["redis"]
    (tmp_path / "kafka" / "server.pem").unlink()  # as a crash between key and certificate leaves it
    assert issue(tmp_path, SERVERS, NOW) == ["kafka", "redis"]
    assert is_trusted(Certified(tmp_path, "kafka"), (tmp_path / "ca.pem").read_text(), "kafka")


def weeks(tmp_path: Path, count: int) -> Iterable[tuple[datetime, str]]:
    """Renew each week, and give what clients would be told to trust."""
    for week in range(count):
        now = NOW + week * 7 * DAY
        issue(tmp_path, SERVERS, now)
        yield now, (tmp_path / "ca.pem").read_text()


def test_an_authority_follows_another_without_a_gap(tmp_path: Path) -> None:
    """A client that was started up to twenty weeks ago trusts every server still; three authorities come and go."""
    told: list[str] = []
    signers = set()
    for now, trusted in weeks(tmp_path, 130):
        told.append(trusted)
        kafka = Certified(tmp_path, "kafka")
        found = certificate(kafka.certificate)
        signers.add(found.issuer.rfc4514_string())
        assert found.not_valid_after_utc > now + 7 * DAY
        authorities = x509.load_pem_x509_certificates(trusted.encode())
        assert all(each.not_valid_after_utc > now for each in authorities)
        assert len(authorities) <= 3
        for old in {told[-1], told[max(-20, -len(told))]}:
            assert is_trusted(kafka, old, "kafka"), now
    assert len(signers) >= 3
    assert AUTHORITY_DAYS > 2 * DAYS


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["kafka"], "give SERVER=NAME"),
        (["kafka="], "give SERVER=NAME"),
        (["../kafka=kafka"], "give SERVER=NAME"),
        (["kafka=kafka", "--days", "0"], "--days 0: give 1 to"),
        (["kafka=kafka", "--days", "400"], "--days 400: give 1 to"),
    ],
)
def test_what_cannot_be_issued_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "tls"), *arguments])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "tls").exists()
