"""Vectors that items bring, and those made of files that they name."""

from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray

from operators.item_media import ItemMedia
from operators.media_files import MediaFiles


class FirstBytes:
    """An encoder whose vector is a file's first two bytes."""

    id, dim = "first-bytes", 2

    def encode(self, files: Sequence[bytes | None]) -> NDArray[np.float32]:
        rows = [list(data[:2]) if data and len(data) > 1 else [np.nan] * 2 for data in files]
        return np.array(rows, np.float32)


def test_a_given_vector_goes_before_a_file_and_a_file_before_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\x03\x04 and so on")
    (tmp_path / "torn.jpg").write_bytes(b"\x03")
    files = MediaFiles([str(tmp_path)], max_bytes=100)
    images = ItemMedia(2, FirstBytes(), files.read)
    rows = images.rows(
        [[1.0, 2.0], [], [], [5.0], []],
        [
            "/etc/hostname",
            *(f"{tmp_path}/{name}" for name in ("a.jpg", "no.jpg", "none.jpg", "torn.jpg")),
        ],
    )
    assert rows is not None
    assert rows[:2].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert np.isnan(rows[2:]).all()
    assert (images.n_misfits, images.n_unreadable) == (1, 1)
    assert (files.n_failed, files.n_refused) == (2, 0)


def test_the_file_is_part_of_the_content_only_where_it_is_read(tmp_path: Path) -> None:
    images = ItemMedia(2, FirstBytes(), MediaFiles([str(tmp_path)], max_bytes=9).read)
    assert images.file_of([], "s3://shop/a.jpg") == "s3://shop/a.jpg"
    assert images.file_of([1.0, 2.0], "s3://shop/a.jpg") == ""
    assert ItemMedia(2).file_of([], "s3://shop/a.jpg") == ""


def test_an_encoder_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="first-bytes gives 2 columns, the fusion takes 3"):
        ItemMedia(3, FirstBytes(), lambda urls: [None] * len(urls))
    with pytest.raises(ValueError, match="reads them"):
        ItemMedia(2, FirstBytes())


@pytest.mark.parametrize(
    "url",
    [
        "/etc/hostname",
        "file:///etc/hostname",
        "http://169.254.169.254/latest/meta-data",
        "{root}/../secret.jpg",
        "{root}-other/a.jpg",
        "simplecache::{root}/a.jpg",
        "{root}/a.zip::memory://x",
    ],
)
def test_nothing_is_read_outside_the_roots(tmp_path: Path, url: str) -> None:
    root = tmp_path / "media"
    for path in (root / "a.jpg", tmp_path / "secret.jpg", tmp_path / "media-other" / "a.jpg"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    files = MediaFiles([str(root)], max_bytes=100)
    assert files.read([url.format(root=root), f"{root}/a.jpg"]) == [None, b"x"]
    assert (files.n_refused, files.n_failed) == (1, 0)


def test_a_file_as_long_as_allowed_is_read_and_a_longer_one_is_not() -> None:
    with fsspec.open("memory://bounds/four", "wb") as file:
        file.write(b"1234")
    assert MediaFiles(["memory://bounds"], max_bytes=4).read(["memory://bounds/four"]) == [b"1234"]
    files = MediaFiles(["memory://bounds"], max_bytes=3)
    assert files.read(["memory://bounds/four"]) == [None]
    assert files.n_failed == 1


def test_without_roots_nothing_is_read() -> None:
    assert MediaFiles([], max_bytes=9).read(["/etc/hostname", ""]) == [None, None]
