"""The adapters of ingest, one file per technology."""

from __future__ import annotations
