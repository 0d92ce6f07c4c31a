"""Imports Feast and undoes what that does to the process. To be imported before anything of Feast."""

from __future__ import annotations

import os
import sys

# Importing Feast points prometheus_client at files on disk, and it chooses when it is first imported.
import prometheus_client  # noqa: F401
import typeguard

# Feast imports PyTorch where it is installed, for seconds and hundreds of megabytes, to make tensors that nobody wants;
# and it has typeguard rewrite its classes, which takes as long, to check at each call what mypy checks here.
_torch = sys.modules.get("torch")
_typechecked = typeguard.typechecked
sys.modules["torch"] = None  # type: ignore[assignment]  # how Python notes that there is no such module
typeguard.typechecked = lambda target: target  # type: ignore[assignment]
try:
    import feast  # noqa: F401
finally:
    typeguard.typechecked = _typechecked
    del sys.modules["torch"]
    if _torch is not None:
        sys.modules["torch"] = _torch

for _variable in ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR"):
    if "feast_metrics_" in os.environ.get(_variable, ""):
        del os.environ[_variable]  # set by Feast's import; child processes would inherit it
