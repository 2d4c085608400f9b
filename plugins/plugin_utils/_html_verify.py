# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The verification of a fleet as one HTML file.

This plugin util is private to the collection and may change at any time.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.baremetal.nim.plugins.plugin_utils._html import (
    COLOURS,
    ENDPOINT_HEADS,
    endpoint,
    facts,
    failure,
    frame,
    need_matplotlib,
    result,
    svg,
    table,
    text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours of phases, in the order of the legend.
_PHASES = {
    "unreachable": "#8c959f",
    "starting": COLOURS[4],
    "ready": COLOURS[0],
    "another phase": COLOURS[5],
}
_GOOD, _BAD = COLOURS[2], COLOURS[1]
#: Rows of one drawing: what a phone shows at once, and a printer on a page.
_ROWS = 40

Entry = Mapping[str, Any]


def page(report: Sequence[Entry], generated: str, environment: Mapping[str, Any]) -> str:
    """Return a report (nim_report) as HTML. Raises ImportError where the plotting library is missing.

    generated: the time it was made, for people. environment: what made it, by name.
    """
    need_matplotlib()
    lost = [entry for entry in report if not entry.get("verified")]
    good = len(report) - len(lost)
    verdict = result(bool(lost) or not report, f"{good} of {len(report)} endpoints verified")
    parts = [
        "<h1>Verification of NIM endpoints</h1>",
        f"<p>{verdict}</p>",
        f'<p class="dim">{text(generated)}</p>',
        "<h2>Fleet</h2>",
        facts(_summary(report)),
    ]
    if lost:
        parts.append("<h2>Failures</h2>")
        parts += [failure({**entry, "failure": entry.get("failure") or "not verified"}) for entry in lost]
    parts += ["<h2>Endpoints</h2>", table(ENDPOINT_HEADS, [endpoint(entry) for entry in report])]
    drawings = []
    for name, title, key, unit in (
        ("ttft", "Time to the first token", "ttft_ms", "ms"),
        ("ready", "Ready after the start", "ready_after_s", "s"),
    ):
        rows = [
            (_label(entry), entry[key], not entry.get("verified")) for entry in report if _is_number(entry.get(key))
        ]
        # The slowest is what somebody looks for.
        rows.sort(key=lambda row: row[1], reverse=True)
        drawings += _drawn(name, title, rows, functools.partial(_bars, unit=unit))
    waits = [entry for entry in report if entry.get("phases")]
    drawings += _drawn("timeline", "Phases of this verification", waits, _timeline)
    if drawings:
        parts += ["<h2>Times</h2>", f'<div class="plots">{"".join(drawings)}</div>']
    checks = [(entry, check) for entry in report for check in entry.get("checks") or []]
    if checks:
        heads = ["host", "service", "probe", "result", "what was seen", "took ms"]
        parts += ["<h2>Checks</h2>", table(heads, [_check(entry, check) for entry, check in checks])]
    answers = [entry for entry in report if entry.get("content") is not None]
    if answers:
        heads = ["host", "service", "prompt tokens", "answer tokens", "answer"]
        parts += ["<h2>Answers</h2>", table(heads, [_answer(entry) for entry in answers])]
    parts += ["<h2>Environment</h2>", facts(environment)]
    return frame("Verification of NIM endpoints", parts)


def _summary(report: Sequence[Entry]) -> dict[str, Any]:
    times = [entry["ttft_ms"] for entry in report if _is_number(entry.get("ttft_ms"))]
    known: dict[str, Any] = {
        "hosts": len({entry.get("host") for entry in report}),
        "endpoints": sum(bool(entry.get("service")) for entry in report),
        "verified": sum(bool(entry.get("verified")) for entry in report),
    }
    for entry in report:
        if not entry.get("verified"):
            # What has no class is told by its first words.
            name = f"failed: {entry.get('failure_class') or str(entry.get('failure') or 'not verified')[:60]}"
            known[name] = known.get(name, 0) + 1
    if times:
        known.update({"TTFT ms, median": statistics.median(times), "TTFT ms, slowest": max(times)})
    models = sorted({str(entry["model"]) for entry in report if entry.get("model")})
    return {**known, "models": ", ".join(models) or None}


def _check(entry: Entry, check: Mapping[str, Any]) -> list[Any]:
    duration = check.get("duration")
    return [
        entry.get("host"),
        entry.get("service"),
        check.get("probe"),
        result(not check.get("passed"), "passed" if check.get("passed") else "failed"),
        check.get("detail"),
        round(1000 * duration, 1) if isinstance(duration, (int, float)) else None,
    ]


def _answer(entry: Entry) -> list[Any]:
    usage = entry.get("usage") or {}
    said = str(entry["content"]).strip()
    shown = said if len(said) <= 300 else said[:297] + "..."
    return [
        entry.get("host"),
        entry.get("service"),
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        shown or None,
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _label(entry: Entry) -> str:
    words = f"{entry.get('host')}: {entry.get('service')}"
    # Dollars would be mathematics.
    words = words.replace("$", r"\$")
    return words if len(words) <= 46 else f"{words[:24]}…{words[-21:]}"


# -- plots -------------------------------------------------------------------------------------------------------------


def _drawn(name: str, title: str, rows: Sequence[Any], draw: Any) -> list[str]:
    """A drawing for each so many rows."""
    figures = []
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        drawn = svg(f"{name}{start}", title, functools.partial(draw, rows=some), (5.2, 1.3 + 0.44 * len(some)))
        figures.append(f'<figure data-plot="{name}">{drawn}</figure>')
    return figures


def _lanes(axes: Axes, labels: Sequence[str]) -> None:
    """A lane for each label, which stands above it: names are long, and phones are narrow."""
    for place, words in enumerate(labels):
        axes.text(0, place - 0.13, words, transform=axes.get_yaxis_transform(), fontsize=11, va="bottom")
    axes.set_ylim(len(labels) - 0.25, -0.75)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _bars(axes: Axes, rows: Sequence[tuple[str, float, bool]], unit: str) -> None:
    _lanes(axes, [label for label, _value, _bad in rows])
    colours = [_BAD if bad else COLOURS[0] for _label, _value, bad in rows]
    values = [value for _label, value, _bad in rows]
    bars = axes.barh([place + 0.1 for place in range(len(rows))], values, height=0.35, color=colours)
    axes.bar_label(bars, [f" {text(float(value))}" for value in values], fontsize=11)
    axes.set_xlabel(unit)
    axes.set_xlim(0, max(values) * 1.18 or 1)


def _timeline(axes: Axes, rows: Sequence[Entry]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    _lanes(axes, [_label(entry) for entry in rows])
    seen = set()
    last = 0.0
    for place, entry in enumerate(rows):
        # One that came after a lost slice may lack its time.
        phases = [phase for phase in entry["phases"] if _is_number(phase.get("at_s"))]
        ends = [phase["at_s"] for phase in phases[1:]]
        end = max([entry.get("waited_s") or 0.0, *ends])
        for phase, until in zip(phases, [*ends, end], strict=bool(phases)):
            name = phase.get("phase")
            if name == "verified":
                continue
            name = name if name in _PHASES else "another phase"
            seen.add(name)
            axes.barh(
                place + 0.1, max(0.0, until - phase["at_s"]), left=phase["at_s"], height=0.35, color=_PHASES[name]
            )
        axes.plot(
            [end], [place + 0.1], marker="o" if entry.get("verified") else "X", color=_colour(entry), clip_on=False
        )
        last = max(last, end)
    axes.set_xlim(0, last * 1.03 or 1)
    axes.set_xlabel("seconds")
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in _PHASES.items() if name in seen]
    for verified, name in ((True, "verified"), (False, "failed")):
        if any(bool(entry.get("verified")) is verified for entry in rows):
            colour = _GOOD if verified else _BAD
            handles.append(Line2D([], [], marker="o" if verified else "X", color=colour, linestyle="", label=name))
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _colour(entry: Entry) -> str:
    return _GOOD if entry.get("verified") else _BAD
