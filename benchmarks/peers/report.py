"""The tables, the pictures and the document, from the JSON of a run.

Nothing here measures. Every cell is a median of values in the JSON, or a dash whose reason stands
below the table.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

BEGIN: Final = "<!-- measured: begin (written by `make peers`; do not edit between these lines) -->"
END: Final = "<!-- measured: end -->"

Result = dict[str, Any]

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


class MarkersMissingError(Exception):
    """The document has no place for what was measured."""


# -- the document ----------------------------------------------------------------------------------


def put_into(document: str, measured: str) -> str:
    """The document with this between its markers. Raises MarkersMissingError."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MarkersMissingError(f"there is no {BEGIN!r} and {END!r} after it")
    return f"{before}{BEGIN}\n\n{measured.strip()}\n\n{END}{after}"


def markdown(run: Result, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """All that was measured. `pictures`: what each shows, and its path from the document."""
    parts = [described(run)]
    for figure, title, text in TABLES:
        parts += [f"### {title}", text, table(run, figure)]
        parts += [f"![{shown}]({path})" for shown, path in pictures if figure in path]
    parts += ["### A new round after a death", deaths(run)]
    parts += ["### What was measured", _peers(run)]
    return "\n\n".join(part for part in parts if part)


def described(run: Result) -> str:
    """Where and when, and how busy it was."""
    machine, method = run["machine"], run["method"]
    rows = [
        ("when", machine["when"]),
        ("machine", f"{machine['cores']} cores ({machine['processor']}), {machine['memory']}"),
        ("system", f"{machine['system']}, Python {machine['python']}"),
        ("load", _load(run)),
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


def _load(run: Result) -> str:
    machine = run["machine"]
    text = f"{machine['load_before']:g} before; {machine['load_after']:g} after, its own included"
    if machine["load_before"] > machine["cores"]:
        text += ". **Something else was running: on a quiet machine the figures are smaller**"
    return text


def table(run: Result, figure: str) -> str:
    """One row a peer, one column a size; reasons of dashes below."""
    sizes: list[int] = run["method"]["sizes"]
    reasons: list[str] = []
    rows = []
    for peer in run["peers"]:
        cells = [_cell(run, peer, nodes, figure, reasons) for nodes in sizes]
        rows.append(f"| {peer['title']} | {' | '.join(cells)} |")
        if peer["name"] == "rallypoint" and figure != "server_cpu":
            rows.append(f"| – over the floor | {' | '.join(_ratios(run, figure))} |")
    head = [
        f"| nodes | {' | '.join(f'{nodes:,}' for nodes in sizes)} |",
        f"|---|{'---:|' * len(sizes)}",
    ]
    notes = [f"<sup>{_letter(i)}</sup> {text}.  " for i, text in enumerate(reasons)]
    return "\n".join([*head, *rows, *(["", *notes] if notes else [])])


def _cell(run: Result, peer: Result, nodes: int, figure: str, reasons: list[str]) -> str:
    values, why_not = found(run, peer["name"], nodes, figure)
    if values:
        return rounded(statistics.median(values))
    if figure == "server_cpu" and peer["no_server"]:
        why_not = peer["no_server"]
    if figure in ("warm", "server_cpu") and peer["no_warm"]:
        why_not = why_not or peer["no_warm"]
    return _dash(f"{peer['title'].strip('*')}: {why_not or 'not measured'}", reasons)


def _dash(reason: str, reasons: list[str]) -> str:
    if reason not in reasons:
        reasons.append(reason)
    return f"–<sup>{_letter(reasons.index(reason))}</sup>"


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{_letter(index - 26)}"


def _ratios(run: Result, figure: str) -> list[str]:
    cells = []
    for nodes in run["method"]["sizes"]:
        ours, _ = found(run, "rallypoint", nodes, figure)
        floor, _ = found(run, "floor", nodes, figure)
        if ours and floor:
            cells.append(f"{statistics.median(ours) / statistics.median(floor):.1f} ×")
        else:
            cells.append("–")
    return cells


def found(run: Result, peer: str, nodes: int, figure: str) -> tuple[list[float], str]:
    """The values, or none and why."""
    for result in run["results"]:
        if (result["peer"], result["nodes"]) == (peer, nodes):
            return result["values"].get(figure, []), result["why_not"]
    return [], "not asked for"


def deaths(run: Result) -> str:
    """Seconds until the last survivor is in a new round."""
    if not run["deaths"]:
        return "Not asked for."
    reasons: list[str] = []
    rows = ["| | killed: s | silent: s |", "|---|---:|---:|"]
    for peer in run["peers"]:
        by_kind = {d["kind"]: d for d in run["deaths"] if d["peer"] == peer["name"]}
        cells = []
        for kind in ("killed", "silent"):
            values = by_kind[kind]["values"].get(kind)
            if values:
                cells.append(f"{statistics.median(values) / 1e3:.1f}")
            else:
                why_not = by_kind[kind]["why_not"] or "not measured"
                cells.append(_dash(f"{peer['title'].strip('*')}: {why_not}", reasons))
        rows.append(f"| {peer['title']} | {' | '.join(cells)} |")
    notes = [f"<sup>{_letter(i)}</sup> {text}.  " for i, text in enumerate(reasons)]
    return "\n".join([*rows, *(["", *notes] if notes else [])])


def _peers(run: Result) -> str:
    rows = ["| | version | its nodes were | what a meeting of it is |", "|---|---|---|---|"]
    for peer in run["peers"]:
        version, carried = peer["version"] or "–", peer["carried"] or "–"
        rows.append(f"| {peer['title']} | {version} | {carried} | {peer['does']} |")
    return "\n".join(rows)


def rounded(value: float) -> str:
    """Two digits that count, three from a hundred on."""
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
    """What has been drawn: what it shows, and its path from the folder of the document."""
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
            _lines(run, figure, axes.plot)
            axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel=unit, title=title)
            sizes = run["method"]["sizes"]
            axes.set_xticks(sizes, [f"{nodes:,}" for nodes in sizes])
            axes.minorticks_off()
            axes.grid(True, alpha=0.3)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
            picture.savefig(folder / f"peers-{figure}.svg", metadata={"Date": None})


def _lines(run: Result, figure: str, plot: Callable[..., object]) -> None:
    for peer in run["peers"]:
        points = []
        for nodes in run["method"]["sizes"]:
            values, _ = found(run, peer["name"], nodes, figure)
            if values:
                points.append((nodes, statistics.median(values)))
        if not points:
            continue
        look: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1}
        if peer["name"] == "rallypoint":
            look |= {"color": "black", "linewidth": 2.5}
        elif peer["name"] == "floor":
            look |= {"color": "gray", "linestyle": "--"}
        plot(*zip(*points, strict=True), label=peer["title"].strip("*"), **look)
