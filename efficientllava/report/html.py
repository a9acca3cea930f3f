"""One HTML page that needs nothing but itself: styles, images and script are inside.

The markup is in templates/; everything that is put in is escaped there.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from efficientllava.report.comparison import (
    Row,
    benchmark_cells,
    breakdown_cells,
    cells,
    headline_runtime,
    runtime_title,
)
from efficientllava.report.speedup import PHASES
from efficientllava.report.theme import DARK, LIGHT, Theme

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")

_NUMBER = re.compile(r"[-+−]?\d|–?$")


@dataclass(frozen=True)
class Picture:
    """A plot as PNG bytes, once for light and once for dark surfaces."""

    caption: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Part:
    """A part of the page that can be unfolded: pictures, preformatted text, or Markdown."""

    title: str
    pictures: Sequence[Picture] = ()
    text: str = ""
    markdown: str = ""
    open: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page; `marked` are the numbers of the lines that stand out."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    marked: Sequence[int] = ()

    @property
    def words(self) -> set[int]:
        """The columns that hold words: they are set to the left, and may wrap."""
        columns = [[line[index] for line in self.lines] for index in range(len(self.headings))]
        return {
            index
            for index, column in enumerate(columns)
            if not all(_NUMBER.match(cell) for cell in column)
        }


@dataclass(frozen=True)
class _Card:
    """A headline number."""

    value: str
    label: str


def html_page(
    rows: Sequence[Row],
    parts: Sequence[Part] = (),
    facts: Mapping[str, str] | None = None,
    experiments: Sequence[Part] = (),
    timings: str = "",
    title: str = "EfficientLLaVA: pruned models compared",
) -> str:
    """The whole report as one HTML document that loads nothing but `timings`.

    The same content gives the same bytes.

    Args:
        rows: of the comparison, without latencies.
        parts: one per pruned model, and whatever else can be unfolded.
        facts: shown at the end.
        experiments: tables and figures over several seeds.
        timings: the script beside the page that fills in the times (`timings_script`); without it
            the page says so.
    """
    return (
        templates()
        .get_template("page.html")
        .render(
            title=title,
            cards=_cards(rows),
            comparison=Table(*cells(rows), marked=_dense(rows)),
            timings=timings,
            breakdowns=Table(*breakdown_cells(rows)),
            benchmarks=Table(*benchmark_cells(rows)),
            experiments=experiments,
            parts=parts,
            facts=facts or {},
        )
    )


def timings_section(
    rows: Sequence[Row],
    pictures: Sequence[Picture],
    tables: Sequence[Part],
    facts: Mapping[str, str],
) -> str:
    """The part of the page with everything that differs from run to run: times and the machine.

    Args:
        rows: of the comparison, with latencies.
    """
    headings, body = cells(rows)
    shown = [
        0,
        1,
        headings.index("accuracy %"),
        *range(headings.index("parameters") + 1, len(headings)),
    ]
    table = Table(
        [headings[index] for index in shown],
        [[line[index] for index in shown] for line in body],
        marked=_dense(rows),
    )
    return (
        templates()
        .get_template("timings.html")
        .render(
            cards=_speed_cards(rows), comparison=table, pictures=pictures, parts=tables, facts=facts
        )
    )


def timings_script(section: str) -> str:
    """The script that puts the section into its place on the page."""
    return f'document.getElementById("timings").innerHTML = {json.dumps(section)};\n'


def drawn(caption: str, draw: Callable[[Path, Theme], None]) -> Picture:
    """A plot, drawn for light and for dark surfaces."""
    with tempfile.TemporaryDirectory() as folder:
        images = []
        for theme in (LIGHT, DARK):
            path = Path(folder) / "plot.png"
            draw(path, theme)
            images.append(path.read_bytes())
    return Picture(caption, *images)


def _dense(rows: Sequence[Row]) -> list[int]:
    return [number for number, row in enumerate(rows) if row.method == "dense"]


def templates() -> Environment:
    """The templates of the page; everything that is put in is escaped."""
    environment = Environment(
        loader=PackageLoader("efficientllava.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"data_uri": _data_uri, "markdown": _rendered}
    return environment


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def _rendered(text: str) -> str:
    """Markdown as HTML, its tables in panels that scroll; HTML inside of it is escaped."""
    rendered: str = _MARKDOWN.render(text)
    rendered = rendered.replace("<table>", '<div class="panel"><table>')
    return rendered.replace("</table>", "</table></div>")


def _cards(rows: Sequence[Row]) -> list[_Card]:
    """The headline numbers: dense and the most accurate pruned model."""
    shown = []
    dense = next((row.score for row in rows if row.method == "dense" and row.score), None)
    if dense is not None:
        shown.append(_Card(f"{dense} %", "accuracy of the dense model"))
    pruned = [row for row in rows if row.method != "dense"]
    scored = [(row.score, row) for row in pruned if row.score is not None]
    if scored:
        score, best = max(scored, key=lambda pair: pair[0].accuracy)
        shown.append(_Card(f"{score} %", f"best pruned accuracy: {best.name}"))
    return shown


def _speed_cards(rows: Sequence[Row]) -> list[_Card]:
    """The largest speed-ups of a pruned model."""
    shown = []
    pruned = [row for row in rows if row.method != "dense"]
    runtime = headline_runtime(rows)
    for phase in PHASES:
        gains = [
            (speedup, row)
            for row in pruned
            if (timing := row.latencies.get(runtime)) is not None
            and (speedup := timing.speedup(phase)) is not None
        ]
        if gains:
            gain, fastest = max(gains, key=lambda pair: pair[0].factor or 1.0)
            text = f"{phase} in {runtime_title(runtime)}: {fastest.name} {gain.interval}"
            shown.append(_Card(gain.formatted, f"fastest pruned model, {text}"))
    return shown
