"""The settings that all services have, beside where they find their servers."""

from __future__ import annotations

from tradeloop.common.runtime.levels import LogSettings
from tradeloop.common.runtime.traces import TraceSettings
from tradeloop.common.settings import EnvironmentSettings


class ServiceSettings(EnvironmentSettings):
    """The settings by which a service tells of itself; its own come on top."""

    logs: LogSettings = LogSettings()
    traces: TraceSettings = TraceSettings()
