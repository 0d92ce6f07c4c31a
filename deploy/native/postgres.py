"""PostgreSQL with TimescaleDB, from Debian's packages.

TimescaleDB came to Debian with release 13. On an older system, or another one, that release's packages are put in a
folder of `.servers/` and run from there with the folder as root file system (`debootstrap`, `chroot`), in a mount
namespace that ends with the server. Where that may not be done, the system's own PostgreSQL serves, with TimescaleDB
if it has it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from deploy.certificates import Certified
from deploy.native.server import CACHE, Program, ServerError, alone, need, run, write_secret

USER = "tradeloop"

_SUITE = "trixie"
_PACKAGES = ("postgresql-17", "postgresql-17-timescaledb")

_WITH_TLS_ALONE = """\
hostssl all all 127.0.0.1/32 scram-sha-256
hostssl all all ::1/128 scram-sha-256
"""

# Mounts inside a namespace of their own: they need no cleaning up, and nobody else sees them.
_ENTER = """\
mount --bind "$0" "$1/mnt"
chroot "$1" sh -c 'chown postgres:postgres /mnt; [ ! -e /mnt/server.key ] || chown postgres:postgres /mnt/server.*'
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
root=$1
shift
exec chroot --userspec=postgres:postgres "$root" "$@"
"""


@dataclass(frozen=True)
class Installation:
    """PostgreSQL's programs, and how to run them on a data folder: never as root, which they refuse."""

    name: str
    """The name that people know it by."""
    programs: str
    """Folder of `initdb` and `postgres`."""
    timescaledb: bool
    enter: Callable[[Path], tuple[list[str], str]]
    """The user of a data folder: the words to put before a command, and the command's own name for that folder."""


def postgres(
    folder: Path, port: int, installation: Installation, *, durable: bool = True, tls: Certified | None = None
) -> Program:
    """A cluster on 127.0.0.1. Its address is the SQLAlchemy URL of the database `postgres`, as a superuser.

    Without `durable` a crash of the machine, though not of the server, may lose what was committed. With `tls` nobody
    comes in without.
    """
    secret = folder / "password"
    if not secret.exists():
        shutil.rmtree(folder / "data", ignore_errors=True)  # of a first start that did not come to its end
    (folder / "data").mkdir(exist_ok=True)
    enter, data = installation.enter(folder / "data")
    server = f"{installation.programs}/postgres"
    if not secret.exists():
        options = ["--auth-local=peer", "--auth-host=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
        run([*enter, f"{installation.programs}/initdb", f"--username={USER}", *options, "--pgdata", data])
        password = secrets.token_urlsafe(24)
        run([*enter, server, "--single", "-D", data, "postgres"], stdin=f"ALTER ROLE {USER} PASSWORD '{password}'\n")
        write_secret(secret, password)
    if tls is not None:
        # Inside the data folder, which is all that it may see, and given to its user with that.
        write_secret(folder / "data" / "server.key", tls.key.read_text())
        write_secret(folder / "data" / "server.crt", tls.certificate.read_text())
        write_secret(folder / "data" / "server.hba", _WITH_TLS_ALONE)
        enter, data = installation.enter(folder / "data")
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "dynamic_shared_memory_type": "mmap",  # inside the data folder: a killed server leaves nothing in /dev/shm
        "max_connections": "200",
    }
    if tls is not None:
        settings |= {"ssl": "on", "ssl_min_protocol_version": "TLSv1.2", "hba_file": f"{data}/server.hba"}
    if installation.timescaledb:
        settings |= {
            "shared_preload_libraries": "timescaledb",
            "timescaledb.telemetry_level": "off",
            # A database with the extension has a worker of its own, and tests make many databases.
            "timescaledb.max_background_workers": "32",
            "max_worker_processes": "64",
        }
    if not durable:
        settings |= {"fsync": "off", "full_page_writes": "off"}
    switches = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    verified = "" if tls is None else f"?sslmode=verify-full&sslrootcert={tls.authorities}"
    address = f"postgresql+psycopg://{USER}:{secret.read_text()}@127.0.0.1:{port}/postgres{verified}"
    return Program(
        "postgres",
        (*enter, server, "-D", data, *switches),
        address,
        lambda: postgres_answers(address),
        stop_signal=signal.SIGINT,  # the fast shutdown: it does not wait for clients to leave
    )


def postgres_answers(address: str) -> bool:
    """Whether the server of a SQLAlchemy URL takes connections."""
    try:
        psycopg.connect(driver_url(address), connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def driver_url(address: str) -> str:
    """A SQLAlchemy URL as psycopg itself reads it."""
    return address.replace("postgresql+psycopg://", "postgresql://", 1)


def best_installation() -> Installation:
    """One with TimescaleDB where that can be had, else the system's. Raises `ServerError` where neither can."""
    system = _system_programs()
    if _may_enter_a_root() and not (system and _has_timescaledb(system)):
        return _debian_root()
    return system_installation()


def system_installation() -> Installation:
    """The system's own PostgreSQL, of its newest version. Raises `ServerError`."""
    programs = _system_programs()
    if programs is None:
        need(["postgres"], ["postgresql"])
        programs = _system_programs()
        if programs is None:
            raise ServerError("the package postgresql has no program postgres in /usr/lib/postgresql/*/bin")
    version = run([str(programs / "postgres"), "--version"]).split()[2]
    return Installation(f"PostgreSQL {version} of the system", str(programs), _has_timescaledb(programs), _as_postgres)


def _system_programs() -> Path | None:
    """Debian keeps its servers off the PATH, one folder a version."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if folders:
        return folders[-1].parent
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


def _has_timescaledb(programs: Path) -> bool:
    return (programs.parent / "lib" / "timescaledb.so").exists()


def _as_postgres(data: Path) -> tuple[list[str], str]:
    if os.geteuid() != 0:
        return [], str(data)
    for path in (data.parent, data, *data.glob("server.*")):
        shutil.chown(path, "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"], str(data)


def _may_enter_a_root() -> bool:
    if os.geteuid() != 0 or not shutil.which("unshare") or not (shutil.which("debootstrap") or shutil.which("apt-get")):
        return False
    return subprocess.run(["unshare", "--mount", "--ipc", "true"], capture_output=True, check=False).returncode == 0


def _debian_root() -> Installation:
    """Debian 13 in a folder, made once."""
    root = CACHE / "timescaledb" / _SUITE
    if not root.is_dir():
        need(["debootstrap"], ["debootstrap"])
    with alone():
        if not root.is_dir():
            root.parent.mkdir(parents=True, exist_ok=True)
            # Complete or not at all, as with Kafka's jars.
            with tempfile.TemporaryDirectory(dir=root.parent, ignore_cleanup_errors=True) as folder:
                made = f"{folder}/{_SUITE}"
                options = ["--variant=minbase", f"--include={','.join(_PACKAGES)}"]
                run(["unshare", "--mount", "debootstrap", *options, _SUITE, made])
                Path(made).rename(root)

    def enter(data: Path) -> tuple[list[str], str]:
        return ["unshare", "--mount", "--ipc", "sh", "-ec", _ENTER, str(data), str(root)], "/mnt"

    return Installation("PostgreSQL 17 of Debian 13", "/usr/lib/postgresql/17/bin", True, enter)
