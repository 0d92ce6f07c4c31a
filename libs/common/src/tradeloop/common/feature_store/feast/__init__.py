"""Feature values in Feast: the store, an offline store of our own over polars, and the import of Feast itself."""
