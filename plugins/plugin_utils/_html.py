# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What pages of all reports have in common. A page is one HTML file that needs nothing else: no script, no font, no network.

This plugin util is private to the collection and may change at any time.
"""

from __future__ import annotations

import html
import importlib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Ansible imports every filter of a collection to find one, in each process that it forks for a host: half a second of matplotlib
# would be half a second for each host and task. So it is imported where something is drawn.
if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Told apart by people who do not see all colours (Okabe and Ito), and by their marks.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: Any = {
    "svg.fonttype": "none",
    # The same numbers make the same file.
    "svg.hashsalt": "baremetal.nim",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_CSS = """
:root{color-scheme:light;--line:#d5d9de;--dim:#57606a;--bad:#b3261e;--good:#1a7f37}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1100px;padding:16px;font:16px/1.45 system-ui,sans-serif;color:#1f2328;background:#fff;overflow-wrap:anywhere}
h1{font-size:1.5em;margin:.2em 0}h2{font-size:1.2em;margin:1.6em 0 .4em;border-bottom:1px solid var(--line)}h3{font-size:1em;margin:1.2em 0 .3em}
p{margin:.4em 0}.dim{color:var(--dim)}.bad{color:var(--bad);font-weight:600}.good{color:var(--good);font-weight:600}
table{border-collapse:collapse;width:100%;font-size:.9em}th,td{text-align:left;padding:4px 8px;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--dim);font-weight:600}th,td{overflow-wrap:break-word}td span{min-width:0}.wide{overflow-x:auto}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
pre{white-space:pre-wrap;background:#f6f8fa;padding:8px;border-radius:6px;font-size:.85em;margin:.4em 0}
.plots{display:grid;align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:12px}
figure{margin:0;max-width:640px}figure svg{width:100%;height:auto;display:block}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,150px),1fr));gap:12px;margin:.6em 0}
.facts div{border:1px solid var(--line);border-radius:6px;padding:6px 10px}
.facts dt{color:var(--dim);font-size:.85em}.facts dd{margin:0;font-weight:600}
.failure{border-left:4px solid var(--bad);padding:2px 12px;margin:.6em 0}
@media(max-width:640px){
thead{display:none}tr{display:block;border-bottom:2px solid var(--line);padding:6px 0}
td,td.n{display:flex;justify-content:space-between;gap:12px;text-align:right;border:0;padding:2px 0}
td span{overflow-wrap:anywhere}td::before{content:attr(data-label);color:var(--dim);text-align:left}}
"""


def need_matplotlib() -> None:
    """Raises ImportError where the plotting library is missing."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise ImportError("matplotlib") from None


def frame(title: str, parts: Iterable[str]) -> str:
    """A whole page of its parts."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without one, a browser asks the server for a favicon.
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


# -- text --------------------------------------------------------------------------------------------------------------


class Markup(str):
    """HTML that is sound already."""

    __slots__ = ()


def text(value: Any) -> str:
    """A value as HTML, shortened where it is a number."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return "-"
    return html.escape(f"{value:.4g}" if isinstance(value, float) and abs(value) < 10000 else whole(value))


def whole(value: Any) -> str:
    """A value in words; a number with no more than its whole part."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table that is a list of cards on a phone."""
    lines = []
    for row in rows:
        cells = (
            f'<td{_number(value)} data-label="{html.escape(head)}"><span>{text(value)}</span></td>'
            for head, value in zip(heads, row, strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    titles = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def facts(known: Mapping[str, Any]) -> str:
    """Single values by their names, side by side as many as there is room for."""
    cells = (f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in known.items())
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _number(value: Any) -> str:
    return ' class="n"' if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def result(bad: bool, words: str) -> Markup:
    """A verdict in its colour."""
    return Markup(f'<span class="{"bad" if bad else "good"}">{html.escape(words)}</span>')


#: Of an endpoint of nim_report.
ENDPOINT_HEADS = ("host", "service", "url", "model", "GPUs", "ready after s", "TTFT ms", "result")


def endpoint(entry: Mapping[str, Any]) -> list[Any]:
    """Cells of an endpoint."""
    word = "verified" if entry.get("verified") else str(entry.get("failure_class") or "not verified")
    shown = [entry.get(key) for key in ("host", "service", "url", "model")]
    gpus = ", ".join(str(gpu) for gpu in entry.get("gpus") or []) or None
    return [*shown, gpus, entry.get("ready_after_s"), entry.get("ttft_ms"), result(not entry.get("verified"), word)]


def failure(entry: Mapping[str, Any]) -> str:
    """A failure with its evidence and the command that comes next."""
    evidence = "\n".join(str(line) for line in entry.get("evidence") or [])
    command = entry.get("next_command")
    return (
        f'<div class="failure"><p><b>{text(entry.get("host"))}: {text(entry.get("service"))}</b> '
        f"{result(True, str(entry.get('failure_class') or 'failed'))}</p><p>{text(entry['failure'])}</p>"
        + (f"<pre>{text(evidence)}</pre>" if evidence else "")
        + (f"<p>Next: <code>{text(command)}</code></p>" if command else "")
        + "</div>"
    )


# -- plots -------------------------------------------------------------------------------------------------------------


def svg(prefix: str, title: str, draw: Callable[[Axes], None], size: tuple[float, float] = (5.2, 3.3)) -> str:
    """A drawing for the middle of a page. prefix: str, makes its ids unique. size: width and height in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        # Without pyplot: its state is of the process, and Ansible forks.
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, loc="left")
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Several drawings are in one document, where an id is to be of one thing.
    drawn = re.sub(r'\bid="', f'id="{prefix}-', drawn)
    drawn = re.sub(r'href="#', f'href="#{prefix}-', drawn)
    drawn = re.sub(r"url\(#", f"url(#{prefix}-", drawn)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
