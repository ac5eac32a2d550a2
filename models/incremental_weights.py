"""A student's weights as the compiled loop of `models.incremental_kernel` reads them.

Reads   a student's weights and sizes.
Emits   one array of weights, and where in it and in a user's memory each layer's part starts.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.dataset import N_BUCKETS
from models.export import positions
from models.features import EVENT_TYPES
from models.onnx_graph import Weights
from models.student import StudentConfig

# Columns of `layout`, a row a layer.
REACH, HEADS, COLUMNS, HIDDEN, KEYS, ANSWERS, RING, WEIGHTS = range(8)

_N_TYPES: Final = len(EVENT_TYPES)


def layout(config: StudentConfig) -> NDArray[np.int64]:
    """Return where what is of each layer starts, and its sizes; shape (L + 1, 8).

    The last row tells how long what is kept of a user is, and where the weights after the layers
    start.
    """
    width, needed = config.width, positions(config)
    head = width // config.heads
    rows, ring = [], 0
    weights = width * (width + 1 + _N_TYPES + N_BUCKETS)
    sizes = zip(config.reaches, config.head_counts, config.hidden_counts, strict=True)
    for layer, (reach, n_heads, hidden) in enumerate(sizes):
        columns = n_heads * head  # A
        rows.append([reach, n_heads, columns, hidden, *needed[layer : layer + 2], ring, weights])
        ring += 2 * reach * columns
        weights += 4 * width + 3 * columns * (width + 1) + n_heads * reach
        weights += (columns + 1) * width + (width + 1) * hidden + (hidden + 1) * width
    return np.array([*rows, [0, 0, 0, 0, 0, 0, ring, weights]], np.int64)


def packed(weights: Weights, config: StudentConfig) -> NDArray[np.float32]:
    """Return a student's weights one after another, as they are read."""

    def linear(name: str) -> list[NDArray[np.float32]]:
        matrix = weights[f"{name}.weight"]
        return [matrix.T, weights.get(f"{name}.bias", np.zeros(len(matrix), np.float32))]

    def norm(name: str) -> list[NDArray[np.float32]]:
        return [weights[f"{name}.weight"], weights[f"{name}.bias"]]

    parts = [*linear("item_in"), weights["kind.weight"], weights["gap.weight"]]
    head = config.width // config.heads
    for layer, reach in enumerate(config.reaches):
        name = f"blocks.{layer}"
        matrix, bias = (part.copy() for part in linear(f"{name}.qkv"))
        for asking in (matrix.T, bias):
            asking[: config.head_counts[layer] * head] *= np.float32(head**-0.5)
        parts += [*norm(f"{name}.attention_norm"), matrix, bias]
        parts += [weights[f"{name}.distance"][:, :reach], *linear(f"{name}.out")]
        parts += [*norm(f"{name}.forward_norm"), *linear(f"{name}.up"), *linear(f"{name}.down")]
    parts += [*norm("final_norm"), *linear("request_history"), *linear("request_context")]
    parts += [weights["request_age.weight"], *linear("request_out"), *linear("user_out")]
    parts += linear("pool")
    return np.concatenate([np.ascontiguousarray(part).ravel() for part in parts])
