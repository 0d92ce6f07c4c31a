"""The part that every Tradeloop service shares: the vocabulary, the ports, the simulator and the plug-in.

Nothing here knows a service. Modules that need a heavy library (TA-Lib, numba, Feast, MLflow,
confluent-kafka, SQLAlchemy) name it as an extra of the distribution `tradeloop-common`, so that an
image carries only what its service uses.
"""
