"""Stored trades, order books and news: the port in `port`, and its adapters `memory.MemoryEventStore` and
`sql.SqlEventStore`."""
