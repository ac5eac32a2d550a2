"""The trained student as an ONNX graph, written op by op.

Reads   a trained `Student`.
Emits   the parts of its file: the ONNX model that `models.serving` runs, and the item arrays.

Why by hand and not by torch's exporter: serving asks one question at the newest position, so
the last layer need not answer at the other 49 (a third of the time saved), and every op is one
whose rows do not depend on the batch around them. A test holds this graph to the torch module.

Inputs  table (N + 1, W) item vectors, row 0 zeros; rows, types, gaps (B, T) int64;
        context (B, C) scaled; age (B,) int64, bucket of the seconds since the last item.
Output  user (B, W): what an item's vector is multiplied by to score it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.checkpoint import ModelFile
from models.features import HISTORY, N_CONTEXT
from models.plain_tower import FADING
from models.student import FUTURE_BIAS, PAD_BIAS, Student, StudentConfig

_OPSET = 18
_IR_VERSION = 9  # read by ONNX Runtime 1.16 and later

Weights = Mapping[str, NDArray[np.float32]]


class _Graph:
    """Collects nodes and constants; each method returns the name of its output."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[Any] | np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, name: str) -> str:
        return self.constant(self.weights[name])

    def linear(self, x: str, name: str, rows: slice = slice(None)) -> str:
        """Return x @ W.T + b, of some output rows of a torch Linear."""
        x = self.op("MatMul", x, self.constant(self.weights[f"{name}.weight"][rows].T))
        if f"{name}.bias" in self.weights:
            x = self.op("Add", x, self.constant(self.weights[f"{name}.bias"][rows]))
        return x

    def norm(self, x: str, name: str) -> str:
        scale, shift = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)

    def newest(self, x: str) -> str:
        """Return the last position only: (B, T, W) to (B, 1, W)."""
        return self.op("Slice", x, self.ints(HISTORY - 1), self.ints(HISTORY), self.ints(1))


def export_student(
    student: Student,
    item_ids: Sequence[str],
    metrics: Mapping[str, float],
    factors: NDArray[np.float32] | None = None,
) -> ModelFile:
    """Return the parts of a student's file; items without a vector of their own are left out.

    `factors`, shape (N, M), retrieve in the network's place; an item that has some stays in.
    """
    weights = turned({name: value.detach().numpy() for name, value in student.state_dict().items()})
    is_known = weights["ids.weight"].any(axis=1)
    if factors is not None:
        is_known |= factors.any(axis=1)
    known = np.flatnonzero(is_known).tolist()
    return ModelFile(
        onnx=build_onnx(weights, student.config),
        item_ids=[item_ids[i] for i in known],
        text_projection=np.ascontiguousarray(weights["text.weight"].T),
        id_vectors=weights["ids.weight"][known],
        config=asdict(student.config),
        metrics={name: round(value, 6) for name, value in metrics.items()},
        factors=None if factors is None else factors[known],
    )


def turned(weights: Weights) -> Weights:
    """Return weights that give the same scores by vectors whose columns are all of one kind.

    Popularity has a column of its own, longer than the others, and an index gives all columns the
    same room: it would take the most popular items for equals. So items and users are turned
    together, always by the same rotation.
    """
    width = len(weights["pool.weight"])
    by, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))
    by = by.astype(np.float32)
    return {
        **weights,
        "ids.weight": weights["ids.weight"] @ by,
        "text.weight": by.T @ weights["text.weight"],
        "item_in.weight": weights["item_in.weight"] @ by,
        "user_out.weight": by.T @ weights["user_out.weight"],
        "user_out.bias": weights["user_out.bias"] @ by,
        "request_out.weight": by.T @ weights["request_out.weight"],
        "pool.weight": by.T @ weights["pool.weight"] @ by,
    }


def build_onnx(weights: Weights, config: StudentConfig) -> bytes:
    """Return the serialised ONNX model of a student with these weights."""
    graph = _Graph(weights)
    items = graph.op("Gather", "table", "rows")  # (B, T, W)
    tokens = graph.linear(items, "item_in")
    tokens = graph.op("Add", tokens, graph.op("Gather", graph.weight("kind.weight"), "types"))
    x = graph.op("Add", tokens, graph.op("Gather", graph.weight("gap.weight"), "gaps"))  # (B, T, W)
    is_pad = graph.op("Equal", "rows", graph.ints(0))
    bias, none = graph.constant(np.float32(PAD_BIAS)), graph.constant(np.float32(0))
    pad = graph.op("Where", is_pad, bias, none)
    pad = graph.op("Unsqueeze", pad, graph.ints(1, 2))  # (B, 1, 1, T)
    for i in range(config.layers):
        x = _layer(graph, config, f"blocks.{i}", x, pad, is_last=i == config.layers - 1)
    user = _user(graph, graph.norm(x, "final_norm"))  # (B, 1, W)
    user = graph.op("Add", user, graph.linear(_pooled(graph, items), "pool"))
    graph.op("Squeeze", user, graph.ints(1), output="user")
    model: bytes = _model(graph, config).SerializeToString()
    return model


def _layer(
    graph: _Graph, config: StudentConfig, name: str, x: str, pad: str, *, is_last: bool
) -> str:
    width, n_heads = config.width, config.heads
    normed = graph.norm(x, f"{name}.attention_norm")
    asking = graph.newest(normed) if is_last else normed  # (B, Q, W), Q is 1 or T
    q, k, v = (
        _heads(
            graph, graph.linear(source, f"{name}.qkv", slice(i * width, (i + 1) * width)), config
        )
        for i, source in enumerate((asking, normed, normed))
    )  # (B, H, Q or T, W/H)
    scale = np.float32((width // n_heads) ** -0.5)
    logits = graph.op("MatMul", q, graph.op("Transpose", k, perm=[0, 1, 3, 2]))  # (B, H, Q, T)
    logits = graph.op("Mul", logits, graph.constant(scale))
    distance = _distance_bias(graph.weights[f"{name}.distance"])  # (H, T, T)
    bias = graph.constant(distance[:, -1:] if is_last else distance)
    logits = graph.op("Add", graph.op("Add", logits, bias), pad)
    mixed = graph.op("MatMul", graph.op("Softmax", logits, axis=-1), v)  # (B, H, Q, W/H)
    mixed = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = graph.op("Reshape", mixed, graph.ints(0, 0, width))  # (B, Q, W)
    x = graph.op("Add", graph.newest(x) if is_last else x, graph.linear(mixed, f"{name}.out"))
    hidden = graph.linear(graph.norm(x, f"{name}.forward_norm"), f"{name}.up")
    return graph.op("Add", x, graph.linear(graph.op("Relu", hidden), f"{name}.down"))


def _heads(graph: _Graph, x: str, config: StudentConfig) -> str:
    split = graph.ints(0, 0, config.heads, config.width // config.heads)
    return graph.op("Transpose", graph.op("Reshape", x, split), perm=[0, 2, 1, 3])


def _distance_bias(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the bias of key j for query i, shape (H, T, T), with the future masked."""
    steps = np.arange(HISTORY)
    behind = steps[:, None] - steps
    bias = distance[:, np.maximum(behind, 0)]
    return np.where(behind < 0, FUTURE_BIAS, bias).astype(np.float32)


def _user(graph: _Graph, state: str) -> str:
    """Return the user vector (B, 1, W): where history, context and trigger meet."""
    context = graph.linear("context", "request_context")  # (B, R)
    age = graph.op("Gather", graph.weight("request_age.weight"), "age")
    request = graph.op("Unsqueeze", graph.op("Add", context, age), graph.ints(1))  # (B, 1, R)
    joined = graph.op("Add", graph.linear(state, "request_history"), request)
    out = graph.linear(graph.op("Relu", joined), "request_out")
    return graph.op("Add", graph.linear(state, "user_out"), out)


def _pooled(graph: _Graph, items: str) -> str:
    """Return the fading sum of the items' vectors, (B, 1, W)."""
    fading = FADING ** np.arange(HISTORY - 1, -1, -1, dtype=np.float32)
    return graph.op("MatMul", graph.constant(fading[None]), items)  # (1, T) by (B, T, W)


def _model(graph: _Graph, config: StudentConfig) -> onnx.ModelProto:
    value, ints, floats = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        value("table", floats, ["N", config.width]),
        *(value(name, ints, ["B", HISTORY]) for name in ("rows", "types", "gaps")),
        value("context", floats, ["B", N_CONTEXT]),
        value("age", ints, ["B"]),
    ]
    outputs = [value("user", floats, ["B", config.width])]
    made = helper.make_graph(graph.nodes, "student", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION)
    model.producer_name, model.producer_version = "pushflow", ""  # same weights, same bytes
    onnx.checker.check_model(model)
    return model
