"""Sizes in bytes, read and written."""

from __future__ import annotations

import pytest

from rallypoint.core.sizes import parse_size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1024**2),
        ("0", 0),
        ("17B", 17),
        ("2GiB", 2 * 1024**3),
        ("512 MiB", 512 * 1024**2),
        ("1.5G", 3 * 1024**3 // 2),
        ("64k", 64 * 1024),
        ("2GB", 2 * 10**9),
        ("1tib", 1024**4),
    ],
)
def test_sizes_that_people_write_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 XB", "1.5.2G", "1e9", "inf", "nan", "１GiB"])
def test_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size such as 512MiB, 2GiB or 1048576, not"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (256 * 1024**2, "256 MiB"),
        (1024**3 + 1, "1 GiB"),
        (5 * 1024**5, "5120 TiB"),
    ],
)
def test_a_size_is_shown_for_people(size: int, text: str) -> None:
    assert size_text(size) == text
