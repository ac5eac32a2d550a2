"""Send or hold for the long run: what the next push costs later, as the value of "none".

Reads   the policy's context columns, and a file that `models.value_training` made.
Emits   the value of "none" for one decision.
Owns    the formula, the network's arithmetic without torch, and its file.

A push tires: it makes later pushes less welcome, and some users leave. The bandit sees none of
it, for it asks what a push earns itself. Q(s, hold) and Q(s, send) are the discounted reward from
a decision in state s on, all later pushes and sessions in it. A network learned from logged
decisions has three outputs, of which the price of a push is made:

    advantage(s) = Q(s, send) - Q(s, hold)
    own(s)       = what a push earns itself in s, on average
    none(s)      = own(s) - advantage(s) = own(s) + Q(s, hold) - Q(s, send)

none(s) takes the place of 0 as the value of "none". Q(s, send) is own(s) and what follows a push,
so none(s) is what follows a hold less what follows a push. An arm is then better than "none" where
what it earns itself, by the bandit, pays that price. That what follows is the same whichever arm
was sent is an approximation.

`decide` needs this and not torch, which takes seconds to load.
"""

from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.archive import DAMAGE, from_npy, read_archive, to_npy, write_archive
from models.arms import DECIMALS as STATE_DECIMALS
from models.arms import N_POLICY_CONTEXT, policy_spec_hash

OUTPUTS: Final = ("value", "advantage", "own")  # value: the mean of both Q
VALUE, ADVANTAGE, OWN = range(3)
HOLD, SEND = range(2)  # actions
DECIMALS: Final = 6  # of none's value: last bits differ between processors, the log has all digits
_FORMAT: Final = 1


class ValueFileError(Exception):
    """The file is absent, damaged, or was made for other columns; the message says what to do."""


class Layers(NamedTuple):
    """A network's float32: weights (inputs, outputs) of each layer, and biases (1, outputs)."""

    weights: list[NDArray[np.float32]]
    biases: list[NDArray[np.float32]]


class ValueFunction:
    """What sending and holding are worth from a state on.

    Parameters
    ----------
    layers
        First of `N_POLICY_CONTEXT` inputs, last of the three `OUTPUTS`; ReLU between them.
    version
        Of the file, 16 hex digits; logged with each decision.

    Raises
    ------
    ValueError
        If the layers do not fit together, or a number in them is not finite.

    Notes
    -----
    About 15 us a decision for hidden layers of 64 and 32.

    Examples
    --------
    >>> first = np.zeros((N_POLICY_CONTEXT, 1), np.float32)
    >>> first[7] = 1.0
    >>> biases = [np.zeros((1, 1), np.float32), np.float32([[2.0, 0.2, 0.3]])]
    >>> value = ValueFunction(Layers([first, np.float32([[0.0, -0.5, -0.1]])], biases))
    >>> rested, tired = np.zeros(N_POLICY_CONTEXT), np.zeros(N_POLICY_CONTEXT)
    >>> tired[7] = 2.0
    >>> value.none_value(rested), value.none_value(tired)  # 0.3 - 0.2; 0.1 + 0.8
    (0.1, 0.9)
    >>> value.q(tired).round(3).tolist()
    [2.4, 1.6]
    """

    def __init__(self, layers: Layers, version: str = "") -> None:
        sizes = [N_POLICY_CONTEXT, *(w.shape[1] for w in layers.weights)]
        shapes = [w.shape for w in layers.weights] + [b.shape for b in layers.biases]
        fit = [*pairwise(sizes), *((1, size) for size in sizes[1:])]
        if not layers.weights or shapes != fit or sizes[-1] != len(OUTPUTS):
            raise ValueError(
                f"layers of shapes {shapes} are no value of {N_POLICY_CONTEXT} columns"
            )
        if not all(np.isfinite(own).all() for own in (*layers.weights, *layers.biases)):
            raise ValueError("weights that are not finite")
        self.version = version
        # float64: a product of float32 would differ from torch's in the sixth decimal.
        self._weights = [w.astype(np.float64) for w in layers.weights]
        self._biases = [b[0].astype(np.float64) for b in layers.biases]

    def hidden(self, states: ArrayLike) -> NDArray[np.float64]:
        """Return the last hidden layer, shape (..., H), of states of shape (..., C)."""
        # Rounded as in `models.arms.design`: the same whether states were float32 on the way.
        hidden = np.asarray(states, np.float64).round(STATE_DECIMALS)
        for weights, biases in zip(self._weights[:-1], self._biases[:-1], strict=True):
            hidden = np.maximum(hidden @ weights + biases, 0.0)  # (..., H)
        return hidden

    def outputs(self, states: ArrayLike) -> NDArray[np.float64]:
        """Return the three `OUTPUTS`, shape (..., 3), of states of shape (..., C)."""
        found: NDArray[np.float64] = self.hidden(states) @ self._weights[-1] + self._biases[-1]
        return found

    def q(self, states: ArrayLike) -> NDArray[np.float64]:
        """Return Q of `HOLD` and `SEND`, shape (..., 2), of states of shape (..., C)."""
        found = self.outputs(states)
        half = found[..., ADVANTAGE, None] * np.array([-0.5, 0.5])  # (..., 2)
        q: NDArray[np.float64] = found[..., VALUE, None] + half
        return q

    def none_values(self, states: ArrayLike) -> NDArray[np.float64]:
        """Return the value of "none" in each state; shape (...,)."""
        found = self.outputs(states)
        return np.round(found[..., OWN] - found[..., ADVANTAGE], DECIMALS)

    def none_value(self, context: ArrayLike) -> float:
        """Return the value of "none", reward units, for one decision's context columns, (C,)."""
        return float(self.none_values(context))

    @classmethod
    def load(cls, path: Path) -> "ValueFunction":
        """Return the value function of a file.

        Raises
        ------
        ValueFileError
            If there is no usable file, or it was trained for other columns.
        """
        try:
            version, meta, members = read_archive(path)
            _check_spec(path, str(meta["policy_spec"]))
            n = int(meta["layers"])
            weights = [from_npy(members[f"weights{i}.npy"]) for i in range(n)]
            biases = [from_npy(members[f"biases{i}.npy"]) for i in range(n)]
            return cls(Layers(weights, biases), version)
        except DAMAGE as error:
            raise ValueFileError(
                f"cannot read the value file {path}: {error}. "
                "Copy it again, or make one with `pushflow train value`."
            ) from error


def write_value(path: Path, layers: Layers, metrics: dict[str, float]) -> str:
    """Write the file in one step (rename); return its version, 16 hex digits."""
    members = {f"weights{i}.npy": to_npy(w) for i, w in enumerate(layers.weights)}
    members |= {f"biases{i}.npy": to_npy(b) for i, b in enumerate(layers.biases)}
    meta = {
        "format": _FORMAT,
        "policy_spec": policy_spec_hash(),
        "outputs": OUTPUTS,
        "layers": len(layers.weights),
        "metrics": metrics,
    }
    return write_archive(path, members, meta)


def _check_spec(path: Path, spec: str) -> None:
    if spec != policy_spec_hash():
        raise ValueFileError(
            f"the value file {path} was trained for policy specification {spec}, this version of "
            f"pushflow has {policy_spec_hash()}. Train again with `pushflow train value`."
        )
