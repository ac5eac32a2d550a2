"""Several modes, one vector: text, image and sound of an item on the grid of `models.neighbours`.

Reads   one vector a mode and item; None, NaN or zeros where a mode is missing.
Emits   float32 rows of TEXT_DIM columns on the grid, 1 long, or zeros where nothing is known.
Owns    the arithmetic of fusion, the same in training and serving, and its file.

Each mode's vector is set to length 1, centred, projected to TEXT_DIM columns and set to length 1
again. A gate reads all of them and which ones are there, and shares the weight 1 among those; the
sum, set to length 1, is the item. So a text alone is fused as an item of which only the text is
known, and a query text lies where the items lie.

Why centred: vectors of sentence encoders and vision models share a large common direction, beside
which the differences that matter are small.

References
----------
Arevalo et al., "Gated Multimodal Units for Information Fusion", ICLR workshop 2017.
Mu and Viswanath, "All-but-the-Top: Simple and Effective Postprocessing for Word
Representations", ICLR 2018 (centring).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.archive import DAMAGE, content_version, from_npy, read_archive, to_npy, write_archive
from models.features import TEXT_DIM
from models.neighbours import to_grid

MODES: Final = ("text", "image", "audio")
_FORMAT: Final = 1
_KIND: Final = "fusion"
_GATE: Final = "gate.npy"
_MAX_DIM: Final = 4_096  # columns of a mode, the bound of `operators.messages.Vector`
# A direction in which the catalogue varies less than this share of the most is noise.
_RANK_TOLERANCE: Final = 1e-9
# Between plain PCA (0), where a few directions decide every cosine, and whitening (0.5), which
# gives noise the same say as signal.
_WHITENING: Final = 0.25

Vectors = NDArray[np.float32] | None


class ModeVectors(NamedTuple):
    """Items' vectors by mode, each (N, D) or None; rows with NaN, infinity or zeros are missing."""

    text: Vectors = None
    image: Vectors = None
    audio: Vectors = None


class FusionFileError(Exception):
    """The file is absent, damaged, or no fusion; the message says how to mend it."""


class FusionMismatchError(Exception):
    """The fusion was made for other encoders or another width than those in use."""


class ModeWeights(NamedTuple):
    """One mode's part. D columns of its vectors, 0 where the fusion does not know the mode."""

    mean: NDArray[np.float32]  # shape (1, D)
    projection: NDArray[np.float32]  # shape (D, TEXT_DIM)


class Fusion:
    """A gated fusion network, for inference.

    Parameters
    ----------
    modes
        One `ModeWeights` for each of `MODES`.
    gate
        float32, shape (3 * TEXT_DIM + 3, 3): from the projected modes, side by side, and which
        of them are there, to one weight a mode before the softmax.
    encoders
        The encoder of each mode that it was made for, by the mode's name; "" for vectors that
        come with the item.

    Notes
    -----
    8 D TEXT_DIM bytes a mode. About 2 us an item and mode of 384 columns in batches.

    Sums are of float64 and their order is BLAS's: another machine or batch moves a column by
    1e-15, which the grid's steps of 2^-11 hide but for one row in about 10^9.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> text, image = rng.normal(size=(2, 64)), rng.normal(size=(2, 512))
    >>> fusion = Fusion.untrained(64, 512, 0)
    >>> both, words = fusion.fuse(text, image), fusion.text_query(text)
    >>> both.shape, (both * words).sum(axis=1).round(1).tolist()
    ((2, 64), [0.7, 0.7])
    >>> image[1] = np.nan  # the second has no picture
    >>> bool((fusion.fuse(text, image)[1] == words[1]).all())
    True
    """

    def __init__(
        self,
        modes: Sequence[ModeWeights],
        gate: NDArray[np.float32],
        encoders: Mapping[str, str] | None = None,
    ) -> None:
        _check(modes, gate)
        self.modes, self.gate = tuple(modes), gate
        self.encoders = {mode: (encoders or {}).get(mode, "") for mode in MODES}
        members, meta = self._content()
        self.id = content_version(members, meta)
        text = self.modes[0]
        # The hashed text by itself must come out as it went in, to the last bit: `decide` makes
        # the same vectors without a fusion.
        self.is_identity = (
            self.dims == (TEXT_DIM, 0, 0)
            and not text.mean.any()
            and np.array_equal(text.projection, np.eye(TEXT_DIM))
        )

    @classmethod
    def untrained(cls, text_dim: int, image_dim: int = 0, audio_dim: int = 0) -> "Fusion":
        """Return one that knows no data: identity for text of TEXT_DIM, else seeded signs.

        A column is added to one of the TEXT_DIM, with a sign from its number's hash: the same on
        every machine. Cosines of n columns keep a standard deviation of 1/8.
        """
        dims = (text_dim, image_dim, audio_dim)
        modes = [_folded(mode, dim) for mode, dim in zip(MODES, dims, strict=True)]
        return cls(modes, _even_gate())

    @classmethod
    def fitted(
        cls,
        text: Vectors = None,
        image: Vectors = None,
        audio: Vectors = None,
        *,
        encoders: Mapping[str, str] | None = None,
    ) -> "Fusion":
        """Return one with the centre and main directions of a catalogue's vectors.

        Each has shape (n, D) with NaN or zeros in rows to leave out; a few thousand rows are
        enough. A mode that is None, or has fewer than two rows, stays unknown to it. The modes
        are turned against each other, so that the main direction of one does not fall on that of
        another.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> text = rng.normal(size=(500, 384)) + 5.0  # the common direction of an encoder
        >>> cosine = lambda rows: float(rows[0] @ rows[1])
        >>> cosine(Fusion.untrained(384).fuse(text)), cosine(Fusion.fitted(text).fuse(text))
        (0.9..., 0.0...)
        """
        given = (text, image, audio)
        modes = [_principal(mode, x) for mode, x in zip(MODES, given, strict=True)]
        return cls(modes, _even_gate(), encoders)

    @classmethod
    def load(cls, path: Path, encoders: Mapping[str, str] | None = None) -> "Fusion":
        """Return the fusion of a file.

        Parameters
        ----------
        encoders
            Those in use, by mode; one that differs from the file's is refused. Modes left out
            are not compared.

        Raises
        ------
        FusionMismatchError
            If it was made for another width or other encoders.
        FusionFileError
            If it is absent, damaged or of another kind.
        """
        try:
            _version, meta, members = read_archive(path)
            if meta.get("kind") != _KIND or meta.get("format") != _FORMAT:
                raise ValueError("no fusion of this version")
            _check_use(path, meta["dim"], meta["encoders"], encoders or {})
            modes = [
                ModeWeights(
                    from_npy(members[f"{mode}_mean.npy"]),
                    from_npy(members[f"{mode}_projection.npy"]),
                )
                for mode in MODES
            ]
            return cls(modes, from_npy(members[_GATE]), meta["encoders"])
        except DAMAGE as error:
            raise FusionFileError(
                f"cannot read the fusion file {path}: {error}. "
                "Copy it again, or make one with `pushflow train fusion`."
            ) from error

    def save(self, path: Path) -> str:
        """Write the file in one step; return the fusion's id, 16 hex digits."""
        members, meta = self._content()
        return write_archive(path, members, meta)

    @property
    def dims(self) -> tuple[int, ...]:
        """Columns of each mode's vectors, 0 for a mode that it does not know."""
        return tuple(mode.projection.shape[0] for mode in self.modes)

    def fuse(
        self, text: Vectors = None, image: Vectors = None, audio: Vectors = None
    ) -> NDArray[np.float32]:
        """Return the items' vectors on the grid, float32, shape (N, TEXT_DIM).

        Each mode has shape (N, D) of `dims`; None, or a row with NaN, infinity or only zeros,
        is missing. An item with nothing gives zeros.

        Raises
        ------
        ValueError
            If a mode has other columns than the fusion knows, or all are None.
        """
        if self.is_identity and text is not None and image is None and audio is None:
            return to_grid(np.where(np.isfinite(text).all(axis=1, keepdims=True), text, 0.0))
        return to_grid(self.blend(text, image, audio)[0])

    def text_query(self, text: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what users wrote as queries on the grid, shapes (N, D) to (N, TEXT_DIM)."""
        return self.fuse(text)

    def blend(
        self, text: Vectors = None, image: Vectors = None, audio: Vectors = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return vectors before the grid (N, TEXT_DIM), and the modes' shares in them (N, 3)."""
        given = (text, image, audio)
        n_rows = next((len(x) for x in given if x is not None), None)
        if n_rows is None:
            raise ValueError("fuse needs one mode at least, all are None")
        parts = np.zeros((n_rows, len(MODES), TEXT_DIM))
        there = np.zeros((n_rows, len(MODES)), np.bool_)
        for m, (weights, vectors) in enumerate(zip(self.modes, given, strict=True)):
            if vectors is not None:
                x, there[:, m] = unit_rows(vectors)
                if x.shape != (n_rows, weights.mean.shape[1]):
                    raise ValueError(
                        f"{MODES[m]} vectors of shape {x.shape}, "
                        f"{(n_rows, weights.mean.shape[1])} expected"
                    )
                parts[:, m] = _unit((x - weights.mean) @ weights.projection.astype(np.float64))
        parts *= there[:, :, None]
        gate: NDArray[np.float64] = self.gate.astype(np.float64)
        content, presence = gate[: -len(MODES)], gate[-len(MODES) :]
        logits = parts.reshape(n_rows, -1) @ content + there @ presence  # (N, 3)
        shares = _shares(logits, there)
        return _unit((shares[:, :, None] * parts).sum(axis=1)), shares

    def _content(self) -> tuple[dict[str, bytes], dict[str, object]]:
        members = {_GATE: to_npy(self.gate)}
        for name, weights in zip(MODES, self.modes, strict=True):
            members[f"{name}_mean.npy"] = to_npy(weights.mean)
            members[f"{name}_projection.npy"] = to_npy(weights.projection)
        meta = {"kind": _KIND, "format": _FORMAT, "dim": TEXT_DIM, "encoders": self.encoders}
        return members, meta


def unit_rows(vectors: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return rows of length 1, zeros where missing, and which ones are there.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0]]))[1].tolist()
    [True, False, False]
    """
    x = np.asarray(vectors, np.float32).astype(np.float64)  # squares of float32 do not overflow
    there = np.isfinite(x).all(axis=1) & (x != 0).any(axis=1)
    return _unit(np.where(there[:, None], x, 0.0)), there


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    unit: NDArray[np.float64] = rows / np.where(norms > 0, norms, 1.0)
    return unit


def _shares(logits: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the softmax over the modes that are there, zeros where none is."""
    high = np.where(there, logits, -np.inf).max(axis=1, keepdims=True, initial=-1e300)
    weights = np.where(there, np.exp(np.minimum(logits - high, 0.0)), 0.0)
    shares: NDArray[np.float64] = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    return shares


def _even_gate() -> NDArray[np.float32]:
    return np.zeros((len(MODES) * (TEXT_DIM + 1), len(MODES)), np.float32)


def _folded(mode: str, dim: int) -> ModeWeights:
    projection = np.zeros((dim, TEXT_DIM), np.float32)
    columns = np.arange(dim)
    projection[columns, columns % TEXT_DIM] = _signs(mode, dim)
    if mode == "text" and dim == TEXT_DIM:
        projection = np.eye(TEXT_DIM, dtype=np.float32)
    return ModeWeights(np.zeros((1, dim), np.float32), projection)


def _principal(mode: str, vectors: Vectors) -> ModeWeights:
    if vectors is None:
        return _folded(mode, 0)
    x, there = unit_rows(vectors)
    x = x[there]
    if len(x) < 2:
        return _folded(mode, 0)
    mean = x.mean(axis=0, keepdims=True)  # (1, D)
    values, axes = np.linalg.eigh(np.cov(x - mean, rowvar=False).reshape(x.shape[1], -1))
    values, axes = values[::-1][:TEXT_DIM], axes[:, ::-1][:, :TEXT_DIM]  # largest first
    # An axis has two directions; the one whose largest part is positive is taken.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    scale = np.where(values > _RANK_TOLERANCE * values[0], np.maximum(values, 1e-300), np.inf)
    projection = np.zeros((x.shape[1], TEXT_DIM))
    projection[:, : axes.shape[1]] = axes * scale**-_WHITENING
    turned = projection @ (_hadamard() * _signs(mode, TEXT_DIM))
    turned /= np.abs(turned).max() or 1.0
    return ModeWeights(mean.astype(np.float32), turned.astype(np.float32))


def _hadamard() -> NDArray[np.float64]:
    """Return an orthogonal matrix of signs over 8, shape (TEXT_DIM, TEXT_DIM), Sylvester's."""
    matrix = np.ones((1, 1))
    while len(matrix) < TEXT_DIM:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    scaled: NDArray[np.float64] = matrix / np.sqrt(len(matrix))
    return scaled


def _signs(mode: str, n: int) -> NDArray[np.float64]:
    hashes = [xxhash.xxh3_64_intdigest(f"{mode}:{column}".encode()) for column in range(n)]
    return np.array([1.0 - 2.0 * (digest & 1) for digest in hashes])


def _check(modes: Sequence[ModeWeights], gate: NDArray[np.float32]) -> None:
    if len(modes) != len(MODES) or gate.shape != _even_gate().shape:
        raise ValueError(f"{len(modes)} modes and a gate of shape {gate.shape} are no fusion")
    for mode in modes:
        dim = mode.mean.shape[1]
        if dim > _MAX_DIM or mode.mean.shape[0] != 1 or mode.projection.shape != (dim, TEXT_DIM):
            raise ValueError(f"shapes {mode.mean.shape} and {mode.projection.shape} do not fit")
    if not all(np.isfinite(array).all() for array in (gate, *sum(modes, ()))):
        raise ValueError("a fusion's weights must be finite")


def _check_use(
    path: Path, dim: int, made_for: Mapping[str, str], in_use: Mapping[str, str]
) -> None:
    if dim != TEXT_DIM:
        raise FusionMismatchError(
            f"the fusion file {path} gives {dim} columns, this version of pushflow has {TEXT_DIM}. "
            "Train again with `pushflow train fusion`."
        )
    for mode, encoder in in_use.items():
        if made_for.get(mode, "") != encoder:
            raise FusionMismatchError(
                f"the fusion file {path} was made for the {mode} encoder "
                f"{made_for.get(mode, '')!r}, in use is {encoder!r}. "
                "Train again with `pushflow train fusion`."
            )
