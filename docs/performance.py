"""Writes the tables and plots of docs/performance.md from what `make bench` measured.

    make bench
    python -m docs.performance

Where there are no figures, the page says so.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.serving.contenders import CONTENDERS, Contender
from docs.blocks import between

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/performance.md"
RESULTS = ROOT / "benchmarks/results/serving.json"
PLOTS = ROOT / "docs/plots"

OURS = CONTENDERS[0]
NOT_MEASURED = "*Not measured yet.* Run `make bench` on an idle machine, then `python -m docs.performance`."

Results = Mapping[str, Any]


def main() -> None:
    """Write the block and the plots."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else None
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    if found:
        PLOTS.mkdir(exist_ok=True)
        for cell in found["cases"]:
            draw(found, cell, PLOTS / f"{file_name(cell)}.svg")
    print(PAGE)


def with_figures(page: str, found: Results | None) -> str:
    """Return `page` with the tables of what was measured between its markers."""
    text = "\n\n".join(_sections(found)) if found else NOT_MEASURED
    return between(page, "comparison", text, command="docs.performance")


def _sections(found: Results) -> Iterator[str]:
    machine = found["machine"]
    cores = f"{machine['cores']} cores of {machine['processor']}"
    yield f"Measured on {cores} with torch {machine['torch']}, client included."
    for cell in found["cases"]:
        yield f"### {heading(cell)}"
        yield table(found, cell)
        yield _floor(found["floor"].get(cell, []))
        yield f"![Throughput by callers, and 99th percentile of latency by load](plots/{file_name(cell)}.svg)"


def heading(cell: str) -> str:
    """Say what a cell is: its checkpoint, images and engine."""
    checkpoint, image, engine = cell.split(" ")
    return f"`{checkpoint}`, images of {image.replace('x', ' × ')}, engine `{engine}`"


def file_name(cell: str) -> str:
    return cell.replace(" ", "-")


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────


def table(found: Results, cell: str) -> str:
    """Return a row for each server and route; listings per second with the median latency in ms behind."""
    routes = found["cases"][cell]
    closed, shares = _loads(routes, "closed"), _loads(routes, "open")
    most = str(min(closed, key=lambda callers: abs(int(callers) - 64))) if closed else ""
    heads = [
        "", *(f"{callers} caller{'s' if callers != '1' else ''}" for callers in closed),
        f"of this service at {most}", f"CPU ms a listing at {most}", *(f"p99 ms at {share} %" for share in shares),
    ]  # fmt: skip
    lines = [_row(*heads), _row("---", *["---:"] * (len(heads) - 1))]
    reference = _median(routes.get(OURS.name, {}).get(f"closed {most}"), "listings_per_second")
    for contender in CONTENDERS:
        server = found["servers"].get(cell, {}).get(contender.server, {})
        title = " ".join(filter(None, [contender.title, server.get("version")]))
        if "error" in server:
            lines.append(_row(title, f"not measured: {server['error']}", *[""] * (len(heads) - 2)))
        elif contender.name in routes:
            loads = routes[contender.name]
            rate = _median(loads.get(f"closed {most}"), "listings_per_second")
            lines.append(
                _row(
                    title,
                    *(_closed(loads.get(f"closed {callers}")) for callers in closed),
                    f"{rate / reference:.2f}" if rate and reference else "",
                    _number(_median(loads.get(f"closed {most}"), "cpu_ms_per_listing"), ".2f"),
                    *(_number(_median(loads.get(f"open {share}"), "latency_ms", "p99"), ".0f") for share in shares),
                )
            )
    return "\n".join(lines)


def _loads(routes: Results, kind: str) -> list[str]:
    """Return the numbers of callers, or shares of the capacity, that were measured, in order."""
    names = {name.split()[1] for loads in routes.values() for name, rounds in loads.items() if rounds and kind in name}
    return sorted(names, key=int)


def _closed(rounds: Sequence[Results] | None) -> str:
    rate = _median(rounds, "listings_per_second")
    if rate is None or rounds is None:
        return ""
    failed = sum(count for each in rounds for status, count in each["statuses"].items() if status != "200")
    share = failed / sum(each["requests"] for each in rounds)
    latency = _number(_median(rounds, "latency_ms", "p50"), ".0f")
    return f"{rate:.0f} ({latency})" + (f", {100 * share:.0f} % failed" if failed else "")


def _median(rounds: Sequence[Results] | None, *path: str) -> float | None:
    """Return the median over the rounds of the figure at `path`; None where it wasn't measured."""
    values = []
    for each in rounds or ():
        value: Any = each
        for name in path:
            value = value.get(name) if value is not None else None
        if value is not None:
            values.append(value)
    return statistics.median(values) if values else None


def _floor(rounds: Sequence[Results]) -> str:
    names = ("batch_cpu_ms", "batch_ms", "alone_ms")
    cpu, batch, alone = (_number(_median(rounds, name), ".2f") for name in names)
    return (
        f"Without a server, on one thread, decoding, tokenizing and computing take {cpu} ms of the processor a listing "
        f"in batches of 32 ({batch} ms by the clock), and {alone} ms by the clock for a listing alone."
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


# ── plots ───────────────────────────────────────────────────────────────────────────────────────────────────


def draw(found: Results, cell: str, file: Path) -> None:
    """Draw throughput by callers, and the 99th percentile by share of the capacity, one line for each route."""
    routes = found["cases"][cell]
    with mpl.rc_context({"svg.hashsalt": cell, "font.size": 9}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for contender in CONTENDERS:
            for axes, kind, path in (
                (left, "closed", ["listings_per_second"]),
                (right, "open", ["latency_ms", "p99"]),
            ):
                points = _points(routes, contender, kind, path)
                axes.plot(*zip(*points, strict=True), marker="o", label=contender.title) if points else None
        left.set(xscale="log", xlabel="callers", ylabel="listings per second", ylim=(0, None))
        right.set(yscale="log", xlabel="% of the server's own capacity", ylabel="99th percentile, ms")
        left.legend(fontsize=7)
        figure.savefig(file, metadata={"Date": None})


def _points(routes: Results, contender: Contender, kind: str, path: Sequence[str]) -> list[tuple[int, float]]:
    loads = routes.get(contender.name, {})
    found = ((int(each), _median(loads.get(f"{kind} {each}"), *path)) for each in _loads(routes, kind))
    return [(each, value) for each, value in found if value is not None]


if __name__ == "__main__":
    main()
