"""Training: learns a policy from stored bars and features, and registers it.

Reads `training.requested.v1`; writes `training.progressed.v1` while a run goes on, `training.model_ready.v1` when its
policy is in the model store, and `control.manifests.v1` when it starts. The same request on the same data gives the
same policy, byte for byte.
"""
