"""Draws flame graphs of a coordinator's time while a large run meets again and again.

    python benchmarks/flames.py [--nodes 1000,9000] [--seconds 15] [--print]

It writes docs/images/coordinator-N.svg, and the share of each part into docs/scale.md. It needs
py-spy (`pip install 'rallypoint[bench]'`), which samples the running `rallypoint serve` from
outside. Where ptrace is not allowed, run it as root. It draws only the coordinator's process, by
functions, not by lines.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
if not __package__:  # Run as a file: the checkout has the package `benchmarks`.
    sys.path[0] = str(ROOT)

from benchmarks import doc_tables  # noqa: E402
from rallypoint.bench import driver, meet  # noqa: E402

SAMPLES_PER_S: Final = 500
PAGE: Final = ROOT / "docs" / "scale.md"
WRITER: Final = "benchmarks/flames.py"
PARTS: Final = {
    "writing to sockets, with the frames' headers": ("WebSocketOutlet.send",),
    "the state machine": ("Membership.step",),
    "encoding and decoding messages": ("encode", "decode_from_node"),
}
"""The parts on the page, and the functions of each. None of these functions calls another."""
FRAMES: Final = "reading frames"
FRAMES_IN: Final = ("FrameReader.data_received",)
MESSAGES_IN: Final = ("Session.received",)
"""The part is the first function's time without the second's, which it calls for each message."""
LOOP: Final = "Runner.run"
"""This function's own time is the event loop, with its reading from sockets."""
_FRAME: Final = re.compile(
    r"<title>(?P<name>\S+) \([^<]*?\) \((?P<samples>[\d,]+) samples?, [^<]*</title>"
    r'<rect x="[^"]*" y="(?P<y>\d+)"'
)


def shares(picture: str) -> dict[str, float]:
    """The share of each part, from 0 to 1, from the picture's samples."""
    frames = [
        (found["name"], int(found["samples"].replace(",", "")), int(found["y"]))
        for found in _FRAME.finditer(picture)
    ]
    [(everything, loop_y)] = [(samples, y) for name, samples, y in frames if name == LOOP]
    below = min(y for _, _, y in frames if y > loop_y)
    called = sum(samples for _, samples, y in frames if y == below)

    def share(functions: tuple[str, ...]) -> float:
        return sum(samples for name, samples, _ in frames if name in functions) / everything

    taken = {part: share(functions) for part, functions in PARTS.items()}
    taken[FRAMES] = share(FRAMES_IN) - share(MESSAGES_IN)
    taken["the event loop, with reading from sockets"] = 1 - called / everything
    taken["all else: sessions, runs, the store's and the record's making"] = 1 - sum(taken.values())
    return taken


def say(text: str) -> None:
    """Print progress to stderr."""
    print(f"profile: {text}", file=sys.stderr, flush=True)


def draw(nodes: int, seconds: int, picture: Path) -> int:
    """Draw `seconds` of meetings, and return how many there were. Raises BenchError."""
    driver.check_descriptors(nodes)
    with driver.served() as at, driver.fleets(1) as fleets:
        assert at.process is not None
        fleets.connect(at, run_id="profile", nodes=nodes, settings=meet.settings(nodes), ready=True)
        fleets.ask("settle")
        sampled = _sample(at.process.pid, seconds, picture)
        ends_s, rounds = time.monotonic() + seconds, 0
        while time.monotonic() < ends_s:
            fleets.end_round()
            fleets.ask("meet")
            rounds += 1
        stderr = sampled.communicate(timeout=60)[1]
    if sampled.returncode:
        raise driver.BenchError(f"py-spy failed: {stderr.decode().strip()}", "run it as root")
    # py-spy's title is its command line, with this machine's paths.
    title = f">The coordinator's process while {nodes:,} nodes meet again and again<"
    drawn = picture.read_text("utf-8")
    picture.write_text(re.sub(r">[^<>]*py-spy record [^<>]*<", title, drawn), "utf-8")
    return rounds


def _sample(pid: int, seconds: int, picture: Path) -> subprocess.Popen[bytes]:
    spy = Path(sys.executable).with_name("py-spy")
    command = [str(spy), "record", "--pid", str(pid), "--duration", str(seconds), "--function"]
    command += ["--rate", str(SAMPLES_PER_S), "--format", "flamegraph", "--output", str(picture)]
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        raise driver.BenchError("py-spy is not installed", "pip install py-spy") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all were drawn."""
    parser = argparse.ArgumentParser(description="Draw where a coordinator's time goes.")
    parser.add_argument("--nodes", metavar="N,N...", default="1000,9000")
    parser.add_argument("--seconds", type=int, metavar="S", default=15)
    parser.add_argument("--print", action="store_true", help="the shares to stdout, not to a page")
    options = parser.parse_args(arguments)
    sizes = [int(n) for n in options.nodes.split(",")]
    found = []
    try:
        for nodes in sizes:
            picture = ROOT / "docs" / "images" / f"coordinator-{nodes}.svg"
            picture.parent.mkdir(exist_ok=True)
            rounds = draw(nodes, options.seconds, picture)
            say(f"{picture.relative_to(ROOT)}: {rounds} rounds of {nodes:,} nodes")
            found.append(shares(picture.read_text("utf-8")))
    except driver.BenchError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 1
    rows = [[part, *(f"{each[part]:.0%}" for each in found)] for part in found[0]]
    text = doc_tables.table(["share of the time", *(f"{n:,} nodes" for n in sizes)], rows)
    if options.print:
        print(text)
    else:
        PAGE.write_text(doc_tables.put(text, PAGE.read_text("utf-8"), WRITER), "utf-8")
        say(f"written into {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
