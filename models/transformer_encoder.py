"""A text encoder from a local folder: sentence-transformers' layout, or plain transformers.

Reads   a folder with a model and its tokenizer, and what it says of pooling, length and prompts:
        `1_Pooling/config.json`, `sentence_bert_config.json`, `config_sentence_transformers.json`,
        `modules.json`. Where it does not say: the mean over the tokens.
Emits   float32 vectors, of length 1 where the folder normalises.
Owns    how a sentence becomes one vector.

Nothing is fetched: a folder that lacks a file is an error. No code of the folder is run.

References
----------
Reimers and Gurevych, "Sentence-BERT", EMNLP 2019.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from models.encoders import EncoderError, checksum

_BATCH: Final = 32  # texts in one call of the model, longest first, so that padding is short
_MAX_TOKENS: Final = 512  # where neither folder nor tokenizer says: the bound of BERT's kin
_NO_BOUND: Final = 1 << 20  # a tokenizer that does not know its bound says 10^30
_WEIGHTS: Final = ("*.safetensors", "pytorch_model*.bin")
_CONFIGS: Final = ("*.json", "*/config.json", "*.txt", "*.model")


class TransformerEncoder:
    """Texts to vectors by a transformer on the CPU.

    Parameters
    ----------
    folder
        Of the model.
    label
        Its name in the id.
    query_prefix, passage_prefix
        Put before a query and before an item's text; None: as the folder's prompts say, else "".

    Raises
    ------
    EncoderError
        If the folder holds no model, or pools or transforms in a way that is not known here.

    Notes
    -----
    On two cores about 10 ms a text of 30 tokens for MiniLM-L6. Threads are torch's.
    """

    def __init__(
        self,
        folder: Path,
        label: str,
        *,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
    ) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise EncoderError(
                f"{folder} holds no model that transformers can load: {error}. Give the folder "
                "with its config.json, its weights and its tokenizer"
            ) from error
        self._model = model.eval()
        self._pools_first = _pools_first(folder)
        self._normalises = _normalises(folder)
        prompts = _read(folder / "config_sentence_transformers.json").get("prompts", {})
        told = (prompts.get("query"), prompts.get("document", prompts.get("passage")))
        given = (query_prefix, passage_prefix)
        self._query, self._passage = (
            ours if ours is not None else theirs or ""
            for ours, theirs in zip(given, told, strict=True)
        )
        self._max_tokens = _max_tokens(folder, self._tokenizer)
        self.dim = int(model.config.hidden_size)
        self.id = f"{_name(label)}:{_checksum(folder, self._query, self._passage)}"

    def encode(self, texts: list[str], *, is_query: bool = False) -> NDArray[np.float32]:
        """Return one vector a text, float32, shape (N, dim); an empty text's is zeros."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        prefix = self._query if is_query else self._passage
        there = sorted((i for i, text in enumerate(texts) if text), key=lambda i: -len(texts[i]))
        for start in range(0, len(there), _BATCH):
            rows = there[start : start + _BATCH]
            vectors[rows] = self._encode([prefix + texts[i] for i in rows])
        return vectors

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        hidden = self._model(**tokens).last_hidden_state  # (B, L, dim)
        if self._pools_first:
            pooled = hidden[:, 0]  # (B, dim)
        else:
            mask = tokens["attention_mask"][:, :, None].to(hidden.dtype)  # (B, L, 1)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)  # (B, dim)
        if self._normalises:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        vectors: NDArray[np.float32] = pooled.float().numpy()
        return vectors


def _pools_first(folder: Path) -> bool:
    """Return whether the first token's vector stands for the text, else the mean of all does."""
    said = _read(folder / "1_Pooling" / "config.json")
    chosen = [name for name, is_on in said.items() if name.startswith("pooling_mode_") and is_on]
    if not chosen or chosen == ["pooling_mode_mean_tokens"]:
        return False
    if chosen == ["pooling_mode_cls_token"]:
        return True
    raise EncoderError(f"{folder} pools by {', '.join(chosen)}; known are mean and first token")


def _normalises(folder: Path) -> bool:
    path = folder / "modules.json"
    if not path.is_file():
        return False
    kinds = [module["type"].rpartition(".")[2] for module in json.loads(path.read_text("utf-8"))]
    if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise EncoderError(f"{folder} has steps that are not known here: {', '.join(unknown)}")
    return "Normalize" in kinds


def _max_tokens(folder: Path, tokenizer: Any) -> int:
    said = _read(folder / "sentence_bert_config.json").get("max_seq_length")
    bound = int(said or tokenizer.model_max_length)
    return bound if bound < _NO_BOUND else _MAX_TOKENS


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _name(label: str) -> str:
    return re.sub(r"[^\w.-]", "-", label)


def _checksum(folder: Path, *prefixes: str) -> str:
    files = [path for pattern in (*_WEIGHTS, *_CONFIGS) for path in sorted(folder.glob(pattern))]
    return checksum(files, "\n".join(prefixes))
