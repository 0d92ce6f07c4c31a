"""Contracts as functions: what every adapter of a port and every plug-in must do, for its author to run against it.

They raise `AssertionError` and need no test framework. `tradeloop.common.testing` is their public face.
"""
