"""What `catalog` and `train fusion` make items' image and audio vectors with.

Reads   the settings of the catalogue.
Owns    which encoder and which files those name.
"""

from pathlib import Path
from typing import NamedTuple

from flows.settings import Catalog
from models.encoders import EncoderError
from operators.item_media import ItemMedia, MediaEncoder
from operators.media_files import MediaFiles


class MediaEncoders(NamedTuple):
    """The encoders that the settings name, None for none."""

    image: MediaEncoder | None
    audio: MediaEncoder | None

    @property
    def ids(self) -> dict[str, str]:
        """The encoder of each mode, as a fusion's file keeps it; "": vectors come with items."""
        return {
            "image": self.image.id if self.image else "",
            "audio": self.audio.id if self.audio else "",
        }


def load_media_encoders(catalog: Catalog) -> MediaEncoders:
    """Return the encoders of files that the settings name.

    Raises
    ------
    EncoderError
        If a package is missing, a folder holds no such model, or no root is allowed.
    """
    if not catalog.image_encoder and not catalog.audio_encoder:
        return MediaEncoders(None, None)
    if not catalog.media_roots:
        raise EncoderError(
            "an image or audio encoder reads files, and PUSHFLOW_CATALOG__MEDIA_ROOTS allows none"
        )
    try:
        from models.media_encoders import AudioEncoder, ImageEncoder
    except ImportError as error:
        raise EncoderError(f"{error}. pip install 'pushflow[media]'") from error
    return MediaEncoders(
        ImageEncoder(Path(catalog.image_encoder)) if catalog.image_encoder else None,
        AudioEncoder(Path(catalog.audio_encoder)) if catalog.audio_encoder else None,
    )


def item_media(
    catalog: Catalog, encoders: MediaEncoders, image_columns: int, audio_columns: int
) -> tuple[ItemMedia, ItemMedia]:
    """Return what gives items' image and audio vectors of those widths; see `Fusion.dims`."""
    files = MediaFiles(catalog.media_roots, max_bytes=catalog.media_max_mb << 20)
    return (
        ItemMedia(image_columns, encoders.image, files.read),
        ItemMedia(audio_columns, encoders.audio, files.read),
    )
