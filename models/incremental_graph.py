"""The student's network for one new event: what came before is told by keys and values kept.

Reads   the weights of a student whose reach lets keys and values be kept.
Emits   an ONNX model of one position.
Owns    which kept position is how far behind the new one.

Inputs  item (B, W), kind and gap (B,) of the new position; pooled (B, W), the fading sum with it;
        context (B, C) scaled, age (B,); for each layer `keys_l` and `values_l` (B, H, R, W/H), a
        ring in which position p stands at p mod R, and `phase_l` (B,), see `phase`.
Outputs user (B, W); for each layer `new_keys_l` and `new_values_l` (B, H, 1, W/H).
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from models.export import request, user_head
from models.features import N_CONTEXT
from models.onnx_graph import Graph, Weights, finished
from models.student import FUTURE_BIAS, StudentConfig


def phase(count: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """Return where a ring of `reach` positions stands after `count` of them, 0 to 2 reach - 1.

    >>> phase(np.array([0, 2, 3, 4, 7]), 3).tolist()
    [0, 2, 3, 4, 4]
    """
    return np.where(count < reach, count, reach + count % reach)


def build_step(weights: Weights, config: StudentConfig) -> bytes:
    """Return the serialised ONNX model of one position."""
    graph = Graph(weights, {})
    x = graph.linear("item", "item_in")
    x = graph.op("Add", x, graph.op("Gather", graph.weight("kind.weight"), "kind"))
    x = graph.op("Add", x, graph.op("Gather", graph.weight("gap.weight"), "gap"))
    for layer in range(config.layers):
        x = _layer(graph, config, layer, x)
    user = user_head(graph, graph.norm(x, "final_norm"), request(graph))
    graph.op("Add", user, graph.linear("pooled", "pool"), output="user")
    model: bytes = finished(graph, _inputs(config), _outputs(config)).SerializeToString()
    return model


def _layer(graph: Graph, config: StudentConfig, layer: int, x: str) -> str:
    name, reach = f"blocks.{layer}", config.reaches[layer]
    head = config.width // config.heads
    columns = config.head_counts[layer] * head  # A
    normed = graph.norm(x, f"{name}.attention_norm")
    qkv = graph.op("Reshape", graph.linear(normed, f"{name}.qkv"), graph.ints(0, -1, 1, head))
    q, k, v = f"asking_{layer}", f"new_keys_{layer}", f"new_values_{layer}"  # (B, H, 1, A/H)
    graph.nodes.append(helper.make_node("Split", [qkv], [q, k, v], axis=1, num_outputs=3))
    q = graph.op("Mul", q, graph.constant(np.float32(head**-0.5)))
    distance = graph.weights[f"{name}.distance"]
    kept = graph.op("Transpose", f"keys_{layer}", perm=[0, 1, 3, 2])
    bias = graph.op("Gather", graph.constant(_bias_by_phase(distance, reach)), f"phase_{layer}")
    before = graph.op("Add", graph.op("MatMul", q, kept), bias)  # (B, H, 1, R)
    own = graph.op("ReduceSum", graph.op("Mul", q, k), graph.ints(3))
    own = graph.op("Add", own, graph.constant(distance[None, :, :1, None]))  # (B, H, 1, 1)
    shares = graph.op("Softmax", graph.op("Concat", before, own, axis=-1), axis=-1)
    starts, ends, axis = graph.ints(0), graph.ints(reach), graph.ints(3)
    of_kept = graph.op("Slice", shares, starts, ends, axis)
    of_own = graph.op("Slice", shares, ends, graph.ints(reach + 1), axis)
    mixed = graph.op(
        "Add", graph.op("MatMul", of_kept, f"values_{layer}"), graph.op("Mul", of_own, v)
    )  # (B, H, 1, A/H)
    mixed = graph.op("Reshape", mixed, graph.ints(0, columns))  # (B, A)
    x = graph.op("Add", x, graph.linear(mixed, f"{name}.out"))
    hidden = graph.linear(graph.norm(x, f"{name}.forward_norm"), f"{name}.up")
    return graph.op("Add", x, graph.linear(graph.op("Relu", hidden), f"{name}.down"))


def _bias_by_phase(distance: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """Return what each place of the ring gets by phase, shape (2 R, H, 1, R)."""
    phases = np.arange(2 * reach)[:, None]
    places = np.arange(reach)
    behind = 1 + (phases % reach - 1 - places) % reach  # (2 R, R), 1 to R
    n_kept = np.where(phases < reach, phases, reach)
    is_seen = (behind < reach) & (behind <= n_kept)
    by_head = distance[:, np.minimum(behind, reach - 1)].transpose(1, 0, 2)  # (2 R, H, R)
    bias = np.where(is_seen[:, None], by_head, np.float32(FUTURE_BIAS))
    return bias[:, :, None].astype(np.float32)


def _inputs(config: StudentConfig) -> list[onnx.ValueInfoProto]:
    value, ints, floats = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    inputs = [value(name, floats, ["B", config.width]) for name in ("item", "pooled")]
    inputs += [value(name, ints, ["B"]) for name in ("kind", "gap", "age")]
    inputs.append(value("context", floats, ["B", N_CONTEXT]))
    for layer in range(config.layers):
        shape = ["B", *ring_shape(config, layer)]
        inputs += [value(f"{kind}_{layer}", floats, shape) for kind in ("keys", "values")]
        inputs.append(value(f"phase_{layer}", ints, ["B"]))
    return inputs


def _outputs(config: StudentConfig) -> list[onnx.ValueInfoProto]:
    value, floats = helper.make_tensor_value_info, TensorProto.FLOAT
    outputs = [value("user", floats, ["B", config.width])]
    for layer in range(config.layers):
        n_heads, _, head = ring_shape(config, layer)
        shape = ["B", n_heads, 1, head]
        outputs += [value(f"new_{kind}_{layer}", floats, shape) for kind in ("keys", "values")]
    return outputs


def ring_shape(config: StudentConfig, layer: int) -> tuple[int, int, int]:
    """Return the shape of a user's kept keys, and of their values: (H, R, W/H)."""
    return config.head_counts[layer], config.reaches[layer], config.width // config.heads
