"""The images that are not built from this checkout: pulled, or else stand-ins made of Debian's packages."""

from __future__ import annotations

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from deploy.compose_test.engine import ROOT, install, run, say, works
from deploy.native.kafka import jars

PYTHON_IMAGE = "python:3.11-slim-trixie"
DEBIAN_IMAGE = "debian:trixie-slim"
COMPOSE_FILE = ROOT / "deploy" / "docker-compose.yml"
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True, slots=True)
class Stack:
    """How Compose is told which images to take."""

    files: tuple[Path, ...]
    """Compose files, the one that users run first."""
    environment: Mapping[str, str]
    debian_image: str
    of_tls: tuple[str, ...] = ()
    """Further Compose files where the servers speak TLS, by their names."""


def available(image: str) -> bool:
    """Whether the engine has an image, or can get it."""
    return works("docker", "image", "inspect", image) or works("docker", "pull", "--quiet", image, timeout_s=300)


def server_images() -> tuple[str, ...]:
    """The images of docker-compose.yml that are not built from this checkout, but for those of profiles."""
    services = yaml.safe_load(COMPOSE_FILE.read_text())["services"].values()
    return tuple(service["image"] for service in services if not {"build", "profiles"} & set(service))


@contextmanager
def find_images() -> Iterator[Stack]:
    """The official images where all of them can be had; else stand-ins for those of servers and for Python's."""
    files = [COMPOSE_FILE]
    environment: dict[str, str] = {}
    if not _answers(_TORCH_INDEX):
        say(f"{_TORCH_INDEX} does not answer: PyTorch as in uv.lock")
        environment["TORCH_INDEX"] = ""
    missing = [image for image in (PYTHON_IMAGE, *server_images()) if not available(image)]
    if not missing:
        say("images: the official ones")
        yield Stack(tuple(files), environment, DEBIAN_IMAGE)
        return
    say(f"images: {', '.join(missing)} cannot be had; stand-ins take the places of Python's and of the servers'")
    if shutil.which("debootstrap") is None:
        install(["debootstrap"], "debootstrap, to make images")
    with ThreadPoolExecutor() as pool:
        packages = ("python3,python3-venv,ca-certificates", "ca-certificates")
        # The Debian release whose own Python is one that we support; the official image builds its own.
        python, debian = pool.map(_debian, ("bookworm", "trixie"), packages)
    with tempfile.TemporaryDirectory(prefix="tradeloop-standins-") as folder:
        for file in (ROOT / "deploy" / "standins").iterdir():
            shutil.copy(file, folder)
        shutil.copytree(jars(), Path(folder, "kafka"))
        environment |= {"BASE_IMAGE": python, "DEBIAN_IMAGE": debian, "STANDINS": folder}
        files.append(ROOT / "deploy" / "compose.test.yml")
        yield Stack(tuple(files), environment, debian, ("compose.test.tls.yml",))


def _debian(suite: str, packages: str) -> str:
    """An image of a Debian release with a few packages, and with the certificates that this machine trusts."""
    image = f"tradeloop-standin-{suite}"
    if works("docker", "image", "inspect", image):
        return image
    say(f"making {image}")
    with tempfile.TemporaryDirectory(prefix=f"tradeloop-{suite}-") as folder:
        root = Path(folder, "root")
        run(["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(root)], timeout_s=900)
        if _CERTIFICATES.exists():
            shutil.copyfile(_CERTIFICATES, root / _CERTIFICATES.relative_to("/"))
        archive = Path(folder, "root.tar")
        run(["tar", f"--directory={root}", "--exclude=./var/cache/apt/archives/*.deb", f"--file={archive}", "-c", "."])
        # Tools that bring certificates of their own are told to take the machine's.
        trust = [f"--change=ENV {variable}={_CERTIFICATES}" for variable in ("SSL_CERT_FILE", "PIP_CERT")]
        run(["docker", "import", *trust, '--change=CMD ["bash"]', str(archive), image], timeout_s=300)
    return image


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except OSError:
        return False
