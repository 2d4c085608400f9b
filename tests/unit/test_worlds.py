# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The worlds that the tests run in are what their names promise, and a day's world is another one each day."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import worlds

PROBE = """
import json, os, shutil, socket, tempfile, time
disk = os.statvfs(tempfile.gettempdir())
os.umask(mask := os.umask(0))
print(json.dumps({
    "offset": time.localtime().tm_gmtoff, "locale": os.environ.get("LC_ALL"), "up": time.clock_gettime(time.CLOCK_BOOTTIME),
    "monotonic": time.monotonic(), "umask": mask, "uid": os.getuid(), "disk": disk.f_blocks * disk.f_frsize,
    "writes": tempfile.mkdtemp(), "nets": [name for _number, name in socket.if_nameindex()],
    "listens": bool(socket.create_server(("127.0.0.1", 0))), "git": shutil.which("git"), "yum": shutil.which("yum"),
    "proxy": os.environ.get("https_proxy"),
}))
"""


def inside(name):
    """What a process sees in a world; skipped where this machine cannot make it."""
    if reason := worlds.impossible(name):
        pytest.skip(f"world {name}: {reason}")
    done = worlds.enter(name, [sys.executable, "-c", PROBE], subprocess.PIPE)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "is_so"),
    [
        ("here", lambda seen: seen["writes"].startswith("/")),
        ("shanghai", lambda seen: seen["offset"] == 8 * 3600),
        ("newyork", lambda seen: seen["offset"] in (-5 * 3600, -4 * 3600) and seen["locale"] == "C"),
        ("kathmandu", lambda seen: seen["offset"] == 20700 and seen["locale"] == "ne_NP.UTF-8"),
        ("summer-ends", lambda seen: seen["offset"] in (3600, 7200)),
        ("fresh-boot", lambda seen: 59 <= seen["up"] < 300 and 58 <= seen["monotonic"] < 300),
        ("long-up", lambda seen: 400 <= seen["up"] / 86400 < 401 and seen["monotonic"] > 399 * 86400),
        ("umask", lambda seen: seen["umask"] == 0o077),
        ("small-disk", lambda seen: seen["disk"] == 2**30),
        ("nobody", lambda seen: seen["uid"] == 65534),
        ("offline", lambda seen: seen["nets"] == ["lo"] and seen["listens"]),
        ("bare", lambda seen: (seen["git"], seen["yum"]) == (None, None)),
        ("furnished", lambda seen: seen["git"] and seen["yum"]),
        ("settings", lambda seen: "odd" in seen["writes"] and seen["proxy"] == worlds.NOBODY_ANSWERS),
        ("one-process", lambda seen: seen["writes"]),
        ("shanghai+nobody+offline", lambda seen: (seen["offset"], seen["uid"], seen["nets"]) == (28800, 65534, ["lo"])),
    ],
)  # fmt: skip
def test_world(name, is_so):
    seen = inside(name)
    assert is_so(seen), seen


def test_every_world_is_proven():
    (cases,) = (mark.args[1] for mark in test_world.pytestmark)
    # A world that is busy for everybody is proven by those who wait.
    assert set(worlds.WORLDS) - {name for name, _is_so in cases} == {"busy"}


@pytest.mark.parametrize("now", [1795423100.0, 1798761540.0, 1798761480.0, 1798754340.0, 1767225600.0, 1751328059.0])
def test_summer_ends_a_minute_later(monkeypatch, now):
    """On any day, those around New Year among them."""
    monkeypatch.setenv("TZ", worlds.changing_clocks(now))
    time.tzset()
    try:
        offsets = [time.localtime(now + seconds).tm_gmtoff for seconds in (-60, 0, 61, 3600)]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert offsets == [7200, 7200, 3600, 3600]


def test_each_day_has_another_world_until_all_have_met(monkeypatch):
    monkeypatch.setattr(worlds, "impossible", lambda name: "no root here" if name == "nobody" else "")
    names = {name: world.kind for name, world in worlds.WORLDS.items() if world.kind and name != "nobody"}
    kinds = list(dict.fromkeys(names.values()))
    days = [worlds.today(day) for day in range(740000, 740000 + 64)]
    assert len(set(days)) == 64
    for day in days:
        assert [names[part] for part in day.split("+")] == kinds
    assert {part for day in days[:8] for part in day.split("+")} == set(names)


def test_names(capsys):
    assert worlds.chosen([], 1) == ["here"]
    assert worlds.chosen(["all"], 1) == list(worlds.WORLDS)
    assert worlds.chosen(["today", "umask+bare"], 1) == [worlds.today(1), "umask+bare"]
    with pytest.raises(SystemExit) as caught:
        worlds.chosen(["here", "moon+bare"], 1)
    assert "unknown world moon, wanted today, all, or some" in str(caught.value)
    assert "shanghai     TZ=Asia/Shanghai" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ("", ["tests/unit"]),
        ("tests/unit/test_worlds.py tests/unit/lab", ["tests/unit/test_worlds.py", "tests/unit/lab"]),
        ("test_summer_ends_a_minute_later", ["-k", "test_summer_ends_a_minute_later", __file__]),
        ("worlds and not summer", ["-k", "worlds and not summer", "tests/unit"]),
    ],
)
def test_some_tests_only(words, files):
    assert worlds.selected(words) == files


@pytest.mark.parametrize(("zone", "said"), [("Moon/Sea", "no time zone Moon/Sea is on this machine")])
def test_what_this_machine_cannot_make_is_told(monkeypatch, zone, said):
    monkeypatch.setitem(worlds.WORLDS, "moon", worlds.World("moon", env={"TZ": zone}))
    monkeypatch.setitem(worlds.WORLDS, "broken", worlds.World("broken", steps=("net", "disk")))
    assert worlds.impossible("moon").startswith(said)
    if not worlds.impossible("offline"):
        monkeypatch.setattr(worlds, "way", lambda _steps, _folder: ["sh", "-c", "echo mount: denied; exit 32", "sh"])
        assert worlds.impossible("broken") == "mount: denied"
