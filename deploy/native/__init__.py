"""Servers and services as processes of this machine, without containers: what tests use and `make up-native` starts.

For Linux: processes are told apart by `/proc`. What the system's packages lack is kept in `.servers/` of the checkout.
"""
