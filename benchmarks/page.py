"""How quick the web page is, in a real Chromium: `python benchmarks/page.py`. It needs a checkout.

A coordinator in a process of its own has a run with a thousand members, whose steps grow, and two
hundred rounds; and a small run. The page of the large run is loaded anew again and again. From the
navigation on, it measures when the members are painted, and the longest task of the page, by the
clock and in time of the processor; and in either run, how long after an event it is painted.

Targets: painted within 1 s, no task above 100 ms, an event on the page within 500 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from rallypoint.coordinator.config import CoordinatorConfig
from rallypoint.core import events as on
from rallypoint.core.progress import Progress
from rallypoint.core.values import Address, NodeId, NodeInfo, RunSettings
from tests.page.conftest import CHROMIUM, Coordinator
from tests.page.test_large import WATCH, large_run
from tests.waiting import wait_until

MEMBERS, ROUNDS = 1_000, 200
TARGETS_MS: Final = {
    "painted": 1_000.0,
    "longest task, by the clock": 100.0,
    "longest task, of the processor": 100.0,
    "event to page, 3 members": 500.0,
    "event to page, 1,000 members": 500.0,
}
CATEGORIES: Final = ["toplevel", "disabled-by-default-devtools.timeline", "devtools.timeline"]
TASKS: Final = ("RunTask", "ThreadControllerImpl::RunTask", "ThreadPool_RunTask")
SEEN: Final = """(node) => new Promise((done) => {
    const text = () => [...document.querySelectorAll(".events li")].some((each) =>
      each.textContent.includes(node));
    const look = () => {
      if (!text()) return;
      observer.disconnect();
      const at = () => done(performance.timeOrigin + performance.now());
      requestAnimationFrame(() => setTimeout(at));
    };
    const observer = new MutationObserver(look);
    observer.observe(document, { childList: true, subtree: true });
    window.isWatching = true;
    look();
})"""


# -- the coordinator, in a process of its own ------------------------------------------------------


def serve() -> None:
    """Serve both runs. Each line of stdin makes a node ask for one; its time goes to stdout."""
    one = Coordinator(CoordinatorConfig(heartbeats_per_suspicion=3))
    large_run(one, MEMBERS, ROUNDS)
    runs = one.server.coordinator
    settings = RunSettings(
        min_nodes=3, max_nodes=3, suspect_after_s=1e6, lost_after_s=2e6, reconnect_grace_s=1e6
    )

    def begin() -> None:
        run = runs.open_run("small")
        for number in range(3):
            run.post(on.NodeAttached(NodeInfo(f"n{number}", 1, "h"), settings, number))
            run.post(on.NodeReady(NodeId(f"n{number}", 1), 0, Address("h", 1), 1))

    one.call(begin)
    print(one.url, flush=True)
    large, step = runs.runs["large"], 0
    number = large.membership.number

    def advance() -> None:
        for each in range(MEMBERS):
            node = NodeId(f"node-{each:04}", 1)
            large.progressed(node, Progress(number, step - each % 7, 0.0, None))

    for line in sys.stdin:
        name, node = line.split()
        if name == "advance":
            step += 20
            one.call(advance)
            print("advanced", flush=True)
            continue
        asked = runs.runs[name].membership.settings
        assert asked is not None
        attached = on.NodeAttached(NodeInfo(node, 1, "h"), asked, int(node.rpartition("-")[2]))
        at_s = time.time()
        one.call(lambda: runs.runs[name].post(attached))  # noqa: B023
        print(at_s, flush=True)
    one.close()


class Served:
    """That process."""

    def __init__(self) -> None:
        argv = [sys.executable, __file__, "--serve"]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        self.url = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the coordinator has ended"
        return line

    def tell(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


# -- the browser -----------------------------------------------------------------------------------


def load(browser: Any, served: Served) -> dict[str, float]:
    """Load the page of the large run in a new profile, and look at it for a while."""
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto("about:blank")
    browser.start_tracing(page=page, categories=CATEGORIES)
    page.goto(f"{served.url}/#/runs/large")
    page.get_by_role("button", name=str(ROUNDS), exact=True).wait_for(timeout=60_000)
    # The page's policy allows no text as code, which a look of Playwright's own would need.
    wait_until(lambda: page.evaluate("window.painted"))
    for _ in range(4):  # The members are drawn anew, with their new steps.
        served.tell("advance -")
        page.wait_for_timeout(1_000)
    painted_ms = float(page.evaluate("window.painted"))
    events = json.loads(browser.stop_tracing())["traceEvents"]
    context.close()
    mains = {
        (each["pid"], each["tid"])
        for each in events
        if each["name"] == "thread_name" and each["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        each
        for each in events
        if each["name"] in TASKS and (each["pid"], each["tid"]) in mains and "dur" in each
    ]
    return {
        "painted": painted_ms,
        "longest task, by the clock": max(each["dur"] for each in tasks) / 1_000,
        "longest task, of the processor": max(each.get("tdur", 0) for each in tasks) / 1_000,
    }


def delay_ms(page: Any, served: Served, run: str, number: int) -> float:
    """How long after an event it is painted."""
    node = f"new-{number}"
    page.evaluate(f"window.seen = ({SEEN})({node!r}); null")
    at_s = float(served.tell(f"{run} {node}"))
    return float(page.evaluate("window.seen")) - at_s * 1_000


def measure(repeats: int) -> dict[str, list[float]]:
    """All figures, in ms."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[float]] = {name: [] for name in TARGETS_MS}
    served = Served()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for _ in range(repeats):
            for name, value in load(browser, served).items():
                found[name].append(value)
        for run, members in (("small", "3"), ("large", "1,000")):
            page = browser.new_context().new_page()
            page.goto(f"{served.url}/#/runs/{run}")
            page.locator(".events li").first.wait_for()
            page.wait_for_timeout(2_000)  # until the page is quiet
            for number in range(repeats):
                later = delay_ms(page, served, run, 5_000 + number)
                found[f"event to page, {members} members"].append(later)
                page.wait_for_timeout(1_100)  # the next event is not collected with this one
        browser.close()
    served.close()
    return found


def main() -> int:
    """Measure, and print a table. Returns 1 if there is no Chromium."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if CHROMIUM is None:
        print("no Chromium is on PATH", file=sys.stderr)
        return 1
    load_before = os.getloadavg()[0]
    print(f"{'':34}{'median':>8}{'least':>8}{'most':>8}{'target':>8}  in ms")
    for name, values in measure(options.repeats).items():
        row = (statistics.median(values), min(values), max(values), TARGETS_MS[name])
        print(f"{name:34}" + "".join(f"{each:8.0f}" for each in row))
    print(f"{options.repeats} times; load average before {load_before:.1f}, {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
