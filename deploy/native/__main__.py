"""`python -m deploy.native up|down`: the stack without containers, with its state in `.native/` of the checkout."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path

from deploy.native.server import ServerError
from deploy.native.stack import EXAMPLE_SOURCES, Stack

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Exits with 1 and the reason on stderr where the stack did not start."""
    parser = argparse.ArgumentParser(prog="python -m deploy.native", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start what does not run, and wait until it is ready")
    up.add_argument("--portfolios", type=Path, default=ROOT / "deploy" / "portfolios", help="folder of YAML files")
    up.add_argument("--sources", type=Path, default=EXAMPLE_SOURCES, help="YAML file of the sources of market data")
    up.add_argument("--tls", action="store_true", help="encrypt all traffic to the servers, with a private authority")
    down = commands.add_parser("down", help="stop it")
    down.add_argument("--clean", action="store_true", help="remove all data, logs and passwords too")
    arguments = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a start is undone
    stack = Stack(ROOT / ".native", partial(print, flush=True))
    try:
        if arguments.command == "up":
            stack.up(arguments.portfolios, arguments.sources, tls=arguments.tls)
            print(f"Logs: .native/log. For the command: . {os.path.relpath(ROOT / '.native' / 'env')}")
        else:
            stack.down(clean=arguments.clean)
    except ServerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
