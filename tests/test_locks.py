"""The two locks, and `make audit` of them against a database of advisories that stands in for OSV on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from deploy.native.server import free_ports

ROOT = Path(__file__).resolve().parents[1]
ADVISORY = {"id": "TEST-2026-1", "modified": "2026-01-01T00:00:00Z", "summary": "It lets anyone in"}


class Database(ThreadingHTTPServer):
    """The two questions of OSV that uv asks, answered for packages that are vulnerable, or refused."""

    def __init__(self, *vulnerable: str, broken: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.vulnerable = vulnerable
        self.broken = broken
        self.asked: set[tuple[str, str]] = set()
        """Name and version of each package that was asked about."""


class _Answers(BaseHTTPRequestHandler):
    server: Database

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        self.server.asked |= {(query["package"]["name"], query["version"]) for query in queries}
        found = {"vulns": [{"id": ADVISORY["id"], "modified": ADVISORY["modified"]}]}
        names = [query["package"]["name"] for query in queries]
        self._answer({"results": [found if name in self.server.vulnerable else {} for name in names]})

    def do_GET(self) -> None:
        self._answer(ADVISORY)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(500 if self.server.broken else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(database: Database) -> Iterator[str]:
    """The URL of a database that answers for the time of the context."""
    thread = threading.Thread(target=database.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{database.server_port}"
    finally:
        database.shutdown()
        thread.join()
        database.server_close()


def audit(service: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "audit", f"SERVICE={service}"]
    # Where `make test` runs this, its own make would speak through these.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = own | {"UV_HTTP_RETRIES": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def locked(folder: Path) -> set[tuple[str, str]]:
    packages = tomllib.loads((folder / "uv.lock").read_text())["package"]
    return {(package["name"], package["version"]) for package in packages if "registry" in package["source"]}


def test_peers_hide_no_package_of_ours() -> None:
    """They come first on the path: what both locks had would be the peers' in a benchmark and ours in a service."""
    ours, peers = ({name for name, _ in locked(folder)} for folder in (ROOT, ROOT / "benchmarks"))
    assert peers
    assert not ours & peers


def test_M12_no_peer_decides_a_version_of_ours() -> None:
    """A peer pins Flask 2, which MLflow's server would be served by in one lock with it."""
    ours, peers = dict(locked(ROOT)), dict(locked(ROOT / "benchmarks"))
    assert "gym-trading-env" in peers
    assert "gym-trading-env" not in ours
    assert int(ours["flask"].partition(".")[0]) >= 3


def test_all_that_is_locked_is_looked_up() -> None:
    database = Database()
    with serving(database) as service:
        done = audit(service)
    assert done.returncode == 0, done.stderr
    assert database.asked == locked(ROOT) | locked(ROOT / "benchmarks")


def test_a_vulnerability_fails_after_both_locks_are_looked_up() -> None:
    with serving(Database("numpy", "gym-trading-env")) as service:
        done = audit(service)
    assert done.returncode != 0
    assert done.stdout.count("TEST-2026-1: It lets anyone in") >= 2
    assert done.stdout.index("numpy ") < done.stdout.index("gym-trading-env ")


def test_a_vulnerability_in_the_first_lock_alone_fails() -> None:
    with serving(Database("numpy")) as service:
        assert audit(service).returncode != 0


def test_without_an_answer_it_fails_in_one_line() -> None:
    [closed] = free_ports(1)
    with serving(Database(broken=True)) as broken:
        for service in (f"http://127.0.0.1:{closed}", broken):
            done = audit(service)
            said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
            assert done.returncode != 0
            assert done.stdout == ""
            assert len(said) == 1
            assert said[0].startswith("Nothing is known of the vulnerabilities of what is locked: ")
            assert service in said[0]
