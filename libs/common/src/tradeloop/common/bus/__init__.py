"""Messaging: the port in `port`, and its adapters `memory.MemoryBus` (one process, deterministic) and `kafka.KafkaBus`.

Knows bytes, keys and headers; what a message means is the business of `tradeloop.common.messages`.
"""
