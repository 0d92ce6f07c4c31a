"""Makes the server fixtures of `tests/servers.py` known to every test of the workspace."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # `--import-mode=importlib` adds nothing to the path by itself

pytest_plugins = ["tests.servers"]
