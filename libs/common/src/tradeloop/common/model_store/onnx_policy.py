"""Runs an exported policy with ONNX Runtime, without allocating per decision."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tradeloop.common.model_store.port import Policy


class OnnxPolicy:
    """A policy ready to decide for one book. Not shared between threads.

    One thread and fixed buffers: the answer to an observation is the same bits in backtest and live. Raises
    ValueError when the graph's input or output does not have the shape its manifest declares.
    """

    def __init__(self, policy: Policy) -> None:
        manifest = policy.manifest
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(policy.onnx, options, providers=["CPUExecutionProvider"])
        declared = [(x.name, x.shape[-1]) for x in (*self._session.get_inputs(), *self._session.get_outputs())]
        expected = [("observation", manifest.observation_size), ("action", manifest.action_size)]
        if declared != expected:
            raise ValueError(f"policy {policy.model_id[:12]}: its graph has {declared}, its manifest says {expected}")
        self.observation = np.zeros((1, manifest.observation_size), dtype=np.float32)
        self._action = np.zeros((1, manifest.action_size), dtype=np.float32)
        self._binding = self._session.io_binding()
        for bind, name, buffer in (
            (self._binding.bind_input, "observation", self.observation),
            (self._binding.bind_output, "action", self._action),
        ):
            bind(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        """The action (1, m) for an observation (1, n), before the action scheme."""
        if observation is not self.observation:
            self.observation[:] = observation
        self._session.run_with_iobinding(self._binding)
        return self._action.astype(np.float64)
