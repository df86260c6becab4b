"""The pages that are written by hand, their order in the menu, and their places."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

GUIDE = {
    "README.md": "Rallypoint",
    "docs/getting-started.md": "Getting started",
}
TASKS = {
    "docs/from-torch.md": "torchrun and torch",
    "docs/native.md": "The native API",
    "docs/departures.md": "Departures and checkpoints",
    "docs/hangs.md": "Hangs",
    "docs/clusters.md": "Clusters",
    "docs/frameworks.md": "Frameworks",
    "docs/restarts.md": "Restarts",
    "docs/operations.md": "Operations",
    "docs/warm-workers.md": "Warm workers",
    "docs/keep-workers.md": "Processes that stay",
    "docs/runbook.md": "Errors and reasons",
    "docs/logs.md": "Logs",
    "docs/doctor.md": "What keeps the nodes from meeting",
    "docs/simulate.md": "How would my job fare",
    "docs/security.md": "Security in practice",
    "SECURITY.md": "Threat model",
    "docs/page.md": "The page",
    "docs/status.md": "Output of status",
    "docs/events.md": "Events",
    "docs/metrics.md": "Metrics",
    "docs/http-api.md": "The HTTP API",
    "docs/testing.md": "Test your program",
    "docs/ledgers.md": "Ledgers of other packages",
    "docs/compatibility.md": "Compatibility",
    "examples/README.md": "Examples",
}
DESIGN = {
    "docs/reading.md": "Twelve files to read",
    "docs/journey.md": "Two journeys",
    "docs/protocol.md": "The protocol",
    "docs/architecture.md": "Architecture",
    "docs/scale.md": "Scale",
    "docs/benchmarks.md": "Comparison with others",
    "benchmarks/README.md": "How to measure",
    "docs/verification.md": "Verification",
    "docs/fuzzing.md": "Fuzzing",
}
PROJECT = {
    "CONTRIBUTING.md": "Contributing",
    "CHANGELOG.md": "Changelog",
}
COMMITTED = GUIDE | TASKS | DESIGN | PROJECT
"""The pages that are written by hand: their paths in the repository, and their menu titles."""


def places(root: Path) -> dict[PurePosixPath, PurePosixPath]:
    """The place within the site of each page, and of each file that a page shows or links to."""
    found = {PurePosixPath(each): place_of(PurePosixPath(each)) for each in COMMITTED}
    for path in sorted((root / "docs").rglob("*")):
        name = PurePosixPath(path.relative_to(root).as_posix())
        if path.is_file() and path.suffix != ".md":
            found[name] = name.relative_to("docs")
    found[PurePosixPath("LICENSE")] = PurePosixPath("LICENSE.txt")
    return found


def place_of(path: PurePosixPath) -> PurePosixPath:
    """The place within the site of a page that is written by hand."""
    match path.parts:
        case ("docs", *rest):
            return PurePosixPath(*rest)
        case ("README.md",):
            return PurePosixPath("index.md")
        case (folder, "README.md"):
            return PurePosixPath(f"{folder}.md" if folder != "benchmarks" else "measuring.md")
    return PurePosixPath(path.name.lower())
