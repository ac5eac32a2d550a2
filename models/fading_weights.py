"""A fading average of a network's weights: what is judged and kept in place of the newest.

It holds what the last steps have in common, and costs a copy.

References
----------
Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FadingWeights:
    """Follows the weights of a network, step by step.

    Parameters
    ----------
    network
        Its parameters are followed; it has no other state.
    keep
        What a step keeps of the average; early on less, for it began at weights that know
        nothing. 0: the newest weights.

    Attributes
    ----------
    weights
        The average, by the parameters' names.

    Examples
    --------
    >>> network = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(network.weight)
    >>> average = FadingWeights(network, 0.75)
    >>> for done in range(100):
    ...     _ = nn.init.ones_(network.weight)
    ...     average.follow(done)
    >>> with average.put():
    ...     round(network.weight.item(), 3)
    1.0
    """

    def __init__(self, network: nn.Module, keep: float) -> None:
        self._network = network
        self._keep = keep
        self.weights = copied(network)

    def follow(self, done: int) -> None:
        """Take in the weights after a step, with `done` steps before it."""
        keep = min(self._keep, (1 + done) / (10 + done))
        with torch.no_grad():
            for name, own in self._network.named_parameters():
                self.weights[name].mul_(keep).add_(own.detach(), alpha=1 - keep)

    @contextmanager
    def put(self) -> Iterator[None]:
        """Have the network be its average for a while."""
        own = copied(self._network)
        put(self._network, self.weights)
        try:
            yield
        finally:
            put(self._network, own)


def copied(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a network's weights, sharded as they are."""
    return {name: own.detach().clone() for name, own in network.named_parameters()}


def put(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set a network's weights."""
    with torch.no_grad():
        for name, own in network.named_parameters():
            own.copy_(weights[name])
