"""`LocalModelStore`: registered policies in a plain folder.

    <root>/<name>/<version>/policy.onnx, manifest.json, run.json (metrics and parameters)
    <root>/<name>/aliases/<alias>    the version it points at

Several processes may share the folder: a version appears complete or not at all, and an alias moves at once.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tradeloop.common.model_store.port import (
    ModelNotFound,
    ModelStoreUnavailable,
    Policy,
    RegisteredPolicy,
    read_policy,
    write_policy,
)

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


class LocalModelStore:
    """Policies below `root`, a folder that is made when it is needed."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def register(
        self, name: str, policy: Policy, *, metrics: Mapping[str, float], parameters: Mapping[str, str]
    ) -> RegisteredPolicy:
        model = self._model(name)
        with _reaching(self._root):
            model.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=model))
            try:
                write_policy(unfinished, policy)
                run = {"metrics": dict(metrics), "parameters": dict(parameters)}
                (unfinished / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
                unfinished.chmod(0o755)  # mkdtemp keeps it to this user
                version = max((int(path.name) for path in model.iterdir() if path.name.isdecimal()), default=0) + 1
                while True:
                    try:
                        unfinished.rename(model / str(version))
                        break
                    except OSError:  # another process took the number, as a folder that is not empty cannot be replaced
                        if not (model / str(version)).is_dir():
                            raise
                        version += 1
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return RegisteredPolicy(name, str(version), policy)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        model = self._model(name)
        if not _SAFE.fullmatch(alias) or alias.isdecimal():
            raise ValueError(f"{alias!r} is no alias: use letters, digits, - _ and ., and not digits alone")
        with _reaching(self._root):
            if not (version.isdecimal() and (model / version).is_dir()):
                raise ModelNotFound(f"model {name} has no version {version}")
            (model / "aliases").mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=model, prefix=".unfinished-", delete=False) as file:
                file.write(version)
            unfinished = Path(file.name)
            unfinished.chmod(0o644)
            unfinished.replace(model / "aliases" / alias)

    def load(self, name: str, reference: str) -> RegisteredPolicy:
        model, version = self._model(name), reference
        with _reaching(self._root):
            if not reference.isdecimal():
                path = model / "aliases" / reference
                if not (_SAFE.fullmatch(reference) and path.is_file()):
                    raise ModelNotFound(f"model {name} has no alias {reference}")
                version = path.read_text(encoding="utf-8")
            elif not (model / version).is_dir():
                raise ModelNotFound(f"model {name} has no version {version}")
            return RegisteredPolicy(name, version, read_policy(model / version))

    def check(self) -> None:
        with _reaching(self._root):
            self._root.mkdir(parents=True, exist_ok=True)

    def _model(self, name: str) -> Path:
        if not _SAFE.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a model: use letters, digits, - _ and .")
        return self._root / name


@contextmanager
def _reaching(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelStoreUnavailable(f"model store {root}: {error}") from error
