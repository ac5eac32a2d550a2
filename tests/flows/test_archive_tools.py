"""What the doctor says of an archive."""

from pathlib import Path

import pyarrow as pa

from flows.doctor import check_archive
from flows.settings import Archive
from operators.archive_files import Place
from operators.archive_names import ArchiveFile


def write(directory: Path, *spans: tuple[int, int]) -> list[ArchiveFile]:
    """Write files of one partition."""
    place = Place(str(directory))
    files = [ArchiveFile("push.events.v1", 0, 0, *span, "2026-01-05T07") for span in spans]
    for file in files:
        place.write(file, pa.table({"offset": [file.first, file.last]}))
    return files


def test_an_archive_that_is_not_there_yet_is_no_fault(tmp_path: Path) -> None:
    found = check_archive(Archive(url=str(tmp_path / "none")))

    assert (found.status, found.detail) == ("ok", f"{tmp_path / 'none'}: 0 files")
    assert not (tmp_path / "none").exists()


def test_files_that_follow_each_other_are_well_whatever_else_they_cover(tmp_path: Path) -> None:
    write(tmp_path, (0, 4), (5, 9), (0, 9), (10, 12))

    assert check_archive(Archive(url=str(tmp_path))).status == "ok"


def test_a_lost_file_is_told_by_the_one_behind_it(tmp_path: Path) -> None:
    *_, behind = write(tmp_path, (0, 4), (7, 9))

    found = check_archive(Archive(url=str(tmp_path)))

    assert found.status == "warn"
    assert found.detail == f"a file is missing before {behind.path}"


def test_a_file_system_that_is_not_known_is_a_fault() -> None:
    found = check_archive(Archive(url="nosuch://bucket/archive"))

    assert found.status == "fail"
    assert "nosuch" in found.detail
    assert "PUSHFLOW_ARCHIVE__URL" in found.mend
