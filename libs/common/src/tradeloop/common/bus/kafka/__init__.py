"""The messaging port over Apache Kafka, by confluent-kafka's synchronous client.

Needs the extra `kafka`. One thread per producer or consumer; the bus itself may be shared. The client's own log goes
to the logger of this package.
"""

from __future__ import annotations

from tradeloop.common.bus.kafka.bus import Difference, KafkaBus
from tradeloop.common.bus.kafka.examined import Examined, Members
from tradeloop.common.bus.kafka.permissions import Granted, Permission
from tradeloop.common.bus.kafka.settings import KafkaSettings

__all__ = ["Difference", "Examined", "Granted", "KafkaBus", "KafkaSettings", "Members", "Permission"]
