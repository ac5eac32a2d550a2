"""Item text as vectors, without a language model: the default that needs no download.

Reads   texts in any language.
Emits   float32 rows of `TEXT_DIM` columns and length 1.

Each word, and each group of three letters inside it, is a feature; a feature's vector is the
bits of its hash, read as signs. Texts that share words or parts of words point the same way,
and unrelated ones are nearly at right angles (the cosine of two random sign vectors of 64
columns has standard deviation 1/8). Chinese, Japanese and Korean have no spaces, so there the
features are single characters and pairs.

Why whole sign vectors, and not one column a feature: with 64 columns two of 20 categories
share a column nearly always, and the student could never tell them apart.

References
----------
Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
Achlioptas, "Database-friendly random projections", JCSS 2003.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.features import TEXT_DIM

# Kana, CJK ideographs with extension A and compatibility forms, Hangul, extensions B and on.
_CJK: Final = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
)
_TOKEN: Final = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK: Final = re.compile(rf"[{_CJK}]")
# A word's letter groups together weigh half as much as the word: enough to tie "lamp" to
# "lamps", too little for a shared ending to look like a shared subject.
_GRAMS_WEIGHT: Final = 0.5
_MAX_CHARS: Final = 4096  # of one text; bounds the work a single item can cause
_DESCRIPTION_CHARS: Final = 300  # of a description: what follows is mostly boilerplate


def item_text(
    title: str,
    description: str = "",
    categories: Iterable[str] = (),
    tags: Iterable[str] = (),
) -> str:
    """Return the one text that stands for an item, the same in training and serving.

    >>> item_text("Red lamp", categories=["home", "light"], tags=["warm"])
    'Red lamp home light warm'
    """
    parts = (title, *categories, *tags, description[:_DESCRIPTION_CHARS])
    return " ".join(part for part in parts if part)


def encode_texts(texts: list[str]) -> NDArray[np.float32]:
    """Return one vector for each text, float32, shape (N, TEXT_DIM), of length 1.

    A text without any letter or digit gives zeros. A row depends on its own text alone, and
    is the same on every machine and in every process. About 35 µs for a title of five words.

    >>> a, b, c = encode_texts(["Red table lamp", "red LAMPS for tables", "garden hose"])
    >>> bool(a @ b > 0.3 > abs(a @ c))
    True
    >>> a, b, c = encode_texts(["红色台灯", "台灯", "花园水管"])
    >>> bool(a @ b > 0.5 > abs(a @ c))
    True
    >>> bool(encode_texts(["", "..."]).any()), encode_texts([]).shape
    (False, (0, 64))
    """
    rows = np.zeros((len(texts), TEXT_DIM), np.float64)
    for i, text in enumerate(texts):
        # Counter keeps the order of first sight, so the sum is the same in every process.
        for token, count in Counter(_tokens(text)).items():
            rows[i] += (1.0 + np.log(count)) * _token_vector(token)  # sublinear term frequency
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    folded = unicodedata.normalize("NFKC", text[:_MAX_CHARS]).casefold()
    for run in _TOKEN.findall(folded):
        if _IS_CJK.match(run):
            tokens += run
            tokens += (run[i : i + 2] for i in range(len(run) - 1))
        else:
            tokens.append(run)
    return tokens


@lru_cache(maxsize=32_768)  # at most 32,768 x 64 float64, 17 MB
def _token_vector(token: str) -> NDArray[np.float64]:
    vector = _signs(f"w{token}")
    if not _IS_CJK.match(token):
        padded = f"<{token}>"
        grams = [padded[i : i + 3] for i in range(len(padded) - 2)]
        if len(grams) > 1:  # else the only group is the word itself
            total = np.sum([_signs(f"g{gram}") for gram in grams], axis=0)
            vector = vector + _GRAMS_WEIGHT / np.sqrt(len(grams)) * total
    return vector


def _signs(feature: str) -> NDArray[np.float64]:
    """Return the feature's vector, shape (TEXT_DIM,), each column +1 or -1."""
    data = feature.encode()
    n_words = -(-TEXT_DIM // 64)
    digest = b"".join(
        xxhash.xxh3_64_intdigest(data, seed=seed).to_bytes(8, "little") for seed in range(n_words)
    )
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))[:TEXT_DIM]
    return bits.astype(np.float64) * 2.0 - 1.0
