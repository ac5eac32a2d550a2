"""The trained student as an ONNX graph, written op by op.

Reads   a trained `Student`.
Emits   the parts of its file: the ONNX model that `models.serving` runs, and the item arrays.

Why by hand and not by torch's exporter: serving asks one question at the newest position, so
the last layer need not answer at the other 49 (a third of the time saved), nor a layer before it
at positions that none of the next one sees; and every op is one whose rows do not depend on the
batch around them. A test holds this graph to the torch module.

Inputs  table (N + 1, W) item vectors, row 0 zeros; rows, types, gaps (B, T) int64;
        context (B, C) scaled; age (B,) int64, bucket of the seconds since the last item.
Output  user (B, W): what an item's vector is multiplied by to score it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.checkpoint import ModelFile
from models.features import FADING, HISTORY, N_CONTEXT
from models.linear import among
from models.linear_weights import ItemWeights
from models.onnx_graph import Graph, Ranges, Weights, finished
from models.student import FUTURE_BIAS, PAD_BIAS, Student, StudentConfig


def export_student(
    student: Student,
    item_ids: Sequence[str],
    metrics: Mapping[str, float],
    linear: ItemWeights | None = None,
    ranges: Ranges | None = None,
) -> ModelFile:
    """Return the parts of a student's file; items without a vector of their own are left out.

    `linear`, weights between the N items, retrieve in the network's place. Linear layers with
    `ranges` are served in int8.
    """
    weights = weights_of(student)
    is_known = np.asarray(weights["ids.weight"].any(axis=1))
    if linear is not None:  # made of more events than the network was trained on
        is_known[linear.others] = True
        is_known |= np.diff(linear.starts) > 0
    known = np.flatnonzero(is_known)
    return ModelFile(
        onnx=build_onnx(weights, student.config, ranges or {}),
        item_ids=[item_ids[i] for i in known.tolist()],
        text_projection=np.ascontiguousarray(weights["text.weight"].T),
        id_vectors=weights["ids.weight"][known],
        config=asdict(student.config),
        metrics={name: round(value, 6) for name, value in metrics.items()},
        linear=None if linear is None else among(linear, known),
    )


def weights_of(student: Student) -> Weights:
    """Return a student's weights as they are served."""
    return turned({name: value.detach().numpy() for name, value in student.state_dict().items()})


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


def build_onnx(
    weights: Weights, config: StudentConfig, ranges: Ranges, *, shows: Sequence[str] = ()
) -> bytes:
    """Return the serialised ONNX model of a student with these weights.

    Those of `Graph.shown` that are named in `shows` are outputs too. Histories are of any length
    up to `HISTORY`: what stands further back than all users' first items may be left out.
    """
    graph = Graph(weights, ranges)
    n_in = positions(config)
    before = graph.op("Neg", graph.op("Shape", "rows", start=1))  # -T
    items = graph.op("Gather", "table", "rows")  # (B, T, W)
    tokens = graph.linear(graph.newest(items, n_in[0], HISTORY), "item_in")
    rows, types, gaps = (graph.newest(x, n_in[0], HISTORY) for x in ("rows", "types", "gaps"))
    tokens = graph.op("Add", tokens, graph.op("Gather", graph.weight("kind.weight"), types))
    x = graph.op("Add", tokens, graph.op("Gather", graph.weight("gap.weight"), gaps))  # (B, T, W)
    is_pad = graph.op("Equal", rows, graph.ints(0))
    bias, none = graph.constant(np.float32(PAD_BIAS)), graph.constant(np.float32(0))
    pad = graph.op("Where", is_pad, bias, none)
    for i in range(config.layers):
        of_layer = graph.newest(pad, n_in[i], n_in[0])
        of_layer = graph.op("Unsqueeze", of_layer, graph.ints(1, 2))  # (B, 1, 1, K)
        x = _layer(graph, config, i, x, pad=of_layer, before=before)
    asked = graph.op("Unsqueeze", request(graph), graph.ints(1))  # (B, 1, R)
    user = user_head(graph, graph.norm(x, "final_norm"), asked)  # (B, 1, W)
    user = graph.op("Add", user, graph.linear(_pooled(graph, items, before), "pool"))
    graph.op("Squeeze", user, graph.ints(1), output="user")
    for name in shows:
        graph.op("Identity", graph.shown[name], output=name)
    model: bytes = _model(graph, config, shows).SerializeToString()
    return model


def positions(config: StudentConfig) -> list[int]:
    """Return of how many positions each layer's keys are needed, and 1, the last one's answer.

    >>> positions(StudentConfig()), positions(StudentConfig(reach=(43, 7)))
    ([50, 50, 1], [49, 7, 1])
    """
    needed = [1]
    for reach in reversed(config.reaches):
        needed.append(min(HISTORY, needed[-1] + reach - 1))
    return needed[::-1]


def _layer(
    graph: Graph, config: StudentConfig, layer: int, x: str, *, pad: str, before: str
) -> str:
    """Return the layer's answer at the last Q of K positions, (B, Q, W)."""
    name, (n_keys, n_asking) = f"blocks.{layer}", positions(config)[layer : layer + 2]
    head = config.width // config.heads
    columns = config.head_counts[layer] * head  # A
    normed = graph.norm(x, f"{name}.attention_norm")
    asking = graph.newest(normed, n_asking, n_keys)  # (B, Q, W)
    q, k, v = (
        _heads(graph, graph.linear(source, f"{name}.qkv", slice(at, at + columns)), head)
        for at, source in zip(range(0, 3 * columns, columns), (asking, normed, normed), strict=True)
    )  # (B, H, Q or K, A/H)
    logits = graph.op("MatMul", q, graph.op("Transpose", k, perm=[0, 1, 3, 2]))  # (B, H, Q, K)
    logits = graph.op("Mul", logits, graph.constant(np.float32(head**-0.5)))
    distance = distance_bias(graph.weights[f"{name}.distance"], config.reaches[layer])
    bias = _last(graph, distance[:, -n_asking:, -n_keys:], before)
    logits = graph.op("Add", graph.op("Add", logits, bias), pad)
    mixed = graph.op("MatMul", graph.op("Softmax", logits, axis=-1), v)  # (B, H, Q, A/H)
    mixed = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
    # A length of 1 is said: what ONNX Runtime fuses, it fuses by the lengths that it knows.
    n_said = 1 if n_asking == 1 else 0
    mixed = graph.op("Reshape", mixed, graph.ints(0, n_said, columns))  # (B, Q, A)
    x = graph.op("Add", graph.newest(x, n_asking, n_keys), graph.linear(mixed, f"{name}.out"))
    hidden = graph.linear(graph.norm(x, f"{name}.forward_norm"), f"{name}.up")
    return graph.op("Add", x, graph.linear(graph.op("Relu", hidden), f"{name}.down"))


def _heads(graph: Graph, x: str, head: int) -> str:
    split = graph.ints(0, 0, -1, head)
    return graph.op("Transpose", graph.op("Reshape", x, split), perm=[0, 2, 1, 3])


def distance_bias(distance: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """Return the bias of key j for query i, shape (H, T, T), with what is not seen masked."""
    steps = np.arange(HISTORY)
    behind = steps[:, None] - steps
    bias = distance[:, np.maximum(behind, 0)]
    return np.where((behind < 0) | (behind >= reach), FUTURE_BIAS, bias).astype(np.float32)


def request(graph: Graph) -> str:
    """Return what context and trigger say, (B, R)."""
    context = graph.linear("context", "request_context")
    age = graph.op("Gather", graph.weight("request_age.weight"), "age")
    return graph.op("Add", context, age)


def user_head(graph: Graph, state: str, asked: str) -> str:
    """Return the user vector (..., W): where history, context and trigger meet, (..., R)."""
    joined = graph.op("Add", graph.linear(state, "request_history"), asked)
    out = graph.linear(graph.op("Relu", joined), "request_out")
    return graph.op("Add", graph.linear(state, "user_out"), out)


def _pooled(graph: Graph, items: str, before: str) -> str:
    """Return the fading sum of the items' vectors, (B, 1, W)."""
    fading = FADING ** np.arange(HISTORY - 1, -1, -1, dtype=np.float32)
    of_length = _last(graph, fading[None], before)  # (1, T)
    return graph.op("MatMul", of_length, items)  # by (B, T, W)


def _last(graph: Graph, values: NDArray[np.float32], before: str) -> str:
    """Return the last T of a constant along each axis of positions, all where there are fewer.

    These are the last two, but for such of length 1.
    """
    found = graph.constant(values)
    for axis in (values.ndim - 2, values.ndim - 1):
        if values.shape[axis] > 1:
            found = graph.op("Slice", found, before, graph.ints(HISTORY), graph.ints(axis))
    return found


def _model(graph: Graph, config: StudentConfig, shows: Sequence[str]) -> onnx.ModelProto:
    value, ints, floats = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        value("table", floats, ["N", config.width]),
        *(value(name, ints, ["B", "T"]) for name in ("rows", "types", "gaps")),
        value("context", floats, ["B", N_CONTEXT]),
        value("age", ints, ["B"]),
    ]
    outputs = [value("user", floats, ["B", config.width])]
    for name in shows:
        outputs.append(value(name, floats, [f"{name} {axis}" for axis in range(3)]))
    return finished(graph, inputs, outputs)
