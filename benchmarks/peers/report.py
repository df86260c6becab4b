"""Makes the tables, the pictures and the document from the JSON of a run.

Nothing here measures. Every cell is a median of values in the JSON, or a dash with its reason below
the table. There are also the reasons why a median is worth less: a run that was cut off, or a busy
machine. The JSON of an older run may lack fields; then the page says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

WRITER: Final = "benchmarks/peers/run.py"

Result = dict[str, Any]
UNKNOWN: Final = "not recorded"

TABLES: Final = (
    (
        "warm",
        "Warm meeting",
        "Milliseconds from the first node's call to the last one's answer; all are connected, and "
        "have met before. Median.",
    ),
    (
        "cold",
        "Cold meeting",
        "Milliseconds from the first node's call to the last one's answer; each connects first. "
        "Interpreters run and everything is imported. Median.",
    ),
    (
        "server_cpu",
        "The server's CPU time for one warm meeting",
        "Milliseconds of the server's process, all its threads together. Median.",
    ),
)


# -- the document ----------------------------------------------------------------------------------


def markdown(run: Result, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The whole result. `pictures`: what each shows, and its path from the document."""
    parts = [described(run)]
    for figure, title, text in TABLES:
        parts += [f"### {title}", text, table(run, figure)]
        parts += [f"![{shown}]({path})" for shown, path in pictures if figure in path]
    parts += ["### A new round after a death", deaths(run)]
    parts += ["### What was measured", _peers(run)]
    return "\n\n".join(part for part in parts if part)


def described(run: Result) -> str:
    """The command, the machine, the time, and the other load."""
    machine, method = run["machine"], run["method"]
    command = f"`{run['command']}`" if "command" in run else UNKNOWN
    rows = [
        ("command", command),
        ("when", machine["when"]),
        ("machine", f"{machine['cores']} cores ({machine['processor']}), {machine['memory']}"),
        ("system", f"{machine['system']}, Python {machine['python']}"),
        ("event loop", _event_loops(run)),
        ("others that were ready to run", _busy(run)),
        ("load average of a minute", _load(run)),
        ("network", machine["network"]),
        ("host names", machine["host_names"]),
        ("repeats", f"up to {method['repeats']} warm and 5 cold ones at each size"),
        (
            "deadline",
            f"{method['deadline_s']:g} s for each peer at each size, "
            f"{method['death_deadline_s']:g} s for its deaths",
        ),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)])


def _event_loops(run: Result) -> str:
    loops = {_plain(p["title"]): p["event_loop"] for p in run["peers"] if p.get("event_loop")}
    return "; ".join(f"{title}: {loop}" for title, loop in loops.items()) or UNKNOWN


def _busy(run: Result) -> str:
    """The greatest load of all rows, as seen right before each."""
    known: list[int] = [row["busy"] for row in _measured(run) if "busy" in row]
    if not known:
        return UNKNOWN
    text = f"at most {max(known)}, right before any measurement"
    if "quiet" in run["method"]:
        quiet = run["method"]["quiet"]
        text += f"; it waits up to {quiet['wait_max_s']:g} s for {quiet['runnable_max']} or none"
    if max(known) > quiet_max(run):
        text += ". **Something else was running: on a quiet machine the figures are smaller**"
    return text


def _load(run: Result) -> str:
    machine = run["machine"]
    worst = max((row["load"] for row in _measured(run) if "load" in row), default=None)
    between = "" if worst is None else f"{rounded(worst)} at most before a row; "
    return (
        f"{machine['load_before']:g} before the first row; {between}{machine['load_after']:g} "
        "after the last. The measurements themselves count in it for minutes"
    )


def _measured(run: Result) -> list[Result]:
    return [*run["results"], *run["deaths"]]


def quiet_max(run: Result) -> int:
    """Up to how many other ready processes the machine counted as quiet."""
    most: int = run["method"].get("quiet", {}).get("runnable_max", 1)
    return most


# -- the tables ------------------------------------------------------------------------------------


class Notes:
    """The notes below a table. A text that is used twice is there once."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, texts: Sequence[str]) -> str:
        """The marks behind a cell's figure: a letter for each of these texts."""
        self._texts += [text for text in dict.fromkeys(texts) if text not in self._texts]
        letters = ", ".join(_letter(self._texts.index(text)) for text in dict.fromkeys(texts))
        return f"<sup>{letters}</sup>" if letters else ""

    def below(self, rows: Sequence[str]) -> str:
        """The table with the notes below it."""
        notes = [f"<sup>{_letter(i)}</sup> {text}.  " for i, text in enumerate(self._texts)]
        return "\n".join([*rows, *(["", *notes] if notes else [])])


def table(run: Result, figure: str) -> str:
    """One row for each peer, one column for each size; below it the reasons of dashes and marks."""
    sizes: list[int] = run["method"]["sizes"]
    notes = Notes()
    rows = [
        f"| nodes | {' | '.join(f'{nodes:,}' for nodes in sizes)} |",
        f"|---|{'---:|' * len(sizes)}",
    ]
    for peer in run["peers"]:
        cells = [_cell(run, peer, nodes, figure, notes) for nodes in sizes]
        rows.append(f"| {peer['title']} | {' | '.join(cells)} |")
        if peer["name"] == "rallypoint" and figure != "server_cpu":
            ratios = [_ratio(run, nodes, figure, notes) for nodes in sizes]
            rows.append(f"| – over the floor | {' | '.join(ratios)} |")
    return notes.below(rows)


def _cell(run: Result, peer: Result, nodes: int, figure: str, notes: Notes) -> str:
    result = found(run, peer["name"], nodes)
    values = result["values"].get(figure, [])
    if values:
        shown = rounded(statistics.median(values))
        return shown + notes.mark(_marks(run, peer, result, figure))
    why_not = result["why_not"]
    if figure == "server_cpu" and peer["no_server"]:
        why_not = peer["no_server"]
    if figure in ("warm", "server_cpu") and peer["no_warm"]:
        why_not = why_not or peer["no_warm"]
    return _dash(run, peer, result, why_not, notes)


def _dash(run: Result, peer: Result, result: Result, why_not: str, notes: Notes) -> str:
    reason = f"{_plain(peer['title'])}: {why_not or 'not measured'}"
    return "–" + notes.mark([reason, *_busy_marks(run, peer, result)])


def _marks(run: Result, peer: Result, result: Result, figure: str) -> list[str]:
    """The marks of a cell that has values."""
    stopped = []
    if is_cut_off(result, figure):
        got, wanted = len(result["values"][figure]), _wanted(result, figure)
        how_many = f"{got} of {wanted} values" if wanted else f"{got} {_values(got)}"
        stopped = [f"{_plain(peer['title'])}: {how_many}, then {result['why_not'] or 'it ended'}"]
    return [*stopped, *_busy_marks(run, peer, result)]


def is_cut_off(result: Result, figure: str) -> bool:
    """Whether there are fewer values than there should be."""
    wanted = _wanted(result, figure)
    if wanted is None:
        return bool(result["why_not"])
    return len(result["values"].get(figure, [])) < wanted


def _wanted(result: Result, figure: str) -> int | None:
    """How many values there would be if nothing had stopped it; None: not in the JSON."""
    known: dict[str, int] = result.get("wanted", {})
    return known.get("warm" if figure == "server_cpu" else figure)


def _values(count: int) -> str:
    return "value" if count == 1 else "values"


def _busy_marks(run: Result, peer: Result, result: Result) -> list[str]:
    others = result.get("busy", 0)
    if others <= quiet_max(run):
        return []
    return [
        f"{_plain(peer['title'])}: it was not quiet before it: {others} others were ready to run"
    ]


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{_letter(index - 26)}"


def _plain(title: str) -> str:
    return title.strip("*")


def _ratio(run: Result, nodes: int, figure: str, notes: Notes) -> str:
    """Rallypoint's median divided by the floor's, with the marks of both."""
    medians, marks = [], []
    peers = {peer["name"]: peer for peer in run["peers"]}
    for name in ("rallypoint", "floor"):
        result = found(run, name, nodes)
        values = result["values"].get(figure)
        if not values:
            return "–"
        medians.append(statistics.median(values))
        marks += _marks(run, peers[name], result, figure)
    return f"{medians[0] / medians[1]:.1f} ×{notes.mark(marks)}"


def found(run: Result, peer: str, nodes: int) -> Result:
    """The result of a peer at a size: values, or why there are none."""
    for result in run["results"]:
        if (result["peer"], result["nodes"]) == (peer, nodes):
            return dict(result)
    return {"values": {}, "why_not": "not asked for"}


def deaths(run: Result) -> str:
    """Seconds until the last survivor is in a new round."""
    if not run["deaths"]:
        return "Not asked for."
    notes = Notes()
    rows = ["| | killed: s | silent: s |", "|---|---:|---:|"]
    for peer in run["peers"]:
        by_kind = {d["kind"]: d for d in run["deaths"] if d["peer"] == peer["name"]}
        cells = []
        for kind in ("killed", "silent"):
            result = by_kind[kind]
            values = result["values"].get(kind)
            if values:
                marks = notes.mark(_marks(run, peer, result, kind))
                cells.append(f"{statistics.median(values) / 1e3:.1f}{marks}")
            else:
                cells.append(_dash(run, peer, result, result["why_not"], notes))
        rows.append(f"| {peer['title']} | {' | '.join(cells)} |")
    return notes.below(rows)


def _peers(run: Result) -> str:
    rows = ["| | version | nodes | what a meeting does |", "|---|---|---|---|"]
    for peer in run["peers"]:
        version, carried = peer["version"] or "–", peer["carried"] or "–"
        rows.append(f"| {peer['title']} | {version} | {carried} | {peer['does']} |")
    return "\n".join(rows)


def rounded(value: float) -> str:
    """Two significant digits, three from a hundred on."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2g}"


# -- pictures --------------------------------------------------------------------------------------

PICTURES: Final = (
    ("warm", "Warm meeting", "ms, first call to last answer"),
    ("cold", "Cold meeting", "ms, first call to last answer"),
    ("server_cpu", "The server's CPU time for a warm meeting", "ms"),
)


def shown(folder: Path, beside: Path) -> list[tuple[str, str]]:
    """The pictures: what each shows, and its path from the folder of the document."""
    paths = [(title, folder / f"peers-{figure}.svg") for figure, title, _ in PICTURES]
    return [(title, path.relative_to(beside).as_posix()) for title, path in paths if path.exists()]


def draw(run: Result, folder: Path) -> None:
    """Each figure over the number of nodes. Raises ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    style = {"svg.fonttype": "none", "svg.hashsalt": "rallypoint", "font.size": 9}
    with matplotlib.rc_context(style):
        for figure, title, unit in PICTURES:
            picture = Figure(figsize=(7, 4), layout="constrained")
            axes = picture.add_subplot()
            hollow = _lines(run, figure, axes.plot)
            about = "nodes (a hollow point: the run was cut off)" if hollow else "nodes"
            axes.set(xscale="log", yscale="log", xlabel=about, ylabel=unit, title=title)
            sizes = run["method"]["sizes"]
            axes.set_xticks(sizes, [f"{nodes:,}" for nodes in sizes])
            axes.minorticks_off()
            axes.grid(True, alpha=0.3)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
            picture.savefig(folder / f"peers-{figure}.svg", metadata={"Date": None})


def _lines(run: Result, figure: str, plot: Callable[..., object]) -> bool:
    """Draw a line for each peer. Returns whether some points are hollow: runs that were cut off."""
    hollow = False
    for peer in run["peers"]:
        points, cut_off = [], []
        for nodes in run["method"]["sizes"]:
            result = found(run, peer["name"], nodes)
            values = result["values"].get(figure)
            if values:
                points.append((nodes, statistics.median(values)))
                cut_off += points[-1:] if is_cut_off(result, figure) else []
        if not points:
            continue
        look: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1}
        if peer["name"] == "rallypoint":
            look |= {"color": "black", "linewidth": 2.5}
        elif peer["name"] == "floor":
            look |= {"color": "gray", "linestyle": "--"}
        plot(*zip(*points, strict=True), label=_plain(peer["title"]), **look)
        if cut_off:
            hollow = True
            look = {"marker": "o", "markersize": 3, "linestyle": "", "color": "white"}
            plot(*zip(*cut_off, strict=True), markeredgecolor="black", zorder=3, **look)
    return hollow
