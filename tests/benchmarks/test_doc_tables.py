"""Tables are written into pages again, and the text around them stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

page = pytest.importorskip(
    "benchmarks.doc_tables", reason="the source distribution has no benchmarks"
)

BEGIN, END = page.marks("it.py")
FRAME = (
    "<g><title>{} ({}:1) ({} samples, 1%)</title>"
    '<rect x="0%" y="{}" width="1%" height="15" fill="red" fg:x="0" fg:w="1"/></g>'
)
DOCS = Path(__file__).parents[2] / "docs"


def test_only_the_text_between_the_marks_is_replaced() -> None:
    document = f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n"
    written = page.put("new", document, "it.py")
    assert written == f"before\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    assert page.put("new", written, "it.py") == written


@pytest.mark.parametrize("without", ["nothing", BEGIN, f"{END} {BEGIN}"])
def test_a_page_without_marks_is_left_alone(without: str) -> None:
    with pytest.raises(page.NoMarksError, match=r"it\.py"):
        page.put("new", without, "it.py")


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("scale.md", "benchmarks/scale.py"),
        ("scale.md", "benchmarks/flames.py"),
        ("benchmarks.md", "benchmarks/peers/run.py"),
    ],
)
def test_the_pages_have_marks_for_each_script(name: str, by: str) -> None:
    text = (DOCS / name).read_text("utf-8")
    assert "| new |" in page.put("| new |", text, by)


def test_the_shares_of_a_flame_graph() -> None:
    flames = pytest.importorskip("benchmarks.flames")
    picture = "".join(
        FRAME.format(*frame)
        for frame in (
            ("Runner.run", "asyncio/runners.py", 200, 16),
            ("FrameReader.data_received", "websocket.py", 140, 32),
            ("Session.received", "sessions.py", 120, 48),
            ("Membership.step", "core/membership.py", 50, 64),
            ("WebSocketOutlet.send", "frames.py", 40, 64),
        )
    )
    found = flames.shares(picture)
    assert sum(found.values()) == pytest.approx(1)
    assert found["the state machine"] == 0.25
    assert found["writing to sockets, with the frames' headers"] == 0.2
    assert found["reading frames"] == pytest.approx(0.1)
    assert found["the event loop, with reading from sockets"] == pytest.approx(0.3)
