"""An ONNX graph that grows op by op: what the student's networks are written with.

Reads   weights, and for layers in int8 the ranges of what they read.
Emits   a checked ONNX model.
Owns    how a linear layer is written, in float32 and in int8.

In int8 the left side of a product is cut into 255 steps of a range that is fixed beforehand
(`models.compress`), and the right side column by column; sums are of whole numbers, so that a row
stays what it is in any batch. Of ONNX Runtime's own ways, the dynamic one takes its steps from the
batch, and the static one adds the bias in a pass of its own, and gains less.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_OPSET = 18
_IR_VERSION = 9  # read by ONNX Runtime 1.16 and later
_CONTRIB: Final = "com.microsoft"  # ONNX Runtime's own ops
# Steps of a weight to either side: 7 bits, for CPUs without VNNI add two products in 16.
_WEIGHT_STEPS: Final = 63

Weights = Mapping[str, NDArray[np.float32]]
Ranges = Mapping[str, tuple[float, float]]  # least and most that a linear layer reads, by its name


class Graph:
    """Collects nodes and constants; each method returns the name of its output.

    Attributes
    ----------
    shown
        What may be an output beside the user: what a linear layer reads by the layer's name, and
        keys and values of a layer, (B, H, K, A/H), as `blocks.0.keys`.
    """

    def __init__(self, weights: Weights, ranges: Ranges) -> None:
        self.weights = weights
        self.ranges = ranges
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shown: dict[str, str] = {}
        self._cut: dict[str, tuple[str, str, str]] = {}  # steps, their size and zero, by what

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Return a constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """Return a constant of int64."""
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """Return what a node makes of its inputs."""
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, name: str) -> str:
        """Return a weight as it is."""
        return self.constant(self.weights[name])

    def linear(self, x: str, name: str, rows: slice = slice(None)) -> str:
        """Return x @ W.T + b, of some output rows of a torch Linear."""
        self.shown[name] = x
        weight = self.weights[f"{name}.weight"][rows].T
        bias = self.weights.get(f"{name}.bias")
        if name in self.ranges:
            return self._int8(x, name, weight, None if bias is None else bias[rows])
        x = self.op("MatMul", x, self.constant(weight))
        return x if bias is None else self.op("Add", x, self.constant(bias[rows]))

    def _int8(
        self, x: str, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None
    ) -> str:
        if x not in self._cut:
            step, zero = steps_of(self.ranges[name])
            size, at = self.constant(np.float32(step)), self.constant(np.uint8(zero))
            self._cut[x] = self.op("QuantizeLinear", x, size, at), size, at
        steps, size, zero_at = self._cut[x]
        sizes = np.maximum(np.abs(weight).max(axis=0), 1e-12) / _WEIGHT_STEPS  # by column
        whole = self.constant(np.rint(weight / sizes).astype(np.int8))
        inputs = [steps, whole, size, self.constant(sizes.astype(np.float32)), zero_at, ""]
        if bias is not None:
            inputs.append(self.constant(bias))
        return self.op("MatMulIntegerToFloat", *inputs, domain=_CONTRIB)

    def norm(self, x: str, name: str) -> str:
        """Return x after a LayerNorm."""
        scale, shift = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)

    def newest(self, x: str, n: int, length: int) -> str:
        """Return the last n of `length` positions, or all where there are fewer: (B, n, ...)."""
        if n == length:
            return x
        if n == 1:  # ONNX Runtime sees that it is one, and may fuse what follows
            return self.op("Gather", x, self.ints(-1), axis=1)
        return self.op("Slice", x, self.ints(-n), self.ints(length), self.ints(1))


def steps_of(within: tuple[float, float]) -> tuple[float, int]:
    """Return the size of one of 255 steps that span a range and 0, and which step 0 is.

    >>> steps_of((0.0, 2.55))
    (0.01, 0)
    """
    least, most = min(within[0], 0.0), max(within[1], 0.0)
    step = max(most - least, 1e-12) / 255
    return step, round(-least / step)


def finished(
    graph: Graph, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """Return the checked model of a graph."""
    made = helper.make_graph(graph.nodes, "student", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    if graph.ranges:
        opsets.append(helper.make_opsetid(_CONTRIB, 1))
    model = helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION)
    model.producer_name, model.producer_version = "pushflow", ""  # same weights, same bytes
    onnx.checker.check_model(model)
    return model
