"""`python -m tests.e2e.faults --markdown` prints the page `docs/failures.md`."""

from __future__ import annotations

import argparse

from tests.e2e.faults import live
from tests.e2e.faults.matrix import Case, tried, undisturbed
from tests.e2e.faults.page import markdown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.faults", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="print the page docs/failures.md")
    parser.add_argument("--only", default="", metavar="TEXT", help="try only the faults with this in their names")
    parser.add_argument("--live", action="store_true", help="try only those of the live feed")
    wanted = parser.parse_args()
    expected, seen = undisturbed()
    fed, feeding = live.undisturbed(seen)

    def told(case: Case) -> Case:
        if not wanted.markdown:
            print(case.fault, "|", "; ".join(case.outcome), "|", "; ".join(case.complaints), flush=True)
        return case

    cases = [] if wanted.live else [told(case) for case in tried(expected, seen, only=wanted.only)]
    of_feeds = [told(case) for case in tried(fed, feeding, live.LiveHouse, wanted.only)]
    if wanted.markdown:
        print(markdown(cases, of_feeds), end="")


if __name__ == "__main__":
    main()
