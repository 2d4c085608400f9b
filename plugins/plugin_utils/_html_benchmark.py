# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A report of benchmarks as one HTML file that needs nothing else: no script, no font, no network.

This plugin util is private to the collection and may change at any time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.baremetal.nim.plugins.module_utils._benchmark import label_of
from ansible_collections.baremetal.nim.plugins.module_utils._judgement import told
from ansible_collections.baremetal.nim.plugins.plugin_utils._html import (
    COLOURS,
    ENDPOINT_HEADS,
    MARKS,
    endpoint,
    failure,
    frame,
    need_matplotlib,
    result,
    svg,
    table,
    text,
    whole,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
_STEP_HEADS = (
    *("load", "ended", "requests", "errors", "tok/s", "req/s", "good/s", "TTFT p50", "TTFT p95", "TTFT p99"),
    *("ITL p50", "ITL p99", "E2E p50", "E2E p99", "tok/s user", "client CPU %"),
)
_LOADS = {"closed": "concurrency", "open": "requests per second sent"}


def page(report: Mapping[str, Any]) -> str:
    """Return a report (nim_benchmark_report) as HTML. Raises ImportError where the plotting library is missing."""
    need_matplotlib()
    entries = report.get("benchmarks") or []
    endpoints = report.get("endpoints") or []
    failures = [entry for entry in entries if entry.get("failure")]
    hosts = len({entry.get("host") for entry in entries})
    lost = [entry for entry in endpoints if not entry.get("verified")]
    verdict = f'<span class="good">{len(entries)} of {len(entries)} benchmarks passed</span>'
    if failures or not entries:
        told = f"{len(failures)} of {len(entries)} benchmarks failed" if entries else "nothing was measured"
        verdict = f'<span class="bad">{told}</span>'
    if lost:
        # Of a host that was not reached, nobody knows what it has.
        verdict += f', <span class="bad">{len(lost)} of {len(endpoints)} endpoints not verified</span>'
    parts = [
        "<h1>Benchmark of NIM endpoints</h1>",
        f"<p>{verdict}</p>",
        f'<p class="dim">{text(report.get("generated"))} · {hosts} hosts · metrics as aiperf defines them</p>',
        "<h2>Hosts</h2>",
        table(
            ["host", "service", "model", "tokens/s", "at", "TTFT p95 ms", "errors", "result"],
            [_overview(entry) for entry in entries],
        ),
    ]
    if failures or lost:
        parts.append("<h2>Failures</h2>")
        parts += [failure(entry) for entry in failures]
        parts += [failure({**entry, "failure": entry.get("failure") or "not verified"}) for entry in lost]
    parts += [_benchmark(number, entry) for number, entry in enumerate(entries)]
    if endpoints:
        parts.append("<h2>Verification</h2>")
        parts.append(
            table(
                ENDPOINT_HEADS,
                [endpoint(entry) for entry in endpoints],
            )
        )
    return frame("Benchmark of NIM endpoints", parts)


# -- text --------------------------------------------------------------------------------------------------------------


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
    shown = result(bool(entry.get("failure")), word)
    return [entry.get("host"), entry.get("service"), entry.get("model"), *numbers, errors, shown]


def _benchmark(number: int, entry: Mapping[str, Any]) -> str:
    parts = [f"<h2>{text(entry.get('host'))}: {text(entry.get('service'))}</h2>"]
    steps = _measured(entry)
    parts.append(f'<p class="dim">{text(entry.get("model"))} at {text(entry.get("url"))}</p>')
    if steps:
        plots = "\n".join(f'<figure data-plot="{name}">{drawn}</figure>' for name, drawn in _plots(f"b{number}", steps))
        parts.append(f'<div class="plots">{plots}</div>')
    else:
        parts.append("<p>Nothing was measured.</p>")
    if entry.get("steps") or entry.get("not_run"):
        parts.append("<h3>Steps (latencies in ms)</h3>" + table(_STEP_HEADS, _step_rows(entry)))
    if entry.get("gates"):
        rows = [
            [told(gate), gate["wanted"], result(not gate["passed"], "kept" if gate["passed"] else "not kept")]
            for gate in entry["gates"]
        ]
        parts.append("<h3>Limits</h3>" + table(["seen", "wanted", "result"], rows))
    if entry.get("comparison"):
        rows = [
            [
                line["step"],
                " ".join(filter(None, (_NAMES.get(line["metric"], line["metric"]), line["stat"]))),
                line["before"],
                line["now"],
                f"{line['change_percent']:+.1f}",
                result(line["regression"], "worse" if line["regression"] else "within tolerance"),
            ]
            for line in entry["comparison"]
        ]
        heads = ["step", "metric", "before", "now", "change %", "result"]
        parts.append("<h3>Against the baseline</h3>" + table(heads, rows))
    facts = {"started": entry.get("started"), "seconds": entry.get("elapsed")}
    facts.update(
        {str(key): value for part in ("workload", "environment") for key, value in (entry.get(part) or {}).items()}
    )
    rows = [[key.replace("_", " "), whole(value) if value is not None else None] for key, value in facts.items()]
    parts.append("<h3>Environment and workload</h3>" + table(["what", "value"], rows))
    return "\n".join(parts)


def _step_rows(entry: Mapping[str, Any]) -> list[list[Any]]:
    missing = [[label_of(step), result(True, "never ran")] for step in entry.get("not_run") or []]
    empty = [None] * (len(_STEP_HEADS) - 2)
    return [_step(step) for step in entry.get("steps") or []] + [row + empty for row in missing]


def _step(step: Mapping[str, Any]) -> list[Any]:
    rates = [step.get(key) for key in ("output_tokens_per_s", "requests_per_s", "goodput_per_s")]
    latencies = [_stat(step, "ttft_ms", stat) for stat in ("p50", "p95", "p99")]
    latencies += [_stat(step, metric, stat) for metric in ("itl_ms", "e2e_ms") for stat in ("p50", "p99")]
    last = [_stat(step, "tokens_per_s_user", "mean"), step.get("client_cpu_percent")]
    ended = result(bool(step.get("aborted")), "given up" if step.get("aborted") else "whole")
    return [label_of(step), ended, step.get("requests"), step.get("failed_requests"), *rates, *latencies, *last]


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
        drawn.append((name, svg(f"{prefix}{name}", title, functools.partial(draw, steps=steps))))
    return drawn


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
                marker=MARKS[number],
                color=COLOURS[number],
                label=label,
            )
    axes.set_ylabel("ms")
    if axes.lines:
        axes.legend()


def _latency(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    _lines(
        axes, steps, (("ttft_ms", "p50"), ("ttft_ms", "p95"), ("ttft_ms", "p99"), ("e2e_ms", "p50"), ("e2e_ms", "p99"))
    )
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _itl(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    _lines(axes, steps, (("itl_ms", "p50"), ("itl_ms", "p95"), ("itl_ms", "p99")))
    axes.set_ylim(bottom=0)


def _throughput(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    places = _sweep(axes, steps)
    bars = axes.bar(places, [step["output_tokens_per_s"] for step in steps], width=0.5, color=COLOURS[0])
    labels = [f"{text(step['output_tokens_per_s'])}\n{text(step['requests_per_s'])} req/s" for step in steps]
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
                color=COLOURS[number % len(COLOURS)],
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
            marker=MARKS[number % len(MARKS)],
            markersize=4,
            color=COLOURS[number % len(COLOURS)],
            label=label_of(step),
        )
    axes.set_xlabel("seconds")
    axes.set_ylabel("requests/s")
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend()
