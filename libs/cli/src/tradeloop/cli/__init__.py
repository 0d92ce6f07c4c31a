"""The `tradeloop` command, and the embedded stack that it starts.

The command line, the composition of all five services in one process, and what a run leaves behind. Modules
that need heavy libraries are imported by the command that needs them, so that `tradeloop --help` answers at
once.
"""
