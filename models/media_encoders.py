"""Images and sound as vectors, by a transformers model from a local folder.

Reads   files as bytes: what Pillow opens (JPEG, PNG, WebP, ...), what libsndfile does (WAV, FLAC,
        Ogg, MP3).
Emits   one float32 row a file, NaN where there is none or it cannot be read.
Owns    how a file is decoded and bounded, and how a model's output becomes one vector.

A model that knows images (or sound) beside text, such as CLIP, SigLIP or CLAP, gives its own
features of them; of any other, such as ViT, DINOv2, ConvNeXt, wav2vec 2.0 or AST, the mean over
the positions of its last layer is taken: models have a "pooled" output of their own, but where a
checkpoint comes without its weights it is noise, and nothing says so.

Nothing is ever downloaded, and no code from the folder runs. `operators.item_media` calls this
for batches of items.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.signal import resample_poly
from soundfile import SoundFile
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

from models.encoders import EncoderError, checksum

_MAX_PIXELS: Final = 50_000_000  # 150 MB decoded: more is no picture of an item
_LARGEST_SIDE: Final = 1_024  # pixels; models see 224 to 512
_MAX_SECONDS: Final = 30.0  # of sound, from its start: what the models were trained on
_LEAST_SECONDS: Final = 1.0  # shorter sound gets silence behind it: convolutions need some length
# What Pillow, libsndfile and what lies below them raise on bytes that are not what they should be.
_DAMAGE: Final = (
    *(OSError, ValueError, SyntaxError, RuntimeError, EOFError, MemoryError, TypeError),
    *(struct.error, zlib.error, IndexError, Image.DecompressionBombError),
)

Files = Sequence[bytes | None]


class ImageEncoder:
    """Images as vectors.

    Parameters
    ----------
    folder
        As `save_pretrained` writes it: config.json, model.safetensors, preprocessor_config.json.
    batch_size
        Images in one call of the model; 16 of 224 x 224 take about 200 MB in a ViT-B.

    Raises
    ------
    EncoderError
        If there is no model in the folder, or it is none of images.
    """

    def __init__(self, folder: Path, batch_size: int = 16) -> None:
        self._model, self._processor = _load(folder, AutoImageProcessor)
        self._batch_size = batch_size
        self.id = _id_of(folder)
        self.dim = self._probe(folder)

    def encode(self, files: Files) -> NDArray[np.float32]:
        """Return a row an image, float32, shape (N, dim); NaN where None or not readable."""
        rows = np.full((len(files), self.dim), np.nan, np.float32)
        images: dict[int, Image.Image] = {}
        for i, data in enumerate(files):
            if data is not None:
                with suppress(*_DAMAGE):
                    images[i] = _decode_image(data)
        chosen = list(images)
        for start in range(0, len(chosen), self._batch_size):
            batch = chosen[start : start + self._batch_size]
            rows[batch] = self._run([images[i] for i in batch])
        return rows

    def _run(self, images: list[Image.Image]) -> NDArray[np.float32]:
        inputs = self._processor(images=images, return_tensors="pt")
        return _features(self._model, "get_image_features", inputs)

    def _probe(self, folder: Path) -> int:
        try:
            return int(self._run([Image.new("RGB", (64, 64))]).shape[1])
        except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise EncoderError(f"the model in {folder} takes no images: {error}") from error


class AudioEncoder:
    """Sound as vectors.

    Parameters
    ----------
    folder
        As `save_pretrained` writes it, with preprocessor_config.json of its feature extractor.

    Raises
    ------
    EncoderError
        If there is no model in the folder, or it is none of sound.

    Notes
    -----
    One file after the other: in a batch the shorter ones are padded, and their vectors would
    depend on who shares it. Of each the first 30 s are heard, all channels as one.
    """

    def __init__(self, folder: Path) -> None:
        self._model, self._processor = _load(folder, AutoFeatureExtractor)
        self._rate = int(getattr(self._processor, "sampling_rate", 0))
        if not self._rate:
            raise EncoderError(f"the model in {folder} takes no sound: no sampling_rate")
        self.id = _id_of(folder)
        self.dim = self._probe(folder)

    def encode(self, files: Files) -> NDArray[np.float32]:
        """Return a row a sound, float32, shape (N, dim); NaN where None or not readable."""
        rows = np.full((len(files), self.dim), np.nan, np.float32)
        for i, data in enumerate(files):
            if data is None:
                continue
            try:
                wave = _decode_sound(data, self._rate)
            except _DAMAGE:
                continue
            rows[i] = self._run(wave)
        return rows

    def _run(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = self._processor(wave, sampling_rate=self._rate, return_tensors="pt")
        row: NDArray[np.float32] = _features(self._model, "get_audio_features", inputs)[0]
        return row

    def _probe(self, folder: Path) -> int:
        try:
            return len(self._run(np.zeros(round(_LEAST_SECONDS * self._rate), np.float32)))
        except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise EncoderError(f"the model in {folder} takes no sound: {error}") from error


def _id_of(folder: Path) -> str:
    """Return a model's name and a checksum of all its files, "vit-small:01234567"."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return f"{folder.resolve().name}:{checksum(files)}"


def _load(folder: Path, processor: Any) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        raise EncoderError(
            f"{folder} holds no model: no config.json. Give the folder of a transformers model"
        )
    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True)
        return model.eval(), processor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EncoderError(f"cannot load the model in {folder}: {error}") from error


def _features(model: Any, own: str, inputs: Any) -> NDArray[np.float32]:
    """Return one row an input: what the model's method `own` gives, or its last layer's mean."""
    with torch.inference_mode():
        if hasattr(model, own):
            found = getattr(model, own)(**inputs)
            rows = found if isinstance(found, Tensor) else found.pooler_output  # (B, D)
        else:
            part = model.get_encoder() if model.config.is_encoder_decoder else model
            states = part(**inputs).last_hidden_state
            # Transformers give (B, T, D), convolutions (B, D, height, width).
            rows = states.flatten(2).mean(2) if states.ndim == 4 else states.mean(1)  # (B, D)
    features: NDArray[np.float32] = rows.float().numpy()
    return features


def _decode_image(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if width * height > _MAX_PIXELS:
            raise ValueError(f"an image of {width} x {height} is too large")
        image.draft("RGB", (_LARGEST_SIDE, _LARGEST_SIDE))  # JPEG decodes straight to less
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return upright


def _decode_sound(data: bytes, rate: int) -> NDArray[np.float32]:
    """Return one channel at `rate` samples a second, float32, shape (samples,)."""
    with SoundFile(io.BytesIO(data)) as file:
        found = file.read(int(_MAX_SECONDS * file.samplerate), dtype="float32", always_2d=True)
        wave = found.mean(axis=1)
        if not len(wave):
            raise ValueError("no sound in the file")
        if file.samplerate != rate:
            divisor = np.gcd(file.samplerate, rate)
            wave = resample_poly(wave, rate // divisor, file.samplerate // divisor)
    short = round(_LEAST_SECONDS * rate) - len(wave)
    return np.pad(wave, (0, max(short, 0))).astype(np.float32)
