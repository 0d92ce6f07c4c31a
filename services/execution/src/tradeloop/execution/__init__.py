"""Execution: the book, the risk gate, the orders, and what each decision was worth.

Reads `market.bars.v1`, `inference.signals.v1` and `control.commands.v1`; writes `execution.orders.v1`,
`execution.fills.v1`, `execution.portfolio.v1`, `execution.risk.v1`, `execution.events.v1`,
`experience.transitions.v1` and `control.manifests.v1`. It promises that frame t + 1 of a portfolio is processed only
when the decision at t is settled or on record as missed, that an order is persisted before it is sent, that nothing
is ever ordered or booked twice, that outputs which may not have left are published again, and that a failure stops
one portfolio alone.
"""
