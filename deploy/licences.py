"""`python -m deploy.licences`: the licence of every package that ships, by its own metadata, and which may be used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]

PERMISSIVE = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT"),
        *("MIT-CMU", "PSF-2.0", "ZPL-2.1", "Zlib"),
    }
)
"""Licences, by their SPDX names, that ask for no more than a notice."""
WEAK = frozenset({"LGPL-3.0-only", "MPL-2.0"})
"""Licences that bind changes of the package itself, and not what uses it: nothing of these packages is changed here."""
PROPRIETARY = "LicenseRef-NVIDIA-Proprietary"
"""CUDA, which the images of services are built without (`TORCH_INDEX`)."""
NAMED: Mapping[str, str] = {
    # The metadata says nothing, or nothing definite; the file of the licence does.
    "cuda-toolkit": PROPRIETARY,
    "huey": "MIT",
    "skops": "MIT",
    "ta-lib": "BSD-2-Clause",
    # For other systems, and an older Python.
    "async-timeout": "Apache-2.0",
    "pywin32": "PSF-2.0",
    "waitress": "ZPL-2.1",
    "winloop": "MIT",
}
"""Licences that were looked up by hand."""
_SPELT = (
    (r"^Apache (Software )?License( v?2(\.0)?)?$", "Apache-2.0"),
    (r"^MIT( License)?$", "MIT"),
    (r"^BSD( License)?$", "BSD"),
    (r"^3-Clause BSD License$", "BSD-3-Clause"),
    (r"^ISC License \(ISCL\)$", "ISC"),
    (r"^Mozilla Public License 2\.0 \(MPL 2\.0\)$", "MPL-2.0"),
    (r"^Python Software Foundation License$", "PSF-2.0"),
    (r"^NVIDIA Proprietary Software$", PROPRIETARY),
)


def shipped() -> list[str]:
    """The third parties that any image or installation may have, as `uv.lock` pins them."""
    [uv] = sorted((ROOT / ".tools").glob("uv-*/bin/uv"))[-1:]
    command = [str(uv), "export", "--quiet", "--frozen", "--no-dev", "--all-packages", "--format", "cyclonedx1.5"]
    done = subprocess.run(
        [*command, "--preview-features", "sbom-export"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {str(each["name"]) for each in json.loads(done.stdout)["components"]}
    return sorted(name for name in names if not name.startswith("tradeloop-"))


def licence_of(name: str) -> str | None:
    """The SPDX expression of an installed package's licence; None where nobody says it."""
    if name in NAMED:
        return NAMED[name]
    try:
        told = distribution(name).metadata.json
    except PackageNotFoundError:
        return None
    if expression := told.get("license_expression"):
        return str(expression)
    classified = [each.rpartition("::")[2].strip() for each in told.get("classifier", []) if "License ::" in each]
    first_line = str(told.get("license") or "").strip().partition("\n")[0]
    return " AND ".join(_spdx(each) for each in classified or [first_line]) or None


def refused(name: str, licence: str | None) -> bool:
    """Whether a package may not ship: each part of its licence has to be one that may be used, or one of a choice."""
    if licence is None:
        return True
    if licence == PROPRIETARY:
        return not name.startswith(("nvidia-", "cuda-"))
    parts = re.sub(r"[()]| WITH LLVM-exception", "", licence)
    return not all(
        any(choice.strip() in PERMISSIVE | WEAK for choice in part.split(" OR ")) for part in parts.split(" AND ")
    )


def _spdx(said: str) -> str:
    return next((spdx for pattern, spdx in _SPELT if re.match(pattern, said)), said)


def listed(names: Iterable[str]) -> str:
    """A line for each package."""
    return "".join(f"{name:<40}{licence_of(name) or 'UNKNOWN'}\n" for name in names)


def main() -> None:
    """Exits with 1 where a package may not ship."""
    names = shipped()
    sys.stdout.write(listed(names))
    if wrong := [name for name in names if refused(name, licence_of(name))]:
        sys.exit(f"may not ship, or nobody says its licence: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
