"""Draws where a coordinator's time goes while a large run meets again and again: flame graphs.

    python benchmarks/flames.py [--nodes 1000,9000] [--seconds 15]

Writes docs/images/coordinator-N.svg. Needs py-spy (`pip install 'rallypoint[bench]'`), which looks
into the running `rallypoint serve` from outside; where ptrace is not allowed, run it as root.
Only the coordinator's own process is drawn, and functions, not lines.
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
if not __package__:  # run as a file: what lies beside it is the package `benchmarks`
    sys.path[0] = str(ROOT)

from rallypoint.bench import driver, meet  # noqa: E402

SAMPLES_PER_S: Final = 500


def draw(nodes: int, seconds: int, picture: Path) -> int:
    """Draw `seconds` of meetings; how many there were. Raises BenchError."""
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
        told = sampled.communicate(timeout=60)[1]
    if sampled.returncode:
        raise driver.BenchError(f"py-spy failed: {told.decode().strip()}", "run it as root")
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
    options = parser.parse_args(arguments)
    try:
        for nodes in map(int, options.nodes.split(",")):
            picture = ROOT / "docs" / "images" / f"coordinator-{nodes}.svg"
            picture.parent.mkdir(exist_ok=True)
            rounds = draw(nodes, options.seconds, picture)
            print(f"{picture.relative_to(ROOT)}: {rounds} rounds of {nodes:,} nodes")
    except driver.BenchError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
