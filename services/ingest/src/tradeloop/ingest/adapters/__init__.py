"""What ingest reads from outside, one file per technology."""

from __future__ import annotations
