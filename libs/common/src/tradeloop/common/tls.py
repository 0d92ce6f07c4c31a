"""Why a connection over TLS does not come about, in one line with the remedy.

Clients name the cause in words of their own, or not at all. So the server is asked once more, for the handshake alone.
"""

from __future__ import annotations

import re
import socket
import ssl

_WITHIN_S = 2.0
_OTHER_NAME = {62, 64}
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_BAD_TIME = {9: "is not valid yet", 10: "has expired"}
_OF_POSTGRESQL = (
    (r"does not match host name", "connect by a name that it has, or have one issued for this name"),
    (r"certificate has expired", "renew it, or set the clock"),
    (r"certificate verify failed", "name the file of the authority that signed it, with sslrootcert= in the URL"),
    (r"no pg_hba\.conf entry.*no encryption", "with TLS it may: add sslmode=verify-full&sslrootcert=FILE to the URL"),
    (r"does not support SSL, but SSL was required", "switch it on there; sslmode=disable only within one machine"),
)


def trouble(host: str, port: int, ca_file: str | None, *, encrypted: bool, ca_setting: str, tls_setting: str) -> str:
    """The obstacle to TLS at a server; nothing where there is none, or nobody answers.

    `ca_file` has the authorities that are trusted, the system's own where there is none. `encrypted` is whether the
    client speaks TLS. The settings are named in the remedies.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError):
        return f"no certificates of authorities can be read from {ca_file}: name their file in {ca_setting}"
    if not encrypted:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), _WITHIN_S) as connection:
            try:
                context.wrap_socket(connection, server_hostname=host).close()
            except ssl.SSLCertVerificationError as error:
                return _unverified(error, host, ca_file, ca_setting)
            except (ssl.SSLError, OSError):
                return f"{host}:{port} speaks no TLS: set it up there, or {tls_setting}" if encrypted else ""
    except OSError:
        return ""
    return "" if encrypted else f"{host}:{port} speaks TLS, and was spoken to without: {tls_setting}"


def postgresql_remedy(said: str) -> str:
    """The remedy for words of libpq that are about TLS; nothing about any others."""
    return next((remedy for pattern, remedy in _OF_POSTGRESQL if re.search(pattern, said)), "")


def _unverified(error: ssl.SSLCertVerificationError, host: str, ca_file: str | None, ca_setting: str) -> str:
    if error.verify_code in _OTHER_NAME:
        return f"the certificate is not for the name {host}: connect by a name that it has, or have one issued for it"
    if error.verify_code in _BAD_TIME:
        return f"the certificate {_BAD_TIME[error.verify_code]}: renew it, or set the clock"
    trusted = "the authorities of this system" if ca_file is None else f"the authorities in {ca_file}"
    return f"the certificate is signed by none of {trusted}: name the file of the one that signed it in {ca_setting}"
