"""`python -m deploy.certificates FOLDER SERVER=NAME,...`: a private authority, and a certificate for each server.

    FOLDER/ca.pem                   the authorities that clients trust: their file of CAs
    FOLDER/authority/N.pem, N.key   the authorities; the keys stay where this is run
    FOLDER/SERVER/server.pem        the certificate
    FOLDER/SERVER/server.key        its key, mode 0600
    FOLDER/SERVER/both.pem          the two in one file, mode 0600, as Kafka wants them

It may be repeated, and is how certificates are renewed: one is issued anew when a third of its life is left, or when
its names changed. A next authority is made, and trusted, when half of the last one's life is left; it signs when the
last one would not outlive what it signs, so that every client that was started in between knows it.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.native.server import write_secret
from tradeloop.common.clock import SystemClock

DAYS = 30
"""Days that a certificate is good for."""
AUTHORITY_DAYS = 365
_EARLY = timedelta(minutes=5)
"""Clocks of other machines may be this much behind."""


class Certified(NamedTuple):
    """The files of a server."""

    folder: Path
    server: str

    @property
    def authorities(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.folder / self.server / "server.pem"

    @property
    def key(self) -> Path:
        return self.folder / self.server / "server.key"

    @property
    def both(self) -> Path:
        return self.folder / self.server / "both.pem"


class _Signed(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def end(self) -> datetime:
        return self.certificate.not_valid_after_utc

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> str:
        kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, kind, plain).decode()


def issue(folder: Path, servers: Mapping[str, Sequence[str]], now: datetime, days: int = DAYS) -> list[str]:
    """Bring the folder to these servers, by name with the names and addresses that clients connect to.

    Gives back the servers whose certificates are new: they have to be told. `days` is the life of those.
    """
    life = timedelta(days=days)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    authorities = _authorities(folder, now)
    signer = next((one for one in authorities if one.end >= now + life), authorities[-1])
    issued = []
    for server, names in servers.items():
        files = folder / server
        if _is_good(files / "server.pem", names, authorities, now):
            continue
        files.mkdir(mode=0o755, exist_ok=True)
        made = _sign(server, _for_servers(names), signer, now, min(now + life, signer.end))
        chain = made.pem.decode()
        (files / "server.pem").unlink(missing_ok=True)  # until it is there again, all is made anew
        write_secret(files / "server.key", made.key_pem())
        write_secret(files / "both.pem", made.key_pem() + chain)
        _write(files / "server.pem", chain)
        issued.append(server)
    return issued


def _authorities(folder: Path, now: datetime) -> list[_Signed]:
    """The good ones, oldest first, with a new one where it is time; written for clients to trust."""
    kept = folder / "authority"
    kept.mkdir(mode=0o700, exist_ok=True)
    numbers = sorted(int(file.stem) for file in kept.glob("*.pem"))
    found = [one for number in numbers if (one := _read(kept / f"{number}.pem", kept / f"{number}.key")).end > now]
    half = timedelta(days=AUTHORITY_DAYS) / 2
    if not found or found[-1].end - now < half:
        number = max(numbers, default=0) + 1
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        extensions: list[tuple[x509.ExtensionType, bool]] = [(x509.BasicConstraints(True, 0), True), (usage, True)]
        made = _sign(f"Tradeloop authority {number}", extensions, None, now, now + timedelta(days=AUTHORITY_DAYS))
        write_secret(kept / f"{number}.key", made.key_pem())
        _write(kept / f"{number}.pem", made.pem.decode())
        found.append(made)
    _write(folder / "ca.pem", "".join(one.pem.decode() for one in found))
    return found


def _sign(
    name: str,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
    signer: _Signed | None,
    now: datetime,
    end: datetime,
) -> _Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signing = (subject, key) if signer is None else (signer.certificate.subject, signer.key)
    building = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), False)
    )
    for extension, critical in extensions:
        building = building.add_extension(extension, critical)
    return _Signed(building.sign(signing, hashes.SHA256()), key)


def _for_servers(names: Sequence[str]) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.BasicConstraints(False, None), True),
        (x509.KeyUsage(True, False, False, False, False, False, False, False, False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_name(name) for name in names]), False),
    ]


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _is_good(file: Path, names: Sequence[str], authorities: Sequence[_Signed], now: datetime) -> bool:
    if not file.exists():
        return False
    found = x509.load_pem_x509_certificate(file.read_bytes())
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    said = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if end - now < (end - begin) / 3 or set(said) != {_name(name) for name in names}:
        return False
    return any(_signed_by(found, one.certificate) for one in authorities)


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, InvalidSignature):
        return False
    return True


def _read(certificate: Path, key: Path) -> _Signed:
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    return _Signed(x509.load_pem_x509_certificate(certificate.read_bytes()), loaded)


def _write(file: Path, text: str) -> None:
    """Write a file that anybody may read; complete or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.chmod(0o644)
    partial.replace(file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Says on stderr which certificates are new."""
    parser = argparse.ArgumentParser(prog="python -m deploy.certificates", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("servers", nargs="+", metavar="SERVER=NAME,...", help="a server, and the names it has")
    parser.add_argument("--days", type=int, default=DAYS, help="life of a certificate, at most half of an authority's")
    told = parser.parse_args(arguments)
    if not 1 <= told.days <= AUTHORITY_DAYS // 2:
        parser.error(f"--days {told.days}: give 1 to {AUTHORITY_DAYS // 2}")
    servers: dict[str, Sequence[str]] = {}
    for text in told.servers:
        server, _, names = text.partition("=")
        if not server.isidentifier() or not all(names.split(",")):
            parser.error(f"{text}: give SERVER=NAME,NAME, such as kafka=kafka,127.0.0.1")
        servers[server] = names.split(",")
    issued = issue(told.folder, servers, SystemClock().now(), told.days)
    print(f"new certificates: {', '.join(issued)}" if issued else "all certificates are good still", file=sys.stderr)


if __name__ == "__main__":
    main()
