"""Feature values: the port in `port`, and its adapters `memory.MemoryFeatureStore` and `feast.FeastFeatureStore`."""
