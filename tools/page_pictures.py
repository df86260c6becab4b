"""`python -m tools.page_pictures`: the pictures of docs/page.md, of real runs in a real Chromium.

It starts a coordinator and the nodes of five runs, kills one node, lets a worker fail and another
one hang, drains a node and lets a new one in; then it takes the pictures, light, dark and narrow.
It takes about two minutes.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.agent.processes import PROGRAM, Machine, Process
from tests.cli.conftest import Served

PICTURES = Path(__file__).parents[1] / "docs" / "images"
NAMES = ("chromium", "chromium-browser", "google-chrome")


# A failure without a path of this machine in its last lines.
_FAILS = """print("step 1842: loss is nan", "bad batch in shard 7", sep="\\n", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)"""


def story(machine: Machine, endpoint: str) -> None:
    """Runs in several states, one of them with three rounds."""

    raises = 'raise ValueError("bad batch in shard 7")'
    program = machine.program(PROGRAM.replace(raises, _FAILS))

    def node(run_id: str, name: str, nnodes: str, *options: str) -> Process:
        labels = ("--label", f"rack=r{int(name[-1]) % 2}", "--label", "gpu=H200")
        more = ("--run-id", run_id, "--max-restarts", "3", *labels, *options)
        return machine.agent(name, *more, nnodes=nnodes, endpoint=endpoint, program=program)

    node("eval-nightly", "eval-0", "1:1").worker(1)
    node("ablation-lr3e-4", "gpu-20", "3:3")
    node("ablation-lr3e-4", "gpu-21", "3:3")
    nodes = [node("llm-pretrain", f"gpu-0{number}", "3:4") for number in range(4)]
    for each in nodes:
        each.worker(1)
    time.sleep(9)  # so that a round is wide enough to be seen
    os.kill(nodes[2].pid, signal.SIGKILL)
    workers = [each.worker(2) for each in nodes if each is not nodes[2]]
    time.sleep(7)
    newcomer = node("llm-pretrain", "gpu-04", "3:4")
    newcomer.worker(3)
    workers = [each.worker(3) for each in nodes if each is not nodes[2]]
    time.sleep(6)
    os.kill(workers[1].pid, signal.SIGUSR1)
    newcomer.worker(4)
    time.sleep(8)


# In its first round the loader of one rank hangs. In the next one a rank is slow.
_TRAINS = """
import time

import rallypoint


def next_batch(path):
    time.sleep(600)


with rallypoint.join() as run:
    world = run.next_world()
    print("in round", world.number, flush=True)
    for step in range(1_800, 10**6):
        if world.number == 1:
            world.barrier(f"step {step}", 600)
            if step == 1_900 and world.rank == 2:
                next_batch("shard-7")
        time.sleep(0.08 if world.rank == 1 and world.number > 1 else 0.05)
        world.progress(step)
        if world.number > 1 and world.should_yield(step):
            time.sleep(60)  # as if the checkpoint were large
"""


def hang_and_drain(machine: Machine, endpoint: str) -> None:
    """A run with a hang, a node that is slow, and one that drains."""
    program = machine.program(_TRAINS, "train.py")

    def node(number: int) -> Process:
        options = ("--run-id", "train-7b", "--max-restarts", "3", "--hang-timeout", "10s")
        more = ("--drain-timeout", "5m", "--share-lines", "0", "--set", "suspect_after=3")
        return machine.agent(
            f"gpu-3{number}", *options, *more, nnodes="4", endpoint=endpoint, program=program
        )

    nodes = [node(number) for number in range(4)]
    for each in nodes:
        each.line("in round 2", within_s=120)
    time.sleep(15)  # so that the slow one falls behind
    order = ("drain", "train-7b", "gpu-33", "--endpoint", endpoint, "--reason", "a new kernel")
    subprocess.run([sys.executable, "-m", "rallypoint", *order], check=True)


def chromium() -> str | None:
    """The path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def taken(page: Any, name: str, *, full_page: bool = False) -> None:
    """Take a picture. With few colours, it has a third of the bytes."""
    data = page.screenshot(full_page=full_page)
    few = Image.open(io.BytesIO(data)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(PICTURES / f"{name}.png", optimize=True)


def main() -> int:
    """Take all pictures. Returns 1 if there is no Chromium."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        print("no Chromium is on PATH", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        machine = Machine(Path(folder))
        os.environ["HOME"] = folder
        served = Served("--port", "0", "--ledger", f"file:{folder}/ledger")
        try:
            story(machine, served.endpoint)
            hang_and_drain(machine, served.endpoint)
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
                context = browser.new_context(
                    color_scheme="dark" if scheme == "dark" else "light",
                    viewport={"width": width, "height": 860 if width > 400 else 800},
                    reduced_motion="reduce",
                )
                page = context.new_page()
                name = scheme if width > 400 else "narrow"
                page.goto(f"{served.endpoint}/")
                page.get_by_role("link", name="llm-pretrain").wait_for()
                if name == "dark":
                    taken(page, "page-runs-dark")
                page.get_by_role("link", name="llm-pretrain").click()
                page.get_by_role("button", name="Round", exact=True).wait_for()
                page.locator(".events li[data-kind=formed]").first.wait_for()
                page.locator(".detail h3").wait_for()
                page.get_by_text("renewed").first.wait_for()
                if name == "light":
                    taken(page, "page")
                taken(page, f"page-run-{name}", full_page=True)
                page.goto(f"{served.endpoint}/#/runs/train-7b")
                page.locator(".detail", has_text="rank 2 hangs").wait_for()
                page.get_by_text("renewed").first.wait_for()
                if name == "dark":
                    page.set_viewport_size({"width": 1280, "height": 1040})
                    taken(page, "page-progress-dark")
                context.close()
            browser.close()
        finally:
            machine.close()
            served.stop()
            served.kill()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
