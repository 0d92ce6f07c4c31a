"""Preprocess: closed bars in, features out.

Reads `market.bars.v1` and `preprocess.requested.v1`; writes `preprocess.features.v1`, `preprocess.completed.v1` and
`control.manifests.v1`, and the offline and online feature store.

It promises that a base frame gives the same features to the bit whenever and however often it comes: alone, again,
after a crash, or in a batch over a range. Its only state is derived from stored bars, and is derived anew wherever a
frame does not follow the one before.
"""
