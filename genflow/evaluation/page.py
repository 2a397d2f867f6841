"""One HTML file that needs nothing else: its style, and the few parts that pages are made of.

Every function that takes text escapes it; those that take HTML say so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image
from torch import Tensor

from genflow import __version__

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --ink: #16202c; --soft: #5a6675; --line: #dde2e9;
  --mark: #2459c9; --tint: #eaf0fd; --warn: #8a5300; --warntint: #fff3dc; --s0: #2459c9; --s1: #c2500a; --s2: #0b7a5b;
  --s3: #8b2fb8; }
@media (prefers-color-scheme: dark) { :root { --back: #10151c; --card: #18202a; --ink: #e7ecf3; --soft: #9aa7b7;
  --line: #2c3744; --mark: #8db4ff; --tint: #1d2c47; --warn: #ffc878; --warntint: #34280f; --s0: #8db4ff; --s1: #ffab70;
  --s2: #5fd6b1; --s3: #d79bf5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 1.25rem; font-weight: 650; }
h2 { font-size: 1.05rem; margin: 0 0 .75rem; font-weight: 650; }
h3 { font-size: .9rem; margin: 1.25rem 0 .25rem; color: var(--soft); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.25rem;
  margin: 0 0 1.1rem; }
p { margin: .5rem 0; } .soft, figcaption, footer { color: var(--soft); font-size: .875rem; }
code, .name { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .875em; }
pre { margin: 0; padding: .8rem 1rem; background: var(--back); border: 1px solid var(--line); border-radius: 8px;
  white-space: pre-wrap; }
.top { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: flex-end; }
.value { font-size: 3.4rem; line-height: 1; font-weight: 700; letter-spacing: -.03em;
  font-variant-numeric: tabular-nums; }
.value small { font-size: 1.25rem; font-weight: 500; color: var(--soft); letter-spacing: 0; }
.name { color: var(--mark); font-weight: 600; margin-bottom: .5rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0; }
.tiles div { background: var(--tint); border-radius: 9px; padding: .45rem .8rem; }
.tiles dt { font-size: .75rem; color: var(--soft); } .tiles dd { margin: 0; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.how { margin: 1rem 0 0; padding: .8rem 0 0; border-top: 1px solid var(--line); display: grid;
  grid-template-columns: max-content 1fr; gap: .15rem .9rem; font-size: .875rem; }
.how dt { color: var(--soft); } .how dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .55rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: .8rem; white-space: nowrap; }
tr:last-child > * { border-bottom: 0; } .wide { font-size: .85rem; } .wide td { white-space: nowrap; }
td.n, th.n { text-align: right; }
tr.best td { background: var(--tint); font-weight: 600; }
td.bar { min-width: 8rem; } .bar i { display: block; height: .45rem; border-radius: 3px; background: var(--s0);
  margin-top: .2rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.fields th { width: 7.5rem; } .sides { display: grid; gap: .25rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); } em { color: var(--soft); }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1.1rem; }
.drawn { max-width: 31rem; margin: 0 auto; }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; border-radius: 6px;
  border: 1px solid var(--line); background: #fff; } figcaption { margin-top: .35rem; }
.warn { background: var(--warntint); border-color: var(--warn); } .warn h2 { color: var(--warn); }
ul { margin: 0; padding-left: 1.2rem; } li { margin: .25rem 0; }
summary { cursor: pointer; color: var(--mark); margin-top: .6rem; }
svg { display: block; width: 100%; min-width: 32rem; height: auto; max-width: 46rem;
  margin: 0 auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .told { fill: var(--ink); font-weight: 600; } svg .axis { stroke: var(--line); }
svg .floor { stroke: var(--soft); stroke-dasharray: 5 4; }
svg .line { fill: none; stroke-width: 2; } svg .bars { stroke-width: 1.5; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); }
circle.s0 { fill: var(--s0); } circle.s1 { fill: var(--s1); }
circle.s2 { fill: var(--s2); } circle.s3 { fill: var(--s3); }
footer { text-align: center; }
@media (max-width: 36rem) { main { padding: 1.1rem .75rem 2rem; } section { padding: 1rem .9rem; }
  .value { font-size: 2.7rem; } .how { grid-template-columns: 1fr; gap: 0; } .how dd { margin-bottom: .4rem; }
  .fields th { width: auto; } }
@media print { :root { color-scheme: light; --back: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb;
  --mark: #1a429a; --tint: #eef2fb; --warn: #6b4000; --warntint: #fff; --s0: #1a429a; --s1: #a2420a; --s2: #086048;
  --s3: #6f2593; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } section { break-inside: avoid; }
  section.long { break-inside: auto; } h2, h3 { break-after: avoid; }
  tr, figure { break-inside: avoid; } .scroll { overflow: visible; }
  .wide { font-size: 8pt; } .wide td, .wide th { padding: .25rem .35rem; } }
"""
# nothing is loaded, and nothing runs, whatever a name in a file of results might say
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, sections: Iterable[str]) -> str:
    """Return a whole page of sections that are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(sections)
        + f"\n<footer>Made by genflow {__version__}</footer>\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str, kind: str = "") -> str:
    """Return a part of a page with a title; ``content`` is HTML."""
    return f'<section class="{kind}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[bool], best: int = -1) -> str:
    """Return a table of text that scrolls sideways where it does not fit; ``best`` is the row to stand out."""
    kinds = [' class="n"' if right else "" for right in numbers]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for text, kind in zip(titles, kinds, strict=True))
    lines = [f"<tr>{head}</tr>"]
    for k, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{escape(text)}</td>" for text, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr{' class=best' if k == best else ''}>{cells}</tr>")
    return '<div class="scroll"><table class="wide">\n' + "\n".join(lines) + "\n</table></div>"


def pairs(kind: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of names with what they are."""
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in rows)
    if kind == "how":  # two columns, which a div around each pair would break
        shown = shown.replace("<div>", "").replace("</div>", "")
    return f'<dl class="{kind}">{shown}</dl>'


def picture(image: Tensor, caption: str) -> str:
    """Return a picture (C, H, W) uint8, grey or RGB, that lies in the page itself, with its caption.

    Raises ``ValueError`` for a tensor that is no picture.
    """
    array = image.cpu().numpy()
    if array.ndim != 3 or array.shape[0] not in (1, 3) or array.dtype != "uint8":
        raise ValueError(f"{caption}: a picture is uint8 (1 or 3, H, W), got {array.dtype} {array.shape}")
    file = io.BytesIO()
    Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)).save(file, format="png")
    text = base64.b64encode(file.getvalue()).decode()
    size = f'width="{array.shape[2]}" height="{array.shape[1]}"'
    source = f'src="data:image/png;base64,{text}"'
    return f'<figure><img {size} alt="{escape(caption)}" {source}><figcaption>{escape(caption)}</figcaption></figure>'
