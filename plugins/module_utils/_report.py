# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was read on many hosts, put together for people and programs. Private to the collection; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from ansible_collections.baremetal.nim.plugins.module_utils import _deployment, _staging

#: Of a result of nim_benchmark, what a report keeps.
BENCHMARK_KEYS = (
    "comparison",
    "elapsed",
    "environment",
    "evidence",
    "failure_class",
    "gates",
    "model",
    "next_command",
    "started",
    "steps",
    "url",
    "workload",
)


def endpoints(hosts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One dictionary per verified or failed endpoint, from the variables of hosts after the verify stage.

    A host that failed before its endpoints were asked gives one item with ``verified`` false and no service.
    """
    report = []
    for host in hosts:
        name = host["inventory_hostname"]
        results = {
            result["name"]: result for result in (host.get("nim_service_verification") or {}).get("results") or []
        }
        items = host.get("nim_service_endpoints")
        if items is None:
            report.append({"host": name, "service": None, "verified": False, "failure": "not reached"})
        for item in items or []:
            result = results.get(item["name"]) or {"failed": True, "msg": "not asked"}
            known = ((host.get("preflight_host") or {}).get("services") or {}).get(item["name"]) or {}
            record = known.get("record") or {}
            failed = bool(result.get("failed"))
            report.append(
                {
                    "host": name,
                    "service": item["name"],
                    "url": item["url"],
                    "model": result.get("model"),
                    "image": record.get("image_reference") or item["image"],
                    "gpus": item["devices"],
                    "ready_after_s": record.get("ready_after_s", result.get("ready_after")),
                    "ttft_ms": round(result["ttft"] * 1000, 1) if result.get("ttft") is not None else None,
                    "usage": result.get("usage"),
                    "content": result.get("content"),
                    "verified": not failed and not result.get("skipped", False),
                    "failure_class": result.get("failure_class"),
                    "failure": result.get("msg") if failed else None,
                }
            )
    return report


#: What XML 1.0 cannot hold, such as the colours of a log.
_NO_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def junit(report: Iterable[Mapping[str, Any]]) -> str:
    """A report as JUnit XML: a suite for each host, a case for each endpoint, whose time is that to the first token."""
    by_host: dict[str, list[Mapping[str, Any]]] = {}
    for item in report:
        by_host.setdefault(item["host"], []).append(item)
    root = ElementTree.Element("testsuites", name="baremetal.nim.verify")
    for host, items in by_host.items():
        suite = ElementTree.SubElement(root, "testsuite", name=host)
        counts = {"tests": len(items), "failures": 0, "errors": 0}
        for item in items:
            seconds = (item.get("ttft_ms") or 0) / 1000
            name = str(item["service"] or "host")
            case = ElementTree.SubElement(suite, "testcase", classname=host, name=name, time=f"{seconds:.3f}")
            if item["verified"]:
                continue
            kind = "failure" if item["service"] else "error"
            counts[f"{kind}s"] += 1
            told = _NO_XML.sub("", str(item.get("failure") or "not verified"))
            problem = ElementTree.SubElement(
                case, kind, type=str(item.get("failure_class") or "unknown"), message=told.splitlines()[0]
            )
            problem.text = told
        for key, value in counts.items():
            suite.set(key, str(value))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def table(rows: list[list[str]]) -> str:
    """Rows as text, columns aligned; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds for people: 3 d 4 h, 5 min, 12 s."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 1:
        return f"{int(days)} d {int(hours % 24)} h"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(minutes)} min" if minutes >= 1 else f"{int(seconds)} s"


def unit_state(unit: Mapping[str, Any]) -> str:
    """State of a unit; of a failed one, why."""
    why = unit.get("result") if unit["active"] == "failed" else None
    return f"{unit['active']} ({why or unit['sub']})"


def cache_size(cache: Mapping[str, Any] | None) -> str:
    """Size of a model cache for people, as staging left word of it: measuring terabytes takes long."""
    if not cache:
        return "-"
    size = (cache.get("staged") or {}).get("bytes")
    # The image's user may write anything into the marker.
    return _staging.amount(size) if isinstance(size, int) and size >= 0 else "unknown"


def status(hosts: Iterable[Mapping[str, Any]]) -> str:
    """A table of every service on every host, from the variables of hosts after gpu_host_info."""
    rows = [["HOST", "SERVICE", "MODEL", "GPU", "STATE", "UPTIME", "RESTARTS", "CACHE", "DEPLOYED", "ENDPOINT"]]
    for host in hosts:
        name, state = host["inventory_hostname"], host.get("preflight_host")
        if not state:
            rows.append([name, "-", "-", "-", "unreachable", "-", "-", "-", "-", "-"])
            continue
        shown = 0
        for service, now in sorted(state["services"].items()):
            unit, record = now["unit"], now.get("record") or {}
            cache = cache_size(now.get("cache"))
            if not unit["exists"] and not record:
                # Nothing but weights: what baremetal.nim.prune would take.
                if cache != "-":
                    shown += 1
                    rows.append([name, service, "-", "-", "cache only", "-", "-", cache, "-", "-"])
                continue
            shown += 1
            # A record without a unit is of a service that somebody removed by hand.
            words = unit_state(unit) if unit["exists"] else "unit missing"
            words += ", watchdog gave up" if (now.get("watchdog") or {}).get("failed") else ""
            uptime = duration(unit["uptime"]) if unit.get("uptime") is not None and unit["active"] == "active" else "-"
            gpus = ",".join(record.get("gpus") or []) or "-"
            rows.append(
                [
                    name,
                    service,
                    record.get("model") or "-",
                    gpus,
                    words,
                    uptime,
                    str(unit["restarts"]),
                    cache,
                    _deployment.told(record),
                    record.get("url") or "-",
                ]
            )
        if not shown:
            rows.append([name, "-", "-", "-", "no services", "-", "-", "-", "-", "-"])
    return table(rows)


def benchmarks(hosts: Iterable[Mapping[str, Any]], generated: str) -> dict[str, Any]:
    """What a fleet was measured to do, from the variables of hosts after the benchmark stage.

    generated: the time it was put together, for people. A service that was not measured says why.
    """
    hosts = list(hosts)
    found = []
    for host in hosts:
        for result in (host.get("nim_benchmark_results") or {}).get("results") or []:
            asked = result.get("item")
            service = asked.get("name") if isinstance(asked, Mapping) else None
            facts = {key: value for key, value in result.items() if key in BENCHMARK_KEYS}
            failed = bool(result.get("failed"))
            failure = result.get("msg") if failed else "not asked" if result.get("skipped") else None
            found.append({"host": host["inventory_hostname"], "service": service, "failure": failure, **facts})
    return {"generated": generated, "benchmarks": found, "endpoints": endpoints(hosts)}
