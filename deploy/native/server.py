"""`Server`: a program as a process that can be killed and started again on its port, with its data."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

CACHE = Path(__file__).parents[2] / ".servers"
"""Programs that the servers need and the system's packages do not have. Ignored by git."""

LOG_BYTES = 20_000_000
"""A log of this size is put away when its server is started."""
KEPT_LOGS = 4
_STOP_TIMEOUT_S = 30.0


class ServerError(Exception):
    """A server could not be had. The message ends with the remedy, or with the server's own last words."""


@dataclass(frozen=True)
class Program:
    """A program to run, with its data folder prepared; running it again later finds the same data."""

    name: str
    command: Sequence[str]
    address: str = field(repr=False)
    """The address that its clients are told; may hold a password."""
    answers: Callable[[], bool]
    """Whether it serves clients now."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to this process's own."""
    stop_signal: signal.Signals = signal.SIGTERM
    start_timeout_s: float = 180.0


class Identity(NamedTuple):
    """A process, told apart from a later one of the same number by when it started, in ticks since boot."""

    pid: int
    started: int

    @property
    def lives(self) -> bool:
        stat = _stat(self.pid)
        if stat is None or stat.started != self.started:
            return False
        try:
            return os.waitpid(self.pid, os.WNOHANG) == (0, 0)
        except ChildProcessError:  # another's child, that its parent may not have asked for yet
            return stat.state not in "ZX"


class Server:
    """A program as a process group of its own. `folder` gets its identity, `<name>.pid`, and `logs`, which is the same
    folder unless given, its log, `<name>.log`.

    A leashed one does not outlive this interpreter, however that ends. Any other is found again by its identity: a
    later `Server` of the same name and folder is the same server.
    """

    def __init__(self, program: Program, folder: Path, *, logs: Path | None = None, leashed: bool = True) -> None:
        self.program = program
        self.log = (logs or folder) / f"{program.name}.log"
        self._leashed = leashed
        self._identity_file = folder / f"{program.name}.pid"
        self._leash: subprocess.Popen[bytes] | None = None
        self._said_before = 0

    @property
    def address(self) -> str:
        return self.program.address

    @property
    def running(self) -> bool:
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """The id of its first process; None when it does not run."""
        identity = _recorded(self._identity_file)
        return identity.pid if identity is not None and identity.lives else None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers. Raises `ServerError` as `wait` does."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it, unless it runs. Raises `OSError` where its command cannot be run."""
        if self.running:
            return
        command = self.program.command
        _rotate(self.log)
        with self.log.open("ab") as output:
            self._said_before = output.tell()
            # Not by `Popen`, which complains of a process that shall outlive it.
            pid = os.posix_spawnp(
                command[0],
                list(command),
                {**os.environ, **self.program.environment},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores, and children would too
            )
        self._unleash()  # from one that ended by itself
        if self._leashed:
            # Its standard input closes when this interpreter ends, which even a `kill -9` brings about.
            hold = ["sh", "-c", 'read _; kill -9 "-$0"', str(pid)]
            self._leash = subprocess.Popen(hold, stdin=subprocess.PIPE, start_new_session=True)
        if stat := _stat(pid):
            new = self._identity_file.with_suffix(".new")  # nobody is to read half of it
            new.write_text(f"{pid} {stat.started}\n")
            new.replace(self._identity_file)

    def wait(self) -> None:
        """Wait until it answers.

        When it ends before that, or does not answer in time, kills it and raises `ServerError` with the end of its log.
        """
        deadline = time.monotonic() + self.program.start_timeout_s
        while not self.program.answers():
            ended = not self.running
            if ended or time.monotonic() > deadline:
                self.kill()
                said = self.log.read_bytes()[self._said_before :].decode(errors="replace")[-4000:]
                how = "ended" if ended else f"did not answer within {self.program.start_timeout_s:.0f} s"
                raise ServerError(f"{self.program.name} {how}; the end of {self.log}:\n{said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask it to end, and wait until it and its children have; what does not end in time is killed."""
        identity = _recorded(self._identity_file)
        if identity is not None and identity.lives:
            family = [identity, *_descendants(identity.pid)]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(identity.pid, self.program.stop_signal)
            _wait_for_end(family)
            _kill(family)
        self.kill()

    def kill(self) -> None:
        """End it and all its children at once, as a crash would."""
        self._unleash()
        identity = _recorded(self._identity_file)
        if identity is not None and identity.lives:
            family = [identity, *_descendants(identity.pid)]
            _kill(family)
            # Children that started meanwhile are still of its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(identity.pid, signal.SIGKILL)
            _wait_for_end(family)
        self._identity_file.unlink(missing_ok=True)

    def _unleash(self) -> None:
        if self._leash is not None:
            self._leash.kill()
            self._leash.communicate()
            self._leash = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _rotate(log: Path) -> None:
    """Put a log away that has become large, and forget the oldest. A process writes on in the file that it has open."""
    if not log.exists() or log.stat().st_size < LOG_BYTES:
        return
    for n in range(KEPT_LOGS, 0, -1):
        older = log if n == 1 else log.with_name(f"{log.name}.{n - 1}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{n}"))


def _recorded(file: Path) -> Identity | None:
    """The identity that a server's file holds; None without one."""
    try:
        pid, started = map(int, file.read_text().split())
    except (FileNotFoundError, ValueError):  # a file that was being written names no process yet
        return None
    return Identity(pid, started)


class _Stat(NamedTuple):
    state: str
    parent: int
    started: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # a command's name may hold anything
    return _Stat(fields[0], int(fields[1]), int(fields[19]))


def _descendants(pid: int) -> list[Identity]:
    """Children and theirs, those that left the group of their parent too (PostgreSQL's do)."""
    children: dict[int, list[Identity]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(stat.parent, []).append(Identity(int(entry.name), stat.started))

    def below(parent: int) -> Iterator[Identity]:
        for child in children.get(parent, []):
            yield child
            yield from below(child.pid)

    return list(below(pid))


def _kill(processes: Sequence[Identity]) -> None:
    for each in processes:
        if each.lives:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)


def _wait_for_end(processes: Sequence[Identity]) -> None:
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while any(each.lives for each in processes) and time.monotonic() < deadline:
        time.sleep(0.02)


def need(commands: Sequence[str], packages: Sequence[str]) -> None:
    """Make sure that commands exist: install Debian packages where this may be done, else say what to run.

    Raises `ServerError`.
    """

    def missing() -> list[str]:
        return [command for command in commands if shutil.which(command) is None]

    if not missing():
        return
    apt = ["apt-get", "--option=DPkg::Lock::Timeout=300", "--yes"]  # another one may be installing now
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        remedy = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(packages)}"
        raise ServerError(f"{' and '.join(missing())} not found; run as root: {remedy}")
    with alone():
        if missing():
            run([*apt, "update"])  # which waits for no lock
            run([*apt, "install", "--no-install-recommends", *packages])


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait for other processes that install or unpack something for this checkout, and keep them waiting."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, stdin: str = "", cwd: str = "."
) -> str:
    """Run a command to its end and return its output. Raises `ServerError` with the end of it when it fails.

    `environment` is added to this process's own.
    """
    added = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", **(environment or {})}
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, check=False, env=added)
    if done.returncode != 0:
        raise ServerError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def write_secret(file: Path, text: str) -> None:
    """Write a file that only its owner may read; complete or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    partial.rename(file)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def claim(port: int) -> socket.socket | None:
    """A hold on a port of 127.0.0.1 for a server that is to listen there; None where one does, or somebody holds it.

    To be closed when the server listens. It is a UDP socket of the same number: no TCP server is in its way, whoever
    else claims the port sees it, and it ends with its process.
    """
    hold = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        hold.bind(("127.0.0.1", port))
    except OSError:
        hold.close()
        return None
    if listens(port):
        hold.close()
        return None
    return hold


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
