"""Inference: decides at every bar's close.

Reads `preprocess.features.v1`, `execution.portfolio.v1` and `training.model_ready.v1`; writes `inference.signals.v1`,
`inference.model_activated.v1` and `control.manifests.v1`. It promises exactly one signal per portfolio and bar, made
from the features and the portfolio of that bar and nothing later, and that a new model takes over between two bars,
recorded with the bar from which it counts. Asked over HTTP it says what it decides on a bar, and changes nothing.
"""
