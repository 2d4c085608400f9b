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
from ansible_collections.baremetal.nim.plugins.module_utils._fault import unstopped
from ansible_collections.baremetal.nim.plugins.module_utils._service_probes import service_probes

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
    "not_run",
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
                    "tokens_per_s": result.get("tokens_per_second"),
                    "checks": [dict(check) for check in result.get("checks") or []],
                    "waited_s": result.get("elapsed"),
                    "phases": [
                        {"at_s": entry.get("at"), "phase": entry.get("phase"), "detail": entry.get("detail")}
                        for entry in result.get("history") or []
                    ],
                    "verified": not failed and not result.get("skipped", False),
                    "failure_class": result.get("failure_class"),
                    "failure": result.get("msg") if failed else None,
                    "evidence": result.get("evidence") or [],
                    "next_command": result.get("next_command"),
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


def cache_bytes(cache: Mapping[str, Any]) -> int | None:
    """Size of a model cache, as staging left word of it: measuring terabytes takes long. None where it is unknown."""
    size = (cache.get("staged") or {}).get("bytes")
    # The image's user may write anything into the marker.
    return size if isinstance(size, int) and size >= 0 else None


def status_items(hosts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One dictionary per service of each host, from the variables of hosts after gpu_host_info; units are in the names.

    A host without services, or one that could not be read, gives one item without a service. ``problem`` is what somebody must look
    at: seen, wanted, next_command, and all of it as a message; None where there is nothing.
    """
    items = []
    for host in hosts:
        name, state = host["inventory_hostname"], host.get("preflight_host")
        if not state or "services" not in state:
            items.append(_unread(name, state or {}))
            continue
        answers = {
            answer["item"]["service"]: answer
            for answer in (host.get("nim_status_answers") or {}).get("results") or []
            if isinstance(answer.get("item"), Mapping) and not answer.get("skipped")
        }
        found = [
            _service(name, service, now, answers.get(service))
            for service, now in sorted(state["services"].items())
            # Nothing but weights: what baremetal.nim.prune would take.
            if now["unit"]["exists"] or now.get("record") or now.get("cache")
        ]
        items += found or [_item(name, state="no services")]
    return items


def _item(host: str, **known: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(
        ("service", "state", "model", "image", "image_reference", "contract", "engine", "unit", "uptime_s", "restarts")
    )
    empty.update(dict.fromkeys(("cache", "deployed_at", "verified", "url", "live", "problem")))
    return {"host": host, **empty, "gpus": [], "watchdog_gave_up": False, "history": [], **known}


def _problem(host: str, seen: str, wanted: str, next_command: str) -> dict[str, str]:
    message = f"{host}: {seen}, wanted {wanted}. Next: {next_command}"
    return {"seen": seen, "wanted": wanted, "next_command": next_command, "message": message}


def _unread(host: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """A host that was not reached, or reached and not read."""
    words = "not read" if state.get("failed") and not state.get("unreachable") else "unreachable"
    # The first line says what went wrong; what follows is how.
    said = unstopped(str(state.get("msg") or "").removeprefix("Task failed: ").strip().partition("\n")[0])
    seen = f"host {words}" + (f" ({said})" if said else "")
    command = f"ansible {host} --become -m ansible.builtin.ping -vvv"
    return _item(host, state=words, problem=_problem(host, seen, "a host that answers", command))


def _service(host: str, service: str, now: Mapping[str, Any], answer: Mapping[str, Any] | None) -> dict[str, Any]:
    unit, record, cache = now["unit"], now.get("record") or {}, now.get("cache")
    item = _item(
        host,
        service=service,
        cache={"path": cache.get("path"), "bytes": cache_bytes(cache)} if cache else None,
        restarts=unit["restarts"],
    )
    if not unit["exists"] and not record:
        return {**item, "state": "cache only", "restarts": None}
    gave_up = bool((now.get("watchdog") or {}).get("failed"))
    # A record without a unit is of a service that somebody removed by hand.
    words = unit_state(unit) if unit["exists"] else "unit missing"
    running = unit.get("uptime") is not None and unit["active"] == "active"
    item.update(
        state=words + (", watchdog gave up" if gave_up else ""),
        unit={key: unit.get(key) for key in ("name", "exists", "active", "sub", "result", "enabled")},
        uptime_s=unit["uptime"] if running else None,
        gpus=list(record.get("gpus") or []),
        history=list(record.get("history") or []),
        watchdog_gave_up=gave_up,
        live=_live(answer) if answer else None,
        **{
            key: record.get(key)
            for key in ("model", "image", "image_reference", "contract", "engine", "deployed_at", "verified", "url")
        },
    )
    name = unit.get("name") or f"nim-{service}.service"
    if not unit["exists"]:
        command = f"ansible-playbook baremetal.nim.site --limit {host}"
        item["problem"] = _problem(host, f"service {service}: {name} is missing", "the unit that was deployed", command)
    elif unit["active"] == "failed":
        seen = f"service {service}: {name} is {words} after {unit['restarts']} restarts"
        item["problem"] = _problem(host, seen, "a unit that runs", f"journalctl -u {name} -n 100 --no-pager")
    elif gave_up:
        watchdog = f"nim-watchdog@{service}.service"
        seen = f"service {service}: {watchdog} gave up, {name} is {words}"
        item["problem"] = _problem(host, seen, "an engine that answers", f"journalctl -u {watchdog} -n 50 --no-pager")
    return item


def _live(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the endpoint said of itself: a result of nim_info, kept short."""
    metadata, metrics = answer.get("metadata") or {}, answer.get("metrics") or {}
    return {
        "ready": answer.get("ready", False),
        "model": answer.get("model"),
        "adapters": answer.get("adapters") or [],
        "version": metadata.get("version") or (answer.get("version") or {}).get("release"),
        "profile": metadata.get("profile"),
        **{key: metrics.get(key) for key in ("requests_running", "requests_waiting", "kv_cache_usage")},
        "failure": None if "ready" in answer else answer.get("msg"),
    }


_COLUMNS = ("HOST", "SERVICE", "MODEL", "GPU", "STATE", "UPTIME", "RESTARTS", "CACHE", "DEPLOYED", "ENDPOINT")
_LIVE_COLUMNS = ("READY", "SERVES", "PROFILE", "RUNNING", "KV-CACHE")


def status(hosts: Iterable[Mapping[str, Any]]) -> str:
    """A table of every service on every host, from the variables of hosts after gpu_host_info, and nim_info where that asked."""
    items = status_items(hosts)
    live = any(item["live"] for item in items)
    rows = [[*_COLUMNS, *(_LIVE_COLUMNS if live else ())]]
    return table(rows + [_row(item) + (_live_row(item["live"]) if live else []) for item in items])


def _row(item: Mapping[str, Any]) -> list[str]:
    cache = "-"
    if item["cache"]:
        size = item["cache"]["bytes"]
        cache = "unknown" if size is None else _staging.amount(size)
    return [
        item["host"],
        item["service"] or "-",
        item["model"] or "-",
        ",".join(item["gpus"]) or "-",
        item["state"],
        "-" if item["uptime_s"] is None else duration(item["uptime_s"]),
        "-" if item["restarts"] is None else str(item["restarts"]),
        cache,
        _deployment.told(item),
        item["url"] or "-",
    ]


def _live_row(live: Mapping[str, Any] | None) -> list[str]:
    if not live:
        return ["-"] * len(_LIVE_COLUMNS)
    running, usage = live["requests_running"], live["kv_cache_usage"]
    return [
        "no answer" if live["failure"] else "yes" if live["ready"] else "no",
        live["model"] or "-",
        (live["profile"] or "-")[:12],
        "-" if running is None else f"{running:g}",
        "-" if usage is None else f"{usage:.1%}",
    ]


def benchmarks(hosts: Iterable[Mapping[str, Any]], generated: str) -> dict[str, Any]:
    """What a fleet was measured to do, from the variables of hosts after the benchmark stage.

    generated: the time it was put together, for people. A service that was to be measured and was not is a failure as well.
    """
    hosts = list(hosts)
    found = []
    for host in hosts:
        wanted = {
            probe["name"]: probe["url"]
            for probe in service_probes(host.get("nim_service_endpoints") or [], None, {}, chat=True)
        }
        for result in (host.get("nim_benchmark_results") or {}).get("results") or []:
            asked = result.get("item")
            service = asked.get("name") if isinstance(asked, Mapping) else None
            facts = {key: value for key, value in result.items() if key in BENCHMARK_KEYS}
            failed = bool(result.get("failed"))
            failure = result.get("msg") if failed else "not asked" if result.get("skipped") else None
            found.append({"host": host["inventory_hostname"], "service": service, "failure": failure, **facts})
            wanted.pop(str(service), None)
        for service, url in wanted.items():
            failure = "not measured: the run ended before, as the verification tells"
            found.append(
                {"host": host["inventory_hostname"], "service": service, "failure": failure, "url": url, "steps": []}
            )
    return {"generated": generated, "benchmarks": found, "endpoints": endpoints(hosts)}
