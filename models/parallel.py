"""Several processes that train one model: what `torchrun` starts, or one process by itself.

Reads   what `torchrun` left in the environment, through `torch.distributed` alone.
Emits   the group of processes, and a model wrapped for it.
Owns    the device of a process and its backend: nccl between GPUs, gloo between CPUs.

*Data parallel* (DDP): each process holds the whole model and takes a part of each batch.
*Sharded* (FSDP2): each holds a part of every weight, gradient and moment as well, and fetches a
layer's weights when it needs them: for models that one device has no room for.

A loss is a sum over examples divided by the weight of the whole batch, and both ways average
gradients over processes, so each process multiplies by their number (`Group.size`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

_GPU: Final = "cuda"


class Group(NamedTuple):
    """The processes that train together, as one of them sees it."""

    rank: int  # from 0; the first writes files and speaks to people
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def total(self, value: Tensor) -> float:
        """Return the sum of a number over the processes."""
        if self.size > 1:
            dist.all_reduce(value)
        return float(value)

    def gathered(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of ranks."""
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found


@contextmanager
def joined() -> Iterator[Group]:
    """Join the group that `torchrun` started, else be alone; leave it at the end.

    A group that the caller has joined already is used and not left.
    """
    if dist.is_initialized():
        yield _group()
        return
    if not dist.is_torchelastic_launched():
        yield Group(0, 1, torch.device(_GPU if torch.cuda.is_available() else "cpu"))
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield _group()
        settled()
    finally:
        dist.destroy_process_group()


def settled() -> None:
    """Wait for the other processes, and until nothing works on what was exchanged.

    What is exchanged is let go by gloo's threads, who need Python for it. A process that ends just
    then is aborted ("terminate called without an active exception"): sharding's caches keep those
    threads alive after the group. While this waits, Python is theirs.
    """
    dist.barrier()


def _group() -> Group:
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device(_GPU, dist.get_node_local_rank(fallback_rank=0))
        torch.cuda.set_device(device)
    return Group(dist.get_rank(), dist.get_world_size(), device)


def wrapped(model: nn.Module, group: Group, *, sharded: bool) -> nn.Module:
    """Return the module whose `forward` trains the model in the group.

    Sharding replaces the model's parameters, so an optimiser is made afterwards.
    """
    if group.size == 1:
        return model
    # Empty ones are no part of the model, and neither way takes them.
    empty = {own for own in model.parameters() if not own.numel()}
    for own in empty:
        own.requires_grad_(False)
    if not sharded:
        return DistributedDataParallel(model, find_unused_parameters=True)
    mesh = init_device_mesh(group.device.type, (group.size,))
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    for layer in max(stacks, key=len, default=nn.ModuleList()):
        fully_shard(layer, mesh=mesh)
    # Between steps weights are read and set: the root must lie sharded then, as the layers do.
    fully_shard(model, mesh=mesh, ignored_params=empty, reshard_after_forward=True)
    return model


def unsynced(model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Return the context of a part of a batch: processes exchange gradients after the last."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


def whole(value: Tensor) -> Tensor:
    """Return a tensor without its sharding; all processes must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def placed(value: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor as another lies: on its device, sharded as it is."""
    moved = value.to(like.device, like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(moved, like.device_mesh, like.placements)
    return moved
