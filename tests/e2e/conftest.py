"""What the tests across services share."""

from __future__ import annotations

import sys

from tests.e2e.stack import PROBE

sys.path.insert(0, str(PROBE))
