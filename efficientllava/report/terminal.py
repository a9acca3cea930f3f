"""The comparison table for a terminal of 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from efficientllava.report.comparison import Row, number, runtime_title, runtimes_of, timings


def rich_table(rows: Sequence[Row], title: str = "") -> Table:
    """The comparison; the losses share a cell, and so do the two latencies of a runtime."""
    runtimes = runtimes_of(rows)
    table = Table(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0),
    )
    table.add_column("method", vertical="middle", min_width=14, max_width=15)
    headings = ["ratio", "zeros", "loss:\nproxy\ntext\nanswer", "accuracy %", "MB"]
    for name in runtimes:
        headings.append("\n".join([*runtime_title(name).split(), "prefill ms", "decode ms"]))
    for heading in headings:
        table.add_column(heading, justify="right", vertical="middle")
    for row in rows:
        size = None if row.bytes_on_disk is None else row.bytes_on_disk / 1e6
        line = [
            row.method.replace("_", " "),
            "–" if row.method == "dense" else f"{row.ratio:g}",
            number(row.achieved_sparsity, ".4f"),
            f"{number(row.proxy_loss, '.4f')}\n{number(row.text_loss, '.3f')}\n"
            f"{number(row.answer_nll, '.3f')}",
            "–" if row.score is None else str(row.score),
            number(size, ".2f"),
            *("\n".join(timings(row.latencies.get(name), lines=True)) for name in runtimes),
        ]
        table.add_row(*line, style="dim" if row.method == "dense" else None)
    return table


def print_whole(console: Console, table: Table) -> None:
    """Print a table; where there is no terminal (a log, a pipe), as wide as its cells need.

    rich takes 80 columns there and cuts longer lines.
    """
    if console.is_terminal:
        console.print(table)
        return
    # without a limit of its own, 80 columns would be the limit of what is measured
    endless = console.options.update(width=sys.maxsize)
    width = console.width
    # `print(width=...)` takes no more than the console has
    console.width = max(width, Measurement.get(console, endless, table).maximum)
    try:
        console.print(table)
    finally:
        console.width = width
