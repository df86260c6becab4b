"""How `rallypoint demo` shows its story: on a terminal with a table below it, else as plain lines.

The sentences are the same in both, and stay on the screen. The table is drawn again each time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from rallypoint.cli import output
from rallypoint.cli.demo_story import Kill, Story, in_words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_STYLES: Final = {"loss": "red", "round": "green", "end": "bold"}
_STATE_STYLES: Final = {"active": "green", "ready": "yellow", "starting": "yellow", "done": "green"}
_BAR_WIDTH: Final = 40
_TIME_WIDTH: Final = 9


class View:
    """Shows a story as it grows. Use it as `with View(...) as view:`."""

    def __init__(self, story: Story, began_s: float) -> None:
        self._story = story
        self._began_s = began_s
        self._shown = 0
        self._console = output.console()
        self._live: Live | None = None

    def __enter__(self) -> View:
        console = self._console
        if sys.stdout.isatty() and not console.is_dumb_terminal and not console.no_color:
            from rich.live import Live

            self._live = Live(console=console, transient=True, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self) -> None:
        """Print what is new, and draw the table again."""
        for event in self._story.events[self._shown :]:
            self._line(f"{event.at_s - self._began_s:5.1f} s", event.text, event.kind)
        self._shown = len(self._story.events)
        if self._live is not None:
            self._live.update(_board(self._story))

    def _line(self, time: str, text: str, kind: str) -> None:
        if self._live is None:
            print(f"{time:<{_TIME_WIDTH}}{output.clean(text)}", flush=True)
            return
        from rich.table import Table

        grid = Table.grid()
        grid.add_column(width=_TIME_WIDTH)
        grid.add_column()
        grid.add_row(output.cell(time, "dim"), output.cell(text, _STYLES.get(kind, "")))
        self._console.print(grid)


# -- the table below the story -------------------------------------------------------------------


def _board(story: Story) -> RenderableType:
    from rich.console import Group

    rows = [
        [
            output.cell(node.name),
            output.cell(node.state, _STATE_STYLES.get(node.state, "red")),
            output.cell("" if node.node_rank is None else node.node_rank),
            output.cell(" ".join(map(str, node.ranks))),
        ]
        for node in story.nodes()
    ]
    nodes = output.table(["node", "state", "node rank", "worker rank"], rows)
    head = output.cell(f"round {story.round or '-'}   {story.doing}", "bold")
    return Group(output.cell(""), head, nodes, output.cell(_progress(story)))


def _progress(story: Story) -> str:
    if not story.epochs:
        return "the workers load Python, numpy and the data"
    done = round(_BAR_WIDTH * story.epoch / story.epochs)
    bar = "━" * done + "─" * (_BAR_WIDTH - done)
    loss = f"   loss {story.loss:.3f}" if story.loss is not None else ""
    return f"{bar} epoch {story.epoch} of {story.epochs}{loss}"


# -- the end -------------------------------------------------------------------------------------


def show_timeline(story: Story) -> None:
    """Print the rounds, one on each line, and the parts of the time after the kill."""
    headings = ["round", "nodes", "gathering", "committing", "active", "why it ended"]
    rows = [[output.cell(text) for text in _row(each)] for each in story.rounds]
    print()
    output.show(output.table(headings, rows))
    if story.kill is not None:
        print()
        for line in _after(story.kill):
            print(line)


def _row(each: Mapping[str, Any]) -> list[str]:
    active_s = each["active_s"]
    return [
        str(each["number"]),
        in_words(each["members"]),
        f"{each['gathering_s']:.2f} s",
        f"{each['committing_s'] * 1000:.1f} ms",
        f"{active_s:.1f} s" if active_s is not None else "",
        output.clean(each["ended"]),
    ]


def _after(kill: Kill) -> list[str]:
    """The parts of the time after the kill, as far as they were observed."""
    if kill.noticed_s is None or kill.formed_s is None:
        return [f"{kill.node} was killed, and the run ended before the others had regrouped"]
    lines = [
        f"{kill.node} killed, to the new round: {kill.formed_s - kill.at_s:.2f} s",
        f"  {kill.noticed_s - kill.at_s:6.2f} s  until the coordinator noticed: {kill.proof}",
        f"  {kill.formed_s - kill.noticed_s:6.2f} s  until the others had stopped their workers "
        "and the round was formed",
    ]
    if kill.trained_s is not None:
        lines.append(
            f"  {kill.trained_s - kill.formed_s:6.2f} s  more until they trained again: new "
            "worker processes load numpy and scikit-learn"
        )
    return lines
