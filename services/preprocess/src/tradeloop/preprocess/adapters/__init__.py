"""The adapters of preprocess, one file per technology."""

from __future__ import annotations
