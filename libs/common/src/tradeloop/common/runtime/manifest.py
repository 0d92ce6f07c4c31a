"""The manifest of a service that starts, as a message, as a metric and at `/build`: what runs there.

Its id follows from its content and not from the time, so that replicas of one deployment share it, and each record that
a service publishes can name it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distributions, version

import structlog
from pydantic import BaseModel

from tradeloop.common.bus.port import BusError
from tradeloop.common.clock import Clock
from tradeloop.common.messages import ServiceStarted
from tradeloop.common.runtime.metrics import Figure
from tradeloop.common.runtime.parts import digest, digest_of
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.runner import Runner

log = structlog.get_logger(__name__)

_AGAIN_S = 5.0


def manifest_of(
    service: str, commit: str, settings: BaseModel | None, parts: Mapping[str, Sequence[str]], clock: Clock
) -> ServiceStarted:
    """The manifest of a service that starts now; `parts` names what decides what it does, by kind."""
    content = {
        "version": version_of(service),
        "commit": commit,
        "packages": digest(sorted({f"{each.name}=={each.version}" for each in distributions()})),
        "settings": digest_of(settings) if settings is not None else "",
    }
    told = {kind: tuple(sorted(names)) for kind, names in sorted(parts.items())}
    return ServiceStarted(
        service=service,
        manifest=digest([service, content, told]),
        started=clock.now(),
        instance=f"{socket.gethostname()}:{os.getpid()}",
        parts=told,
        **content,
    )


def version_of(service: str) -> str:
    """The version of a service that is installed."""
    try:
        return version(f"tradeloop-{service}")
    except PackageNotFoundError:
        return "unknown"


class Announced:
    """A manifest on its way to its topic, in a thread of its own: a service does not wait for it."""

    def __init__(self, runner: Runner, manifest: ServiceStarted) -> None:
        self._runner, self.manifest = runner, manifest
        self._done, self._sent = threading.Event(), False
        log.info("runs", **manifest.model_dump(mode="json"))
        runner.runs(manifest.manifest)
        self._thread = threading.Thread(target=self._announce, name="manifest", daemon=True)
        self._thread.start()

    def figures(self) -> Iterator[Figure]:
        """Its numbers. From any thread."""
        told = self.manifest
        labels = (told.service, told.manifest, told.version, told.commit, told.packages, told.settings)
        yield Figure("tradeloop_manifest_info", 1, labels)
        yield Figure("tradeloop_manifest_published", float(self._sent))

    def close(self) -> None:
        """Try no more."""
        self._done.set()
        self._thread.join(_AGAIN_S)

    def _announce(self) -> None:
        said = False
        while not self._sent:
            try:
                producer = self._runner.bus.producer()
                try:
                    publish(producer, self.manifest, self.manifest.service)
                    producer.flush(_AGAIN_S)
                finally:
                    producer.close()
                self._sent = True
            except BusError as error:
                if not said:
                    log.warning("the manifest is not published yet", error=str(error), retry_s=_AGAIN_S)
                said = True
                if self._done.wait(_AGAIN_S):
                    log.warning("the manifest was not published", error=str(error))
                    return
