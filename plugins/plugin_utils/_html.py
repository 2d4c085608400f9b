# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A report of benchmarks as one HTML file that needs nothing else: no script, no font, no network.

This plugin util is private to the collection and may change at any time.
"""

from __future__ import annotations

import html
import io
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils._benchmark import label_of, told

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
except ImportError:
    MATPLOTLIB_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    MATPLOTLIB_IMPORT_ERROR = None

#: Told apart by people who do not see all colours (Okabe and Ito), and by their marks.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: Any = {
    "svg.fonttype": "none",
    # The same numbers make the same file.
    "svg.hashsalt": "baremetal.nim",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
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
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:12px}
figure{margin:0}figure svg{width:100%;height:auto;display:block}
.failure{border-left:4px solid var(--bad);padding:2px 12px;margin:.6em 0}
@media(max-width:640px){
thead{display:none}tr{display:block;border-bottom:2px solid var(--line);padding:6px 0}
td,td.n{display:flex;justify-content:space-between;gap:12px;text-align:right;border:0;padding:2px 0}
td span{overflow-wrap:anywhere}td::before{content:attr(data-label);color:var(--dim);text-align:left}}
"""
_NAMES = {
    "ttft_ms": "TTFT ms",
    "itl_ms": "ITL ms",
    "tpot_ms": "TPOT ms",
    "icl_ms": "ICL ms",
    "e2e_ms": "E2E ms",
    "tokens_per_s_user": "tokens/s/user",
    "output_tokens_per_s": "tokens/s",
    "requests_per_s": "requests/s",
    "goodput_per_s": "goodput/s",
    "error_rate": "error rate",
}
_LOADS = {"closed": "concurrency", "open": "requests per second sent"}


def page(report: Mapping[str, Any]) -> str:
    """Return a report (nim_benchmark_report) as HTML. Raises ImportError where the plotting library is missing."""
    if MATPLOTLIB_IMPORT_ERROR:
        raise ImportError("matplotlib")
    entries = report.get("benchmarks") or []
    endpoints = report.get("endpoints") or []
    failures = [entry for entry in entries if entry.get("failure")]
    hosts = len({entry.get("host") for entry in entries})
    lost = [entry for entry in endpoints if not entry.get("verified")]
    verdict = (
        f'<span class="bad">{len(failures)} of {len(entries)} benchmarks failed</span>'
        if failures
        else f'<span class="good">{len(entries)} of {len(entries)} benchmarks passed</span>'
    )
    parts = [
        "<h1>Benchmark of NIM endpoints</h1>",
        f"<p>{verdict}</p>",
        f'<p class="dim">{_text(report.get("generated"))} · {hosts} hosts · metrics as aiperf defines them</p>',
        "<h2>Hosts</h2>",
        _table(
            ["host", "service", "model", "tokens/s", "at", "TTFT p95 ms", "errors", "result"],
            [_overview(entry) for entry in entries],
        ),
    ]
    if failures or lost:
        parts.append("<h2>Failures</h2>")
        parts += [_failure(entry) for entry in failures]
        parts += [_failure({**entry, "failure": entry.get("failure") or "not verified"}) for entry in lost]
    parts += [_benchmark(number, entry) for number, entry in enumerate(entries)]
    if endpoints:
        parts.append("<h2>Verification</h2>")
        parts.append(
            _table(
                ["host", "service", "url", "model", "GPUs", "ready after s", "TTFT ms", "result"],
                [_endpoint(entry) for entry in endpoints],
            )
        )
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without one, a browser asks the server for a favicon.
        '<link rel="icon" href="data:,">\n'
        f"<title>Benchmark of NIM endpoints</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


# -- text --------------------------------------------------------------------------------------------------------------


class _Markup(str):
    """HTML that is sound already."""

    __slots__ = ()


def _text(value: Any) -> str:
    if isinstance(value, _Markup):
        return value
    if value is None:
        return "-"
    return html.escape(f"{value:.4g}" if isinstance(value, float) and abs(value) < 10000 else _whole(value))


def _whole(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = []
    for row in rows:
        cells = (
            f'<td{_number(value)} data-label="{html.escape(head)}"><span>{_text(value)}</span></td>'
            for head, value in zip(heads, row, strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    titles = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _number(value: Any) -> str:
    return ' class="n"' if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def _result(bad: bool, words: str) -> _Markup:
    return _Markup(f'<span class="{"bad" if bad else "good"}">{html.escape(words)}</span>')


def _stat(step: Mapping[str, Any], metric: str, stat: str) -> float | None:
    value: float | None = (step.get(metric) or {}).get(stat)
    return value


def _overview(entry: Mapping[str, Any]) -> list[Any]:
    steps = _measured(entry)
    best = max(steps, key=lambda step: step["output_tokens_per_s"], default=None)
    numbers: list[Any] = [None, None, None]
    if best:
        numbers = [best["output_tokens_per_s"], label_of(best), _stat(best, "ttft_ms", "p95")]
    errors = sum(step.get("failed_requests") or 0 for step in entry.get("steps") or [])
    word = str(entry.get("failure_class") or "failed") if entry.get("failure") else "passed"
    shown = _result(bool(entry.get("failure")), word)
    return [entry.get("host"), entry.get("service"), entry.get("model"), *numbers, errors, shown]


def _endpoint(entry: Mapping[str, Any]) -> list[Any]:
    word = "verified" if entry.get("verified") else str(entry.get("failure_class") or "not verified")
    shown = [entry.get(key) for key in ("host", "service", "url", "model")]
    gpus = ", ".join(str(gpu) for gpu in entry.get("gpus") or []) or None
    return [*shown, gpus, entry.get("ready_after_s"), entry.get("ttft_ms"), _result(not entry.get("verified"), word)]


def _failure(entry: Mapping[str, Any]) -> str:
    evidence = "\n".join(str(line) for line in entry.get("evidence") or [])
    command = entry.get("next_command")
    return (
        f'<div class="failure"><p><b>{_text(entry.get("host"))}: {_text(entry.get("service"))}</b> '
        f"{_result(True, str(entry.get('failure_class') or 'failed'))}</p><p>{_text(entry['failure'])}</p>"
        + (f"<pre>{_text(evidence)}</pre>" if evidence else "")
        + (f"<p>Next: <code>{_text(command)}</code></p>" if command else "")
        + "</div>"
    )


def _benchmark(number: int, entry: Mapping[str, Any]) -> str:
    parts = [f"<h2>{_text(entry.get('host'))}: {_text(entry.get('service'))}</h2>"]
    steps = _measured(entry)
    parts.append(f'<p class="dim">{_text(entry.get("model"))} at {_text(entry.get("url"))}</p>')
    if steps:
        plots = "\n".join(f'<figure data-plot="{name}">{svg}</figure>' for name, svg in _plots(f"b{number}", steps))
        parts.append(f'<div class="plots">{plots}</div>')
    else:
        parts.append("<p>Nothing was measured.</p>")
    if entry.get("steps"):
        heads = [
            "load",
            "requests",
            "errors",
            "tok/s",
            "req/s",
            "good/s",
            "TTFT p50",
            "TTFT p95",
            "TTFT p99",
        ]
        heads += ["ITL p50", "ITL p99", "E2E p50", "E2E p99", "tok/s user", "client CPU %"]
        parts.append("<h3>Steps (latencies in ms)</h3>" + _table(heads, [_step(step) for step in entry["steps"]]))
    if entry.get("gates"):
        rows = [
            [told(gate), gate["wanted"], _result(not gate["passed"], "kept" if gate["passed"] else "not kept")]
            for gate in entry["gates"]
        ]
        parts.append("<h3>Limits</h3>" + _table(["seen", "wanted", "result"], rows))
    if entry.get("comparison"):
        rows = [
            [
                line["step"],
                " ".join(filter(None, (_NAMES.get(line["metric"], line["metric"]), line["stat"]))),
                line["before"],
                line["now"],
                f"{line['change_percent']:+.1f}",
                _result(line["regression"], "worse" if line["regression"] else "within tolerance"),
            ]
            for line in entry["comparison"]
        ]
        heads = ["step", "metric", "before", "now", "change %", "result"]
        parts.append("<h3>Against the baseline</h3>" + _table(heads, rows))
    facts = {"started": entry.get("started"), "seconds": entry.get("elapsed")}
    facts.update(
        {str(key): value for part in ("workload", "environment") for key, value in (entry.get(part) or {}).items()}
    )
    rows = [[key.replace("_", " "), _whole(value) if value is not None else None] for key, value in facts.items()]
    parts.append("<h3>Environment and workload</h3>" + _table(["what", "value"], rows))
    return "\n".join(parts)


def _step(step: Mapping[str, Any]) -> list[Any]:
    rates = [step.get(key) for key in ("output_tokens_per_s", "requests_per_s", "goodput_per_s")]
    latencies = [_stat(step, "ttft_ms", stat) for stat in ("p50", "p95", "p99")]
    latencies += [_stat(step, metric, stat) for metric in ("itl_ms", "e2e_ms") for stat in ("p50", "p99")]
    last = [_stat(step, "tokens_per_s_user", "mean"), step.get("client_cpu_percent")]
    return [label_of(step), step.get("requests"), step.get("failed_requests"), *rates, *latencies, *last]


def _measured(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [step for step in entry.get("steps") or [] if step.get("completed")]


# -- plots -------------------------------------------------------------------------------------------------------------


def _plots(prefix: str, steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    drawn = []
    for name, title, draw in (
        ("latency", "Latency by load", _latency),
        ("itl", "Time between tokens by load", _itl),
        ("throughput", "Throughput by load", _throughput),
        ("histogram", "Time to the first token, requests", _histogram),
        ("timeline", "Requests per second over time", _timeline),
    ):
        with matplotlib.rc_context(_STYLE):
            drawn.append((name, _svg(f"{prefix}{name}", title, steps, draw)))
    return drawn


def _svg(
    prefix: str,
    title: str,
    steps: Sequence[Mapping[str, Any]],
    draw: Callable[[Axes, Sequence[Mapping[str, Any]]], None],
) -> str:
    # Without pyplot: its state is of the process, and Ansible forks.
    figure = Figure(figsize=(5.2, 3.3), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    draw(axes, steps)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Several drawings are in one document, where an id is to be of one thing.
    drawn = re.sub(r'\bid="', f'id="{prefix}-', drawn)
    drawn = re.sub(r'href="#', f'href="#{prefix}-', drawn)
    drawn = re.sub(r"url\(#", f"url(#{prefix}-", drawn)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _sweep(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> list[int]:
    """Even places for the values of the sweep, which often double."""
    places = list(range(len(steps)))
    axes.set_xticks(places, [f"{step['level']:g}" for step in steps])
    axes.set_xlabel(_LOADS[steps[0]["load"]])
    axes.set_xlim(-0.3, len(steps) - 0.7)
    return places


def _lines(axes: Axes, steps: Sequence[Mapping[str, Any]], wanted: Sequence[tuple[str, str]]) -> None:
    places = _sweep(axes, steps)
    for number, (metric, stat) in enumerate(wanted):
        values = [_stat(step, metric, stat) for step in steps]
        shown = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
        if shown:
            label = f"{_NAMES[metric].removesuffix(' ms')} {stat}"
            axes.plot(
                [place for place, _value in shown],
                [value for _place, value in shown],
                marker=_MARKS[number],
                color=_COLOURS[number],
                label=label,
            )
    axes.set_ylabel("ms")
    if axes.lines:
        axes.legend()


def _latency(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    _lines(
        axes, steps, (("ttft_ms", "p50"), ("ttft_ms", "p95"), ("ttft_ms", "p99"), ("e2e_ms", "p50"), ("e2e_ms", "p99"))
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _itl(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    _lines(axes, steps, (("itl_ms", "p50"), ("itl_ms", "p95"), ("itl_ms", "p99")))
    axes.set_ylim(bottom=0)


def _throughput(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    places = _sweep(axes, steps)
    bars = axes.bar(places, [step["output_tokens_per_s"] for step in steps], width=0.5, color=_COLOURS[0])
    labels = [f"{_text(step['output_tokens_per_s'])}\n{_text(step['requests_per_s'])} req/s" for step in steps]
    axes.bar_label(bars, labels, fontsize=9, padding=2)
    axes.set_ylabel("output tokens/s")
    axes.set_xlim(-0.6, len(steps) - 0.4)
    axes.margins(y=0.2)


def _histogram(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    for number, step in enumerate(steps):
        bins = (step.get("histograms") or {}).get("ttft_ms")
        if bins:
            axes.stairs(
                bins["counts"],
                bins["edges"],
                label=label_of(step),
                color=_COLOURS[number % len(_COLOURS)],
                linewidth=1.5,
            )
    axes.set_xlabel("TTFT ms")
    axes.set_ylabel("requests")
    axes.legend()


def _timeline(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    for number, step in enumerate(steps):
        points = step.get("timeline") or []
        axes.plot(
            [point["at"] for point in points],
            [point["requests_per_s"] for point in points],
            marker=_MARKS[number % len(_MARKS)],
            markersize=4,
            color=_COLOURS[number % len(_COLOURS)],
            label=label_of(step),
        )
    axes.set_xlabel("seconds")
    axes.set_ylabel("requests/s")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend()
