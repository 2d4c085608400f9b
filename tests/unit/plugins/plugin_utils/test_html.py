# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a report: what is on it, and how a browser shows it where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.baremetal.nim.plugins.filter.nim_benchmark_html import nim_benchmark_html
from ansible_collections.baremetal.nim.plugins.filter.nim_html import collection_version, nim_html
from ansible_collections.baremetal.nim.plugins.module_utils import _benchmark, _judgement
from ansible_collections.baremetal.nim.plugins.module_utils._answers import Record
from ansible_collections.baremetal.nim.plugins.module_utils._report import benchmarks, endpoints
from ansible_collections.baremetal.nim.tests.unit.serving import PATIENCE

PLOTS = {"latency", "itl", "throughput", "histogram", "timeline"}


def browser():
    """A Chromium that works; that of Ubuntu may be nothing but an advice to install another package."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    return None


CHROMIUM = browser()


def step(load, level, ttft):
    """A step as the module returns it, of made-up requests."""
    records = []
    for number in range(60):
        record = Record(number * 0.1)
        record.first = record.start + ttft * (1 + number % 7 / 10)
        record.last = record.first + 0.5
        record.usage = {"prompt_tokens": 100, "completion_tokens": 50}
        record.gaps.extend([0.01] * 49)
        records.append(record)
    facts = {"load": load, "level": level, "aborted": False, "client_cpu_percent": 3.0}
    return {**facts, **_benchmark.summarize(records, {"ttft_ms": 100.0})}


def host(name, service="llama", **result):
    """Variables of a host after the stage."""
    item = {"name": service, "url": "http://127.0.0.1:8000"}
    facts = {
        "model": "meta/llama-3.1-8b-instruct",
        "url": item["url"],
        "environment": {"hostname": name},
        "workload": {},
    }
    return {
        "inventory_hostname": name,
        "nim_service_endpoints": [],
        "nim_benchmark_results": {"results": [{"item": item, **facts, **result}]},
    }


def report():
    """One that passed, one with a hostile failure, one that measured nothing, one that was not reached."""
    steps = [step("closed", level, 0.05 * level) for level in (1, 4, 16)]
    gates = _judgement.judge([{"metric": "ttft_ms", "max": 300.0, "min": None, "at": None}], steps)
    comparison, _notes = _judgement.compare({"steps": [step("closed", 4, 0.1)]}, steps, 10.0)
    hosts = [
        host("gpu01", steps=steps, gates=gates, comparison=comparison, elapsed=90.0, started="2026-11-24T04:00:00Z"),
        host(
            "gpu02.a-long-name.dc1.example.com",
            steps=[step("open", rate, 0.2) for rate in (2.5, 5.0)],
            failed=True,
            msg="gpu02: <script>alert(1)</script> & ttft_ms p95 812, wanted at most 500",
            failure_class="slow",
            evidence=["rate 5: ttft_ms p95 812, wanted at most 500", "x" * 300],
            next_command="curl -sS http://127.0.0.1:8000/v1/metrics",
        ),
        host("gpu03", steps=[], failed=True, msg="gpu03: no connection", failure_class="unreachable"),
        {"inventory_hostname": "gpu04"},
    ]
    return benchmarks(hosts, "2026-11-24 04:00 UTC")


class Page(HTMLParser):
    """Ids, plots and what is fetched of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.plots, self.fetched = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        self.ids += [names["id"]] if "id" in names else []
        self.plots += [names["data-plot"]] if "data-plot" in names else []
        for key in ("src", "href", "xlink:href", "data"):
            if key in names and not names[key].startswith(("#", "data:,")):
                self.fetched.append(names[key])
        assert tag not in ("script", "iframe", "img")


def test_report():
    found = report()
    assert json.loads(json.dumps(found)) == found
    assert [(entry["host"], entry["service"], entry["failure"] is None) for entry in found["benchmarks"]] == [
        ("gpu01", "llama", True),
        ("gpu02.a-long-name.dc1.example.com", "llama", False),
        ("gpu03", "llama", False),
    ]
    assert found["endpoints"] == [{"host": "gpu04", "service": None, "verified": False, "failure": "not reached"}]


def test_page():
    text = nim_benchmark_html(report())
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert sorted(page.plots) == sorted([*PLOTS, *PLOTS])
    assert page.fetched == [] and "@import" not in text
    assert "2 of 3 benchmarks failed" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; ttft_ms" in text
    for words in ("gpu03: no connection", "not reached", "Nothing was measured.", "Against the baseline", "not kept"):
        assert words in text
    # Every reference inside a drawing is to something that is there.
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(page.ids)


def test_the_same_report_is_the_same_page():
    assert nim_benchmark_html(report()) == nim_benchmark_html(report())


def test_an_empty_report():
    assert '<span class="bad">nothing was measured</span>' in nim_benchmark_html({})


def test_what_was_not_measured_is_on_the_page():
    """A sweep whose second step was given up and whose third never ran; a service that nobody came to, and a host."""
    one, four = step("closed", 1, 0.05), step("closed", 4, 0.1)
    four.update(aborted=True, failed_requests=12)
    not_run = [{"load": "closed", "level": 16}]
    gates = _judgement.judge([{"metric": "ttft_ms", "max": 500.0, "at": 16}], [one, four], not_run)
    spec = {"image": "x", "devices": [], "start_timeout": 60, "verify": {}, "url": "http://127.0.0.1:8001"}
    embedding = {**spec, "name": "embed", "verify": {"probes": ["embedding"]}}
    hosts = [
        host(
            "gpu01", steps=[one, four], not_run=not_run, gates=gates, failed=True, msg="m", failure_class="dead_engine"
        ),
        {"inventory_hostname": "gpu02", "nim_service_endpoints": [{**spec, "name": "llama"}, embedding]},
        {"inventory_hostname": "gpu03"},
    ]
    found = benchmarks(hosts, "2026-11-24 04:00 UTC")
    assert [(entry["host"], entry["service"]) for entry in found["benchmarks"]] == [
        ("gpu01", "llama"),
        ("gpu02", "llama"),
    ]
    assert "not measured" in found["benchmarks"][1]["failure"]
    text = nim_benchmark_html(found)
    for words in ("given up", "never ran", "concurrency 16: ttft_ms p95 nothing measured", "2 of 2 benchmarks failed"):
        assert words in text, words
    assert '<span class="bad">3 of 3 endpoints not verified</span>' in text
    assert "benchmarks passed" not in text


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AnsibleFilterError, match=r"matplotlib.*controller"):
        nim_benchmark_html({})
    with pytest.raises(AnsibleFilterError, match=r"matplotlib.*controller"):
        nim_html([])


def test_filters_are_found_without_the_library():
    """Ansible imports all of them to find one, in every process that it forks."""
    code = (
        "import importlib, pkgutil, sys\n"
        "import ansible_collections.baremetal.nim.plugins.filter as filters\n"
        "for _finder, name, _package in pkgutil.iter_modules(filters.__path__, filters.__name__ + '.'):\n"
        "    importlib.import_module(name)\n"
        "print(sorted({'matplotlib', 'numpy', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- verification ------------------------------------------------------------------------------------------------------


def proof(name, ready, ttft, **changes):
    """What nim_verify returned for a service that loaded its model meanwhile."""
    history = [
        {"at": 0.0, "phase": "unreachable", "detail": "Connection refused"},
        {"at": 3.2, "phase": "starting", "detail": "HTTP 503"},
        {"at": ready, "phase": "ready", "detail": "HTTP 200"},
        {"at": ready + 0.9, "phase": "verified", "detail": "meta/llama-3.1-8b-instruct answered"},
    ]
    answer = {
        "model": "meta/llama-3.1-8b-instruct",
        "content": "夜色深沉，樱花飘落。",
        "ready_after": ready,
        "ttft": ttft,
    }
    usage = {"prompt_tokens": 20, "completion_tokens": 12, "total_tokens": 32}
    checks = [
        {"probe": "completion", "passed": True, "detail": "1 answer", "duration": 0.25},
        {
            "probe": "unknown_model",
            "passed": ttft is not None,
            "detail": "HTTP 404 (<no> such model)",
            "duration": None,
        },
    ]
    answer["checks"] = checks
    return {"name": name, "elapsed": ready + 0.9, "history": history, "usage": usage, **answer, **changes}


def dead(name, **changes):
    """One that failed, with words that are not to be believed."""
    return {
        **proof(name, 12.0, None, content=None, model=None, usage=None),
        "failed": True,
        "failure_class": "out_of_memory",
        "msg": "gpu02: <b>http</b>://127.0.0.1:8000: CUDA out of memory & more. Next: nvidia-smi",
        "evidence": ["torch.OutOfMemoryError: CUDA out of memory.", "y" * 300],
        "next_command": "nvidia-smi",
        "history": [{"at": 0.0, "phase": "thinking", "detail": "new"}, {"at": None, "phase": "ready", "detail": ""}],
        **changes,
    }


def verified(hosts=44):
    """The report of a fleet: more endpoints than one drawing holds, names that are long or odd, failures, one not reached."""
    found = []
    for number in range(hosts):
        name = f"gpu{number:02}" if number != 2 else "gpu02.a-very-long-name-of-a-host.rack-17.dc1.example.com"
        result = dead("llama") if number == 2 else proof("llama", 20.0 + number, 0.04 + number / 1000)
        endpoint = {
            "name": "llama",
            "url": "http://127.0.0.1:8000",
            "image": "nvcr.io/nim/x:1",
            "devices": ["nvidia.com/gpu=0"],
        }
        found.append(
            {
                "inventory_hostname": name,
                "nim_service_endpoints": [endpoint],
                "nim_service_verification": {"results": [result]},
            }
        )
    found.append({"inventory_hostname": "gpu$99$"})
    return endpoints(found)


def test_page_of_a_verification():
    text = nim_html(verified(), "2026-11-24 04:00 UTC")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    # 43 bars of the first token, 44 until ready and 44 timelines: two drawings each.
    assert page.plots == ["ttft", "ttft", "ready", "ready", "timeline", "timeline"]
    assert page.fetched == [] and "@import" not in text
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(page.ids)
    for words in (
        "43 of 45 endpoints verified",
        "2026-11-24 04:00 UTC",
        "failed: out_of_memory",
        "failed: not reached",
        "&lt;b&gt;http&lt;/b&gt;://127.0.0.1:8000: CUDA out of memory &amp; more",
        "torch.OutOfMemoryError: CUDA out of memory.",
        "<code>nvidia-smi</code>",
        "another phase",
        "HTTP 404 (&lt;no&gt; such model)",
        ">250</span>",
        "夜色深沉，樱花飘落。",
        "ansible-core",
        collection_version(),
    ):
        assert words in text, words
    assert "<b>http" not in text


def test_the_same_verification_is_the_same_page():
    assert nim_html(verified(3)) == nim_html(verified(3))


def test_a_verification_of_nothing():
    text = nim_html([])
    assert "0 of 0 endpoints verified" in text and "data-plot" not in text


def test_a_report_of_an_earlier_version():
    """Reports are kept for long; theirs had fewer keys."""
    old = {"host": "gpu01", "service": "llama", "verified": True, "ttft_ms": 8.4, "ready_after_s": None}
    assert Page(nim_html([old])).plots == ["ttft"]


def test_one_whose_time_is_nothing():
    assert "data-plot" in nim_html([{"host": "gpu01", "service": "llama", "verified": True, "ttft_ms": 0.0}])


def test_version_of_an_installed_collection(tmp_path):
    (tmp_path / "MANIFEST.json").write_text('{"collection_info": {"version": "1.2.3"}}')
    assert collection_version(tmp_path) == "1.2.3"
    assert collection_version().endswith(" (a checkout)")


# -- both --------------------------------------------------------------------------------------------------------------


PROBE = """
<script>
const lines = [];
window.addEventListener("error", event => lines.push("error: " + event.message));
for (const name of ["error", "warn"]) console[name] = (...words) => lines.push(name + ": " + words.join(" "));
window.addEventListener("load", () => {
  const root = document.documentElement;
  const plots = [...document.querySelectorAll("figure[data-plot] svg")];
  const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > root.clientWidth + 1);
  const seen = {
    width: root.clientWidth, scroll: root.scrollWidth, lines,
    plots: plots.filter(e => e.getBoundingClientRect().height > 100 && e.querySelectorAll("path").length > 5).length,
    wide: wide.filter(e => !e.closest("svg")).map(e => e.tagName + " " + e.textContent.slice(0, 40)),
    fetched: performance.getEntriesByType("resource").map(e => e.name),
  };
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>
"""
#: A window of Chromium has a least width, a frame in it has not.
FRAME = """<!doctype html><title>frame</title><iframe id="page" style="width:{width}px;height:900px;border:0"></iframe><pre id="seen"></pre>
<script>
window.addEventListener("message", event => document.getElementById("seen").textContent = event.data);
document.getElementById("page").srcdoc = {page};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 800, 1200, 1280])
@pytest.mark.parametrize(
    ("made", "plots"),
    [(lambda: nim_benchmark_html(report()), 10), (lambda: nim_html(verified()), 6)],
    ids=["benchmark", "verify"],
)
def test_in_a_browser(tmp_path, width, made, plots):
    text = made().replace("<head>", "<head>" + PROBE, 1)
    page = tmp_path / "frame.html"
    page.write_text(FRAME.format(width=width, page=json.dumps(text).replace("</", "<\\/")))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    assert seen["width"] == width or seen["width"] == width - 15  # a scroll bar
    assert seen["scroll"] <= seen["width"]
    # Between a phone and a desk, the widest table scrolls in a frame of its own.
    assert seen["wide"] == [] or width == 800
    assert (seen["plots"], seen["lines"], seen["fetched"]) == (plots, [], [])
