"""Stored bars: the port in `port`, and its adapters `memory.MemoryBarStore` and `sql.SqlBarStore`.

All are bitemporal: each revision of a bar stays, with the time at which it became known, and a read takes the
highest, or the highest that was known at a given time.
"""
