"""The pages that are written by hand, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from tools.docsite.blocks import Block, blocks
from tools.docsite.plan import COMMITTED

ROOT = Path(__file__).parents[2]
PAGES = tuple(map(PurePosixPath, COMMITTED))


def text_of(page: PurePosixPath) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def all_blocks() -> list[Block]:
    return [each for page in PAGES for each in blocks(page, text_of(page))]
