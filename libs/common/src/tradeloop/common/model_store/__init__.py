"""Registered policies: the port in `port`, its adapters `mlflow.MlflowModelStore` and `memory.MemoryModelStore`, and
`onnx_policy.OnnxPolicy`, which runs a policy.
"""
