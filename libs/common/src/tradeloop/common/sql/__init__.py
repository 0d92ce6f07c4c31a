"""The parts that the stores in SQL share: the engine and its errors, and migrations."""
