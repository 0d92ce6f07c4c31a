"""What retention does in time, at once: records of a Kafka topic are deleted."""

from __future__ import annotations

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from tradeloop.common.bus.port import Partition


def delete_records(bootstrap_servers: str, partition: Partition, offset: int) -> None:
    """Delete the records of a partition before an offset; its topic by the name that the broker knows."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.delete_records([TopicPartition(partition.topic, partition.number, offset)]).values():
        future.result()
