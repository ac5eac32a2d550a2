"""Making a trained student smaller: fewer heads and hidden units, shorter reach, whole numbers.

Reads   a trained student, and windows or requests like those that it will meet.
Emits   a smaller student, to be trained on; or the ranges of an int8 one.
Owns    which heads and units go, and the ranges of int8.

A head or a hidden unit is worth what its removal would add to the loss, to first order: the sum
over a user's positions of activation times gradient, by size, on average over users. The least go,
as many from every layer. What is left is a whole student with smaller matrices and no mask;
`models.train.recover_student` then teaches it what the unpruned one knows.

Reach is cut alike: a layer that sees fewer positions leaves the layer before it fewer to answer at
(`models.export.positions`), and lets keys and values be kept (`models.incremental`).

References
----------
Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019.
Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from models.checkpoint import ModelFile
from models.dataset import (
    Histories,
    Requests,
    Windows,
    gap_buckets,
    time_bucket,
    training_windows,
)
from models.distill import Distillation, TeacherGuide
from models.export import build_onnx, weights_of
from models.features import scale_context
from models.onnx_graph import Ranges
from models.serving import open_session
from models.student import Negatives, Student, StudentConfig, next_item_loss
from models.teacher import Teacher
from models.train import Teacher as Guide

_BATCHES: Final = 100  # of 32 windows, that importance is measured on: 2 to 5 seconds
_NEGATIVES: Final = 2_048
_BLOCK: Final = 64  # users in one run of the network that shows what it reads


class Importance(NamedTuple):
    """What each part of each layer is worth, in loss; one array a layer."""

    heads: list[NDArray[np.float64]]  # shape (H,)
    units: list[NDArray[np.float64]]  # shape (F,)


def importance(
    student: Student,
    histories: Histories,
    texts: NDArray[np.float32],
    *,
    until_s: int,
    seed: int = 0,
) -> Importance:
    """Return what heads and hidden units are worth on windows of the training.

    Parameters
    ----------
    student
        Trained.
    histories, texts
        As it was trained on; texts have shape (N, TEXT_DIM).
    until_s
        Seconds: the end of what it was trained on.
    seed
        Of the order of windows, and of the wrong answers.
    """
    student.eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        table = student.item_table(torch.from_numpy(texts))
    known = np.unique(histories.rows[histories.time_s < until_s])
    drawn = rng.choice(known, min(len(known), _NEGATIVES), replace=False)
    negatives = Negatives(torch.from_numpy(drawn), torch.zeros(len(table)))
    heads = [np.zeros(n) for n in student.config.head_counts]
    units = [np.zeros(n) for n in student.config.hidden_counts]
    windows = training_windows(histories, until_s=until_s, batch_size=32, rng=rng)
    blocks: list[Any] = list(student.blocks)
    with _inputs_of([*(own.out for own in blocks), *(own.down for own in blocks)]) as read:
        for batch in islice(windows, _BATCHES):
            slopes = torch.autograd.grad(_loss(student, table, batch, negatives), read)
            worth = [(x * slope).detach().sum(1) for x, slope in zip(read, slopes, strict=True)]
            for at, n_heads in enumerate(student.config.head_counts):
                by_head = worth[at].view(len(worth[at]), n_heads, -1).sum(-1)  # (B, H)
                heads[at] += by_head.abs().sum(0).numpy()
                units[at] += worth[len(blocks) + at].abs().sum(0).numpy()  # of (B, F)
    return Importance(heads, units)


@contextmanager
def _inputs_of(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list that holds what the layers read in the newest pass, once there was one."""
    read: list[Tensor] = [torch.empty(0)] * len(layers)

    def watch(at: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read[at] = inputs[0]

        return note

    hooks = [layer.register_forward_pre_hook(watch(at)) for at, layer in enumerate(layers)]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def _loss(student: Student, table: Tensor, batch: Windows, negatives: Negatives) -> Tensor:
    rows, types, gaps, ages = (
        torch.from_numpy(x) for x in (batch.rows, batch.types, batch.gaps, batch.ages)
    )
    weights = torch.from_numpy(batch.weights)
    picked = weights > 0  # (B, T), E of them
    contexts = None
    if batch.contexts is not None:
        contexts = torch.from_numpy(scale_context(batch.contexts[picked.numpy()]))  # (E, C)
    states = student.encode(table, rows, types, gaps)
    users = student.users(states[picked], contexts, ages[picked])
    targets = torch.from_numpy(batch.targets)[picked]
    return next_item_loss(users, table, targets, weights[picked], negatives=negatives)


def pruned(student: Student, found: Importance, *, heads: int, feed_forward: int) -> Student:
    """Return a student with the most important heads and hidden units of each layer alone.

    Its outputs are those of `student` with the others' outputs set to zero.

    Raises
    ------
    ValueError
        If a layer has fewer heads or units than are to be left.
    """
    config = student.config
    if heads > min(config.head_counts) or feed_forward > min(config.hidden_counts):
        raise ValueError(f"{heads} heads and {feed_forward} units are more than a layer has")
    smaller = replace(
        config,
        layer_heads=(heads,) * config.layers,
        layer_feed_forward=(feed_forward,) * config.layers,
    )
    weights = dict(student.state_dict())
    width = config.width // config.heads  # of a head
    for at in range(config.layers):
        name = f"blocks.{at}"
        kept = _best(found.heads[at], heads)
        columns = (kept[:, None] * width + torch.arange(width)).flatten()  # (A,)
        n_before = config.head_counts[at] * width
        rows = torch.cat([columns + part * n_before for part in range(3)])  # of q, k and v
        units = _best(found.units[at], feed_forward)
        weights[f"{name}.qkv.weight"] = weights[f"{name}.qkv.weight"][rows]
        weights[f"{name}.qkv.bias"] = weights[f"{name}.qkv.bias"][rows]
        weights[f"{name}.out.weight"] = weights[f"{name}.out.weight"][:, columns]
        weights[f"{name}.distance"] = weights[f"{name}.distance"][kept]
        weights[f"{name}.up.weight"] = weights[f"{name}.up.weight"][units]
        weights[f"{name}.up.bias"] = weights[f"{name}.up.bias"][units]
        weights[f"{name}.down.weight"] = weights[f"{name}.down.weight"][:, units]
    return _with(weights, smaller)


def narrowed(student: Student, reach: tuple[int, ...]) -> Student:
    """Return a student with the same weights whose layers see `reach` positions."""
    return _with(student.state_dict(), replace(student.config, reach=reach))


def _with(weights: dict[str, Tensor], config: StudentConfig) -> Student:
    student = Student(config, len(weights["ids.weight"]))
    student.load_state_dict(weights)
    return student.eval()


def _best(worth: NDArray[np.float64], n: int) -> Tensor:
    """Return the places of the n largest, in order."""
    return torch.from_numpy(np.sort(np.argsort(-worth, kind="stable")[:n]))


class _Asked(nn.Module):
    """A student as `TeacherGuide` asks a teacher."""

    is_causal = True

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.item_table, self.users = student.item_table, student.users

    def states(self, table: Tensor, *columns: Tensor) -> Tensor:
        """Return the states of rows, types and gaps; the ages after them are not read."""
        return self.student.encode(table, *columns[:3])


def student_guide(
    student: Student,
    texts: NDArray[np.float32],
    known: NDArray[np.int64],
    *,
    config: Distillation,
    seed: int = 0,
    repeats: bool = True,
) -> Guide:
    """Return what an unpruned student tells a pruned one; arguments as of `TeacherGuide`."""
    asked: Any = _Asked(student)
    return TeacherGuide([asked], texts, known, config=config, seed=seed, repeats=repeats)


def teacher_call(
    teacher: Teacher, texts: NDArray[np.float32], asked: Requests
) -> Callable[[], object]:
    """Return a call that makes a teacher's vectors of users, to be timed beside a student's."""
    with torch.no_grad():
        table = teacher.item_table(torch.from_numpy(texts))
    gaps, ages = gap_buckets(asked.rows, asked.age_s), time_bucket(asked.age_s)
    columns = [torch.from_numpy(x) for x in (asked.rows, asked.types, gaps, ages)]
    contexts = torch.from_numpy(scale_context(asked.contexts))

    def call() -> Tensor:
        with torch.inference_mode():
            states = teacher.states(table, *columns)[:, -1]
            return teacher.users(states, contexts, columns[-1][:, -1])

    return call


def quantised_layers(config: StudentConfig) -> list[str]:
    """Return the linear layers that int8 is for: those of the sequence, nearly all of the cost."""
    inside = ("qkv", "out", "up", "down")
    return ["item_in", *(f"blocks.{i}.{name}" for i in range(config.layers) for name in inside)]


def int8_ranges(student: Student, item_vectors: NDArray[np.float32], requests: Requests) -> Ranges:
    """Return the least and the most that each layer of `quantised_layers` reads.

    Parameters
    ----------
    student
        Trained.
    item_vectors
        As they are served, below a row of zeros, shape (N + 1, W).
    requests
        Some hundreds like those that will come, shape (B, T). Positions without an item are
        read too, as in service.
    """
    names = quantised_layers(student.config)
    network = build_onnx(weights_of(student), student.config, {}, shows=names)
    session = open_session("for int8's ranges", network)
    ranges = {name: (0.0, 0.0) for name in names}
    gaps = gap_buckets(requests.rows, requests.age_s)
    for start in range(0, len(requests.rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        context = scale_context(requests.contexts[part])
        feed = {
            "table": item_vectors,
            "rows": requests.rows[part],
            "types": requests.types[part],
            "gaps": gaps[part],
            "context": context,
            "age": np.zeros(len(context), np.int64),  # comes after the layers asked about
        }
        for name, values in zip(names, session.run(names, feed), strict=True):
            least, most = ranges[name]
            ranges[name] = min(least, float(values.min())), max(most, float(values.max()))
    return ranges


def dynamic_int8(model: ModelFile) -> ModelFile:
    """Return a model whose layers find their ranges in each batch, by ONNX Runtime's own tool.

    A row then depends on those beside it: `models.serving` asks such a model one user at a time.
    """
    with TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(model.onnx)
        with _quiet():
            quantize_dynamic(
                before,
                after,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        return model._replace(onnx=after.read_bytes())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the tool tells the root logger of every product that it leaves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
