"""Registered policies: the port in `port`, its adapters `mlflow.MlflowModelStore` and `folder.LocalModelStore`, and
`onnx_policy.OnnxPolicy`, which runs a policy.
"""
