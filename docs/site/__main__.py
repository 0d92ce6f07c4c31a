"""Build the site into `build/docs/site`, or say what is wrong with it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from docs.site.build import SiteError, build

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.site", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout whose pages are built")
    root = parser.parse_args().root.resolve()
    try:
        site = build(root, root / "build/docs")
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1
    pages = len(list(site.rglob("*.html")))
    place = site.relative_to(root)
    print(f"{pages} pages are in {place}; to read them: python3 -m http.server -d {place}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
