"""Real transformers models, tiny and with random weights, written to a folder first."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image

from models.encoders import EncoderError
from models.media_encoders import AudioEncoder, ImageEncoder

TINY = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"hidden_size": 16, "image_size": 32, "patch_size": 8, **TINY}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def vit(folder: Path) -> Path:
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**VIT)).save_pretrained(folder / "vit")
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(folder / "vit")
    return folder / "vit"


@pytest.fixture(scope="module")
def wav2vec(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        **TINY,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(folder / "wav2vec")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder / "wav2vec")
    return folder / "wav2vec"


def picture(seed: int, size: tuple[int, int] = (60, 40), form: str = "png") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(file, form)
    return file.getvalue()


def tone(hertz: float, rate: int = 16_000, seconds: float = 1.5, form: str = "WAV") -> bytes:
    at = np.arange(int(rate * seconds)) / rate
    file = io.BytesIO()
    both = np.stack((np.sin(2 * np.pi * hertz * at), np.zeros(len(at))), axis=1)  # one ear
    soundfile.write(file, both, rate, format=form)
    return file.getvalue()


def test_an_image_becomes_a_row_and_what_is_no_image_is_left_out(vit: Path) -> None:
    encoder = ImageEncoder(vit)
    rows = encoder.encode([picture(1), None, b"no image", picture(2), picture(1)[:200]])
    assert rows.shape == (5, encoder.dim) == (5, 16) and rows.dtype == np.float32
    assert np.isfinite(rows).all(axis=1).tolist() == [True, False, False, True, False]
    assert np.abs(rows[0] - rows[3]).max() > 0.01


def test_a_row_is_the_mean_of_the_last_layer(vit: Path) -> None:
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(picture(1, (32, 32))))))
    model = transformers.ViTModel.from_pretrained(vit).eval()
    with torch.inference_mode():
        states = model(((pixels.permute(2, 0, 1) / 255 - 0.5) / 0.5)[None]).last_hidden_state
    row = ImageEncoder(vit).encode([picture(1, (32, 32))])[0]
    np.testing.assert_allclose(row, states[0].mean(0).numpy(), atol=1e-4)


def test_the_form_of_a_file_and_its_batch_change_next_to_nothing(vit: Path) -> None:
    alone = ImageEncoder(vit, batch_size=1).encode([picture(n) for n in range(5)])
    together = ImageEncoder(vit, batch_size=3).encode([picture(n, form="bmp") for n in range(5)])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_grey_and_transparent_images_are_images_too(vit: Path) -> None:
    files = []
    for mode in ("L", "RGBA", "P", "CMYK"):
        file = io.BytesIO()
        Image.open(io.BytesIO(picture(1))).convert(mode).save(file, "tiff")
        files.append(file.getvalue())
    assert np.isfinite(ImageEncoder(vit).encode(files)).all()


def test_an_image_of_too_many_pixels_is_not_decoded(vit: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (8_000, 7_000)).save(file, "png")  # 56 million in a few kilobytes
    assert np.isnan(ImageEncoder(vit).encode([file.getvalue()])).all()


def test_a_model_of_images_and_text_gives_its_own_features_of_images(vit: Path) -> None:
    torch.manual_seed(0)
    clip = vit.parent / "clip"
    text = {"hidden_size": 16, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, **TINY}
    config = transformers.CLIPConfig(text_config=text, vision_config=VIT, projection_dim=12)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(clip)
    shutil.copy(vit / "preprocessor_config.json", clip)
    encoder = ImageEncoder(clip)
    assert encoder.dim == 12
    assert np.isfinite(encoder.encode([picture(1)])).all()


def test_a_convolution_gives_the_mean_over_the_image(vit: Path) -> None:
    folder = vit.parent / "convnext"
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 12], depths=[1] * 4, image_size=32)
    transformers.ConvNextModel(config).save_pretrained(folder)
    shutil.copy(vit / "preprocessor_config.json", folder)
    assert ImageEncoder(folder).encode([picture(1)]).shape == (1, 12)


def test_the_id_follows_from_the_weights(vit: Path, tmp_path: Path) -> None:
    shutil.copytree(vit, tmp_path / "vit")
    assert ImageEncoder(tmp_path / "vit").id == ImageEncoder(vit).id
    torch.manual_seed(1)
    transformers.ViTModel(transformers.ViTConfig(**VIT)).save_pretrained(tmp_path / "vit")
    assert ImageEncoder(tmp_path / "vit").id != ImageEncoder(vit).id


def test_sound_becomes_a_row_and_what_is_no_sound_is_left_out(wav2vec: Path) -> None:
    encoder = AudioEncoder(wav2vec)
    rows = encoder.encode([tone(440), None, b"no sound", tone(3_000)])
    assert rows.shape == (4, encoder.dim) == (4, 16)
    assert np.isfinite(rows).all(axis=1).tolist() == [True, False, False, True]
    assert np.abs(rows[0] - rows[3]).max() > 1e-3


def test_the_rate_and_the_form_of_a_recording_change_little(wav2vec: Path) -> None:
    encoder = AudioEncoder(wav2vec)
    rows = encoder.encode([tone(440), tone(440, form="FLAC"), tone(440, rate=44_100), tone(3_000)])
    apart = np.abs(rows[3] - rows[0]).max()
    assert np.abs(rows[1] - rows[0]).max() < 0.05 * apart
    assert np.abs(rows[2] - rows[0]).max() < 0.3 * apart


def test_short_sound_gets_silence_and_long_sound_is_cut(wav2vec: Path) -> None:
    encoder = AudioEncoder(wav2vec)
    assert np.isfinite(encoder.encode([tone(440, seconds=0.01)])).all()
    half_a_minute, more = encoder.encode([tone(440, seconds=30), tone(440, seconds=33)])
    np.testing.assert_array_equal(half_a_minute, more)


def test_a_file_without_any_sample_is_left_out(wav2vec: Path) -> None:
    assert np.isnan(AudioEncoder(wav2vec).encode([tone(440, seconds=0)])).all()


def test_a_folder_that_is_not_of_the_mode_is_refused(vit: Path, wav2vec: Path) -> None:
    with pytest.raises(EncoderError, match=r"cannot load the model in .*wav2vec"):
        ImageEncoder(wav2vec)
    with pytest.raises(EncoderError, match=r"cannot load the model in .*vit"):
        AudioEncoder(vit)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no config\.json"):
        ImageEncoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(EncoderError, match="cannot load"):
        ImageEncoder(tmp_path)
