"""Execution: the book, the risk gate, the orders, and what each decision was worth.

Reads `market.bars.v1` and `inference.signals.v1`; writes `execution.orders.v1`, `execution.fills.v1`,
`execution.portfolio.v1`, `execution.risk.v1` and `experience.transitions.v1`. It promises that frame t + 1 of
a portfolio is processed only when the decision at t is settled, that an order is persisted before it is sent,
that nothing is ever ordered or booked twice, and that a message delivered again publishes the same outputs
again.
"""
