"""The machinery that runs a service: its protocol, the run loop, headers, health over HTTP, logs."""
