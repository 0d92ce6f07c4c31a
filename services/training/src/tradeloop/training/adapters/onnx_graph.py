"""The ONNX graph of a policy, built node by node.

Not by `torch.onnx.export`: that takes seconds to import and trace, and writes source paths of the machine into
the graph, so that equal policies would not be equal bytes. A policy is five kinds of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from tradeloop.training.domain.scaler import SCALED_LIMIT, Scaler

OPSET, IR_VERSION = 18, 9
"""Fixed, so that a newer `onnx` writes the same bytes."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A dense layer: `weight` (out, in) and `bias` (out,) float32, then an activation or nothing."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: Literal["Tanh", "Relu", None]


def policy_graph(
    scaler: Scaler, layers: Sequence[Layer], *, kind: Literal["box", "discrete"], choices: int, actions: int
) -> bytes:
    """The graph `observation (1, n) float32 -> action (1, m) float32` of a deterministic policy.

    The last layer gives the mean action of a `box`, clipped to [-1, 1], or `choices` logits for each of `actions`
    components, of which the greatest counts.
    """
    constants = {
        "mean": scaler.mean,
        "scale": scaler.scale,
        "lowest": np.float32(-SCALED_LIMIT),
        "highest": np.float32(SCALED_LIMIT),
    }
    nodes = [
        helper.make_node("Sub", ["observation", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "lowest", "highest"], ["hidden_0"]),
    ]
    value = "hidden_0"
    for i, layer in enumerate(layers, start=1):
        constants |= {f"weight_{i}": layer.weight, f"bias_{i}": layer.bias}
        nodes.append(helper.make_node("Gemm", [value, f"weight_{i}", f"bias_{i}"], [f"linear_{i}"], transB=1))
        value = f"linear_{i}"
        if layer.activation:
            nodes.append(helper.make_node(layer.activation, [value], [f"hidden_{i}"]))
            value = f"hidden_{i}"
    if kind == "box":
        constants |= {"shortest": np.float32(-1.0), "longest": np.float32(1.0)}
        nodes.append(helper.make_node("Clip", [value, "shortest", "longest"], ["action"]))
    else:
        constants["components"] = np.array([1, actions, choices])
        nodes += [
            helper.make_node("Reshape", [value, "components"], ["logits"]),
            helper.make_node("ArgMax", ["logits"], ["choice"], axis=2, keepdims=0),
            helper.make_node("Cast", ["choice"], ["action"], to=TensorProto.FLOAT),
        ]
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, [1, len(scaler.mean)])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, [1, actions])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, producer_name="tradeloop", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
