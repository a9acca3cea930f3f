"""One HTML page that needs nothing but itself: styles, images and script are inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from markdown_it import MarkdownIt

from efficientllava.report.comparison import Row, Score, breakdown_cells, cells

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --page:#f7f6f2; --card:#ffffff; --ink:#1c1c1a; --soft:#5f5e58; --line:#e4e3dd;
  --accent:#2a78d6; --zebra:#fafaf7; }
@media (prefers-color-scheme: dark) { :root { --page:#111110; --card:#1a1a19; --ink:#f4f3ee;
  --soft:#b5b3aa; --line:#383835; --accent:#6da7ec; --zebra:#1f1f1d; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width:1280px; margin:0 auto; padding:40px 24px 80px; }
h1 { font-size:30px; line-height:1.2; margin:0 0 6px; letter-spacing:-.01em; }
h2 { font-size:20px; margin:44px 0 6px; letter-spacing:-.005em; }
p { margin:6px 0 14px; color:var(--soft); max-width:80ch; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(210px,1fr)); gap:14px;
  margin:26px 0 0; }
.card, .panel, details { background:var(--card); border:1px solid var(--line);
  border-radius:10px; }
.card { padding:16px 18px; }
.card b { display:block; font-size:25px; line-height:1.25; font-weight:650; }
.card span { color:var(--soft); font-size:13px; }
.panel { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:13.5px;
  font-variant-numeric:tabular-nums; }
th, td { padding:8px 12px; text-align:right; white-space:nowrap; }
th:first-child, td:first-child { text-align:left; position:sticky; left:0; background:inherit; }
th { color:var(--soft); font-weight:600; white-space:normal; vertical-align:bottom;
  border-bottom:1px solid var(--line); cursor:pointer; user-select:none; }
thead tr, tbody tr { background:var(--card); }
tbody tr:nth-child(even) { background:var(--zebra); }
tbody tr.dense { font-weight:600; }
th[data-order]::after { content:" ↑"; color:var(--accent); }
th[data-order="down"]::after { content:" ↓"; }
details { margin:12px 0; }
summary { padding:13px 18px; cursor:pointer; font-weight:600; }
details > .inside { padding:0 18px 14px; }
figure { margin:14px 0; }
figcaption { color:var(--soft); font-size:13px; }
img { max-width:100%; height:auto; border-radius:6px; }
pre { margin:0; overflow-x:auto; font:12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 18px; margin:0;
  font-size:13.5px; }
dt { color:var(--soft); } dd { margin:0; overflow-wrap:anywhere; }
</style>
</head>
<body><main>
<h1>$title</h1>
<p>$lead</p>
<div class="cards">$cards</div>
$body
</main>
<script>
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.dataset.order !== "up";
    heads.forEach(other => delete other.dataset.order);
    head.dataset.order = up ? "up" : "down";
    const key = row => {
      const text = row.cells[column].textContent, number = parseFloat(text.replace("×", ""));
      return isNaN(number) ? text : number;
    };
    const blank = value => value === "–";
    [...table.tBodies[0].rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (blank(x) || blank(y)) return blank(x) - blank(y);
      return (x > y ? 1 : x < y ? -1 : 0) * (up ? 1 : -1);
    }).forEach(row => table.tBodies[0].append(row));
  }));
}
</script>
</body></html>
""")


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


def html_page(
    rows: Sequence[Row],
    pictures: Sequence[Picture] = (),
    parts: Sequence[Part] = (),
    facts: Mapping[str, str] | None = None,
    experiments: Sequence[Part] = (),
    title: str = "EfficientLLaVA: pruned models compared",
) -> str:
    """The whole report as one HTML document that loads nothing from elsewhere.

    Args:
        rows: of the comparison.
        pictures: shown below the table.
        parts: one per pruned model, and whatever else can be unfolded.
        facts: model, machine, threads ... shown at the end.
        experiments: tables and figures over several seeds.
    """
    body = [
        "<h2>Comparison</h2>",
        "<p>Zeros are the achieved share of the decoder's prunable weights. Losses: lower is "
        "better; accuracy with one standard error over questions. Latencies are medians of one "
        "run in which dense and pruned were measured side by side; × is the speed-up against "
        "dense, below 1 is slower, with its interval; where that holds 1 the runs show no "
        "difference. Click a heading to sort.</p>",
        _table(*cells(rows), dense=[row.method == "dense" for row in rows]),
    ]
    body += [_picture(picture) for picture in pictures]
    headings, lines = breakdown_cells(rows)
    if lines:
        body += [
            "<h2>Accuracy by subject, context and grade</h2>",
            "<p>Natural, social and language science; with text context, with an image, with "
            "neither; grades 1 to 6 and 7 to 12. Per cent with one standard error.</p>",
            _table(headings, lines),
        ]
    if experiments:
        body += [
            "<h2>The paper's tables and figures, over seeds</h2>",
            *(_part(part) for part in experiments),
        ]
    if parts:
        body += ["<h2>Model by model</h2>", *(_part(part) for part in parts)]
    if facts:
        entries = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()
        )
        body += ["<h2>How it was measured</h2>", f'<div class="card"><dl>{entries}</dl></div>']
    lead = (
        "Every number on this page was read from the record files of the pipeline's stages; "
        "a dash means that the stage has not run or does not apply."
    )
    return _PAGE.substitute(
        title=escape(title), lead=lead, cards="".join(_cards(rows)), body="\n".join(body)
    )


def _cards(rows: Sequence[Row]) -> list[str]:
    """The headline numbers: dense, the most accurate pruned model, the fastest."""
    shown = []
    dense = next((row for row in rows if row.method == "dense" and row.score), None)
    if dense is not None and dense.score is not None:
        shown.append(_card(f"{dense.score} %", "accuracy of the dense model"))
    pruned = [row for row in rows if row.method != "dense"]
    scored = [(row.score.accuracy, row) for row in pruned if row.score is not None]
    if scored:
        _, best = max(scored, key=lambda pair: pair[0])
        shown.append(_card(f"{_told(best.score)} %", f"best pruned accuracy: {best.name}"))
    for phase in ("prefill", "decode"):
        gains = [
            (speedup, row)
            for row in pruned
            if (timing := row.latencies.get("deepsparse")) is not None
            and (speedup := timing.speedup(phase)) is not None
        ]
        if gains:
            gain, fastest = max(gains, key=lambda pair: pair[0].factor or 1.0)
            told = f"best DeepSparse {phase} speed-up: {fastest.name} {gain.interval}"
            shown.append(_card(gain.told, told))
    return shown


def _told(score: Score | None) -> str:
    return "–" if score is None else str(score)


def _card(value: str, label: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _table(
    headings: Sequence[str], body: Sequence[Sequence[str]], dense: Sequence[bool] | None = None
) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    marks = dense or [False] * len(body)
    lines = "".join(
        f"<tr{' class=dense' if mark else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in line)
        + "</tr>"
        for line, mark in zip(body, marks, strict=True)
    )
    return (
        f'<div class="panel"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def _picture(picture: Picture) -> str:
    light, dark = (
        "data:image/png;base64," + base64.b64encode(content).decode("ascii")
        for content in (picture.light, picture.dark)
    )
    caption = escape(picture.caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def _part(part: Part) -> str:
    inside = "".join(_picture(picture) for picture in part.pictures)
    if part.text:
        inside += f"<pre>{escape(part.text)}</pre>"
    if part.markdown:
        rendered = _MARKDOWN.render(part.markdown)
        inside += rendered.replace("<table>", '<div class="panel"><table>').replace(
            "</table>", "</table></div>"
        )
    state = " open" if part.open else ""
    return (
        f"<details{state}><summary>{escape(part.title)}</summary>"
        f'<div class="inside">{inside}</div></details>'
    )
