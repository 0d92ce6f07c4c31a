"""A Docker engine and Compose v2: those of this machine, or else from Debian's packages, for the time of the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.native.server import CACHE, alone

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
KEPT_GB = 10
"""The cache of earlier builds, so that the next one takes a minute: downloads, and layers that an image still has."""
NEEDED_GB = 20
"""On the disk, for images that are built from nothing: with CUDA, PyTorch alone takes 14."""


class Failed(Exception):
    """The test cannot go on. The message says what happened, and the remedy where there is one."""


def say(text: str) -> None:
    """One line of what happens, at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run(command: Sequence[str], *, timeout_s: float = 60.0, environment: Mapping[str, str] | None = None) -> str:
    """The output of a command. Raises `Failed` with its end."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise Failed(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"`{' '.join(command)}` took more than {timeout_s:g} s") from None
    if done.returncode:
        raise Failed(f"`{' '.join(command)}` failed:\n{done.stdout[-6000:]}")
    return done.stdout


def works(*command: str, timeout_s: float = 60.0) -> bool:
    """Whether a command ends well in time."""
    try:
        run(command, timeout_s=timeout_s)
    except Failed:
        return False
    return True


def install(packages: Sequence[str], wanted_for: str) -> None:
    """Install Debian packages where this may be done, else say what to run."""
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Failed(f"{wanted_for}: not found; run as root: apt-get update && {' '.join(command)}")
    with alone():  # the tests install too
        say(f"installing {' '.join(packages)}")
        run(["apt-get", "update", "-qq"], timeout_s=300)
        run(command, timeout_s=600, environment={"DEBIAN_FRONTEND": "noninteractive"})


@contextmanager
def engine() -> Iterator[None]:
    """A Docker engine that answers `docker` for the time of the context.

    One that answers already is used and left alone. One that is started has its own socket, keeps its images in
    `.servers/docker`, and is stopped in the end.
    """
    if works("docker", "version"):
        say(f"engine: the one that answers, {_version()}")
        yield
        return
    if not (shutil.which("dockerd") and shutil.which("iptables")):
        install(["docker.io", "iptables"], "a Docker engine")
    store = (CACHE / "docker").resolve()  # containers do not start below a link
    if not store.exists() and (free_gb := shutil.disk_usage(CACHE.parent).free / 1e9) < NEEDED_GB:
        raise Failed(f"images need {NEEDED_GB} GB, {CACHE.parent} has {free_gb:.0f} GB left: free some, then repeat")
    with tempfile.TemporaryDirectory(prefix="tradeloop-docker-") as folder:
        address = f"unix://{folder}/docker.sock"
        places = [f"--exec-root={folder}/exec", f"--pidfile={folder}/docker.pid", f"--data-root={store}"]
        log = Path(folder, "dockerd.log")
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                ["dockerd", f"--host={address}", *places],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: the engine is still needed to take the stack down
            )
        before = os.environ.get("DOCKER_HOST")
        os.environ["DOCKER_HOST"] = address
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not works("docker", "version"):
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"dockerd did not start; the end of its log:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            say(f"engine: started for this test, {_version()}, images in {CACHE.name}/docker")
            yield
            # What earlier tests built, and what the next one has no use for.
            run(["docker", "image", "prune", "--force"], timeout_s=300)
            run(["docker", "builder", "prune", "--force", f"--keep-storage={KEPT_GB}GB"], timeout_s=300)
        finally:
            os.environ.pop("DOCKER_HOST")
            if before is not None:
                os.environ["DOCKER_HOST"] = before
            daemon.terminate()
            try:
                daemon.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            for line in Path("/proc/self/mountinfo").read_text().splitlines():
                if line.split()[4] == str(store):  # the engine mounts it on itself, and leaves that behind
                    run(["umount", str(store)])
            say("engine: stopped")


def compose_command(debian_image: str) -> list[str]:
    """How to call Compose v2: the client's own plugin, or the one of Debian's package, taken from inside an image."""
    if works("docker", "compose", "version"):
        return ["docker", "compose"]
    plugin = CACHE / "docker-compose" / "docker-compose"
    if not plugin.exists():
        plugin.parent.mkdir(parents=True, exist_ok=True)
        say("fetching Compose from Debian's package")
        fetch = (
            "apt-get update -qq && cd /tmp && apt-get download -qq docker-compose"
            " && dpkg-deb --extract docker-compose_*.deb . && cp usr/libexec/docker/cli-plugins/docker-compose /to/new"
        )
        run(["docker", "run", "--rm", f"--volume={plugin.parent}:/to", debian_image, "sh", "-c", fetch], timeout_s=300)
        (plugin.parent / "new").rename(plugin)
    return [str(plugin)]


def _version() -> str:
    return run(["docker", "version", "--format", "{{.Server.Version}}"]).strip()
