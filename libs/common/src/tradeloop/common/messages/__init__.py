"""Every message that travels between services: frozen models, JSON on the wire.

Readers ignore fields they do not know, so optional fields may be added; any other change is a new topic
version. A message's id is a UUIDv5 of its topic and its `identity`, so the same input gives the same id
wherever and however often it is computed. All times are UTC; `time` is always the close of the bar that a
message is about. `topics` has the catalogue of what carries them.
"""

from __future__ import annotations

from tradeloop.common.messages.base import Message
from tradeloop.common.messages.control import PortfolioCommanded, ServiceStarted
from tradeloop.common.messages.execution import (
    OrderFilled,
    OrderStatus,
    OrderUpdated,
    PortfolioEvent,
    PortfolioEventKind,
    PortfolioMarked,
    PortfolioState,
    PositionMark,
    RiskVerdict,
    Side,
    Transition,
)
from tradeloop.common.messages.inference import HoldReason, ModelActivated, SignalGenerated
from tradeloop.common.messages.ingest import (
    BackfillCompleted,
    BackfillRequested,
    BarFrame,
    Channel,
    InstrumentChanged,
    LiveReported,
    LiveRequested,
    ReplayRequested,
)
from tradeloop.common.messages.market import (
    MarketBook,
    MarketBooks,
    MarketNews,
    MarketNewsItem,
    MarketTrade,
    MarketTrades,
)
from tradeloop.common.messages.preprocess import FeaturesComputed, PreprocessCompleted, PreprocessRequested
from tradeloop.common.messages.training import ModelReady, TrainingProgressed, TrainingRequested

__all__ = [
    "BackfillCompleted",
    "BackfillRequested",
    "BarFrame",
    "Channel",
    "FeaturesComputed",
    "HoldReason",
    "InstrumentChanged",
    "LiveReported",
    "LiveRequested",
    "MarketBook",
    "MarketBooks",
    "MarketNews",
    "MarketNewsItem",
    "MarketTrade",
    "MarketTrades",
    "Message",
    "ModelActivated",
    "ModelReady",
    "OrderFilled",
    "OrderStatus",
    "OrderUpdated",
    "PortfolioCommanded",
    "PortfolioEvent",
    "PortfolioEventKind",
    "PortfolioMarked",
    "PortfolioState",
    "PositionMark",
    "PreprocessCompleted",
    "PreprocessRequested",
    "ReplayRequested",
    "RiskVerdict",
    "ServiceStarted",
    "Side",
    "SignalGenerated",
    "TrainingProgressed",
    "TrainingRequested",
    "Transition",
]
