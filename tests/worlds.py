#!/usr/bin/env python3
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the unit tests in worlds that are not this one: tests/worlds.py [--times N] [--seed N] [-k WORDS] WORLD...

Machines have other time zones, locales, uptimes, disks and neighbours than ours; what holds only here does not hold. Worlds that are
joined by a plus are one world; `today` is such a one, another each day; `all` are all, one after another. Tests always run in random
order, whose seed is told and can be given. Without a word the world is `here`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import itertools
import math
import os
import pathlib
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[1]
#: Programs that a machine may have or not have, and that tests have no business with but by their own stand-ins.
PROGRAMS = (
    "apt", "apt-cache", "apt-get", "apt-mark", "curl", "dkms", "dnf", "docker", "docker-credential-pass", "dockerd",
    "dpkg", "dpkg-query", "git", "haproxy", "hostname", "ip", "journalctl", "keepalived", "kmod",
    "lsblk", "lsmod", "lspci", "modinfo", "modprobe", "mokutil", "needrestart", "nvidia-ctk", "nvidia-modprobe",
    "nvidia-smi", "podman", "rhel-drivers", "rmmod", "rpm", "ss", "systemctl", "systemd-run", "ubuntu-drivers",
    "update-initramfs", "wget", "yum", "zypper",
)  # fmt: skip
#: Where they lie.
BIN = ("/usr/local/bin", "/usr/bin", "/usr/sbin")
SECONDS_A_DAY = 86400


@dataclass(frozen=True)
class World:
    """What is strange in one world.

    what: it, in words. kind: of each kind, `today` takes one; empty is left out of it. env: variables of the tests. steps: what is done
    on the way into it (see STEPS), as root. umask: for new files. busy: whether all cores are kept busy. jobs: processes of pytest.
    """

    what: str
    kind: str = ""
    env: dict[str, str] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    umask: int | None = None
    busy: bool = False
    jobs: str = "auto"


def changing_clocks(now: float) -> str:
    """A time zone whose clocks go back by an hour in this very minute, so that the next hour comes twice."""
    utc = time.gmtime(now + 60)
    day, hour = divmod((utc.tm_yday - 1) * 24 + utc.tm_hour + 2, 24)
    return f"XST-1XDT-2,{0 if day > 180 else 200},{day}/{hour}:{utc.tm_min:02}"


NOBODY_ANSWERS = "http://127.0.0.1:9"
WORLDS = {
    "here": World("nothing strange"),
    "shanghai": World("TZ=Asia/Shanghai", "zone", {"TZ": "Asia/Shanghai"}),
    "newyork": World("TZ=America/New_York LC_ALL=C", "zone", {"TZ": "America/New_York", "LC_ALL": "C"}),
    "kathmandu": World(
        "TZ=Asia/Kathmandu (UTC+5:45) and a locale that this machine does not have",
        "zone",
        {"TZ": "Asia/Kathmandu", "LC_ALL": "ne_NP.UTF-8", "LANG": "ne_NP.UTF-8", "LANGUAGE": "ne"},
    ),
    "summer-ends": World("clocks go back by an hour a minute after the start", "zone", {"TZ": "changing"}),
    "fresh-boot": World("booted a minute ago", "machine", steps=("boot=60",)),
    "long-up": World("booted 400 days ago", "machine", steps=(f"boot={400 * SECONDS_A_DAY}",)),
    "umask": World("umask 077", "machine", umask=0o077),
    "small-disk": World("temporary files on a disk of 1 GB", "machine", steps=("disk",)),
    "nobody": World("not root", "machine", steps=("nobody",)),
    "offline": World("no network but the loopback", "neighbours", steps=("net",)),
    "bare": World("none of the programs that only some machines have", "neighbours", steps=("bare",)),
    "furnished": World("all of them, and they do nothing right", "neighbours", steps=("furnished",)),
    "settings": World(
        "variables that users have: proxies, keys, colours, narrow screens, odd folders",
        "neighbours",
        {
            **{f"{scheme}_proxy": NOBODY_ANSWERS for scheme in ("http", "https", "all", "HTTP", "HTTPS", "ALL")},
            **{f"{scheme}_PROXY": NOBODY_ANSWERS for scheme in ("HTTP", "HTTPS", "ALL")},
            "ANSIBLE_FORCE_COLOR": "1",
            "COLUMNS": "40",
            "DOCKER_HOST": "tcp://127.0.0.1:9",
            "FORCE_COLOR": "1",
            "NGC_API_KEY": "nvapi-of-whoever-runs-the-tests",
            "OPENAI_API_KEY": "sk-of-whoever-runs-the-tests",
            "TMPDIR": "odd",
        },
    ),
    "one-process": World("all tests in one process", jobs="0"),
    "busy": World("all cores are busy", busy=True),
}


def today(day: int) -> str:
    """One world of each kind that this machine can make, another each day, until all have met."""
    kinds: dict[str, list[str]] = {}
    for name, world in WORLDS.items():
        if world.kind and not impossible(name):
            kinds.setdefault(world.kind, []).append(name)
    meetings = list(itertools.product(*kinds.values()))
    # Neighbours in the list have much in common.
    stride = next(step for step in range(len(meetings) * 3 // 8 + 1, 10**6) if math.gcd(step, len(meetings)) == 1)
    return "+".join(meetings[day * stride % len(meetings)])


def chosen(words: Sequence[str], day: int) -> list[str]:
    """The worlds that WORDS name, joined ones by a plus. Exits where one is none."""
    names = []
    for word in words or ["here"]:
        names += list(WORLDS) if word == "all" else [today(day) if word == "today" else word]
    unknown = [part for name in names for part in name.split("+") if part not in WORLDS]
    if unknown:
        listed = "\n".join(f"  {name:<12} {world.what}" for name, world in WORLDS.items())
        sys.exit(
            f"unknown world {', '.join(unknown)}, wanted today, all, or some of these, with a plus for both at once:\n{listed}"
        )
    return names


def step_in(step: str, folder: pathlib.Path) -> None:
    """Does one step inside the namespaces that unshare made for it; FOLDER is the world's own."""
    if step == "disk":
        (folder / "tmp").mkdir()
        mount("-t", "tmpfs", "-o", "size=1g,mode=1777", "tmpfs", str(folder / "tmp"))
        os.environ["TMPDIR"] = str(folder / "tmp")
    elif step == "net":
        loopback_up()
    elif step == "nobody":
        # Checkout and Python may lie where only root gets: overlayfs takes the mode of the upper folder.
        homes = {parent for path in (ROOT, sys.prefix, sys.base_prefix) for parent in pathlib.Path(path).parents}
        for number, home in enumerate(sorted(path for path in homes if not path.stat().st_mode & 0o001)):
            shadow = folder / f"open{number}"
            shadow.mkdir()
            overlay(shadow, home)
    elif step in ("bare", "furnished"):
        for place in filter(os.path.isdir, BIN):
            shadow = folder / step / place.strip("/")
            shadow.mkdir(parents=True)
            for name in PROGRAMS:
                if step == "furnished":
                    (shadow / name).write_text(f"#!/bin/sh\necho this machine has a {name} of its own\nexit 3\n")
                    (shadow / name).chmod(0o755)
                elif os.path.lexists(f"{place}/{name}"):
                    # What overlayfs takes for a file that was removed.
                    os.mknod(shadow / name, 0o20600, os.makedev(0, 0))
            overlay(shadow, place)


def overlay(shadow: pathlib.Path, place: str | pathlib.Path) -> None:
    """Lays a folder over another one."""
    shadow.chmod(0o755)
    mount("-t", "overlay", "-o", f"lowerdir={shadow}:{place}", "overlay", str(place))


def mount(*words: str) -> None:
    """Mounts, in the namespace of this process only."""
    subprocess.run(["mount", *words], check=True)


def loopback_up() -> None:
    """Brings up the loopback of a network that is new."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # SIOCSIFFLAGS with IFF_UP.
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))


def offset(age: int) -> int:
    """What the clocks of a time namespace need so that the boot was AGE seconds ago; those of this process may have one already."""
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    # A kernel that has no such namespaces has no such file.
    path = pathlib.Path("/proc/self/timens_offsets")
    mine = path.read_text().split() if path.exists() else ["boottime", "0"]
    return int(mine[mine.index("boottime") + 1]) + age - int(uptime)


#: What unshare is told for a step, by its name.
NAMESPACES: dict[str, Callable[[str], list[str]]] = {
    "boot": lambda age: [
        *("--time", "--fork", "--kill-child"),
        *(f"--{clock}={offset(int(age))}" for clock in ("monotonic", "boottime")),
    ],
    "disk": lambda _: ["--mount"],
    "bare": lambda _: ["--mount"],
    "furnished": lambda _: ["--mount"],
    "net": lambda _: ["--net"],
    "nobody": lambda _: ["--mount"],
}


def way(steps: Sequence[str], folder: pathlib.Path) -> list[str]:
    """The command that leads into a world by STEPS and runs there what follows it."""
    if not steps:
        return []
    flags = [flag for step in steps for flag in NAMESPACES[step.partition("=")[0]](step.partition("=")[2])]
    inside = [sys.executable, __file__, "--inside", ",".join(steps), str(folder)]
    return [*(["unshare", *dict.fromkeys(flags)] if flags else []), *inside]


def inside(steps: str, folder: str, command: Sequence[str]) -> NoReturn:
    """Becomes COMMAND after the last steps."""
    names = [step.partition("=")[0] for step in steps.split(",")]
    for name in names:
        step_in(name, pathlib.Path(folder))
    if "nobody" in names:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        if not os.access(ROOT / "tests/unit/conftest.py", os.R_OK) or not os.access(sys.executable, os.X_OK):
            sys.exit(
                f"world nobody: {ROOT} cannot be read by anybody but its owner, wanted a checkout that others can read"
            )
    os.execvp(command[0], list(command))  # noqa: S606 - who ends this world ends what runs in it


@contextlib.contextmanager
def load(busy: bool) -> Iterator[None]:
    """Keeps all cores busy meanwhile, where that is wanted."""
    if not busy:
        yield
        return
    cores = str(os.cpu_count())
    stress = subprocess.Popen(["stress-ng", "--quiet", "--cpu", cores, "--io", "1"], cwd=tempfile.gettempdir())
    try:
        yield
    finally:
        stress.terminate()
        stress.wait()


def enter(name: str, command: Sequence[str], output: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs COMMAND in one world, with its OUTPUT where it belongs."""
    worlds = [WORLDS[part] for part in name.split("+")]
    steps = [step for world in worlds for step in world.steps]
    values = {key: value for world in worlds for key, value in world.env.items()}
    umask = max((world.umask or 0 for world in worlds), default=0)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="nim-world-"))
    try:
        # Whoever runs the tests there writes below it.
        scratch = folder / ("an odd (näme)" if values.pop("TMPDIR", "") else "scratch")
        scratch.mkdir()
        for path in (folder, scratch):
            path.chmod(0o1777)
        if values.get("TZ") == "changing":
            values["TZ"] = changing_clocks(time.time())
        with load(any(world.busy for world in worlds)):
            return subprocess.run(
                [*way(steps, folder), *command],
                cwd=ROOT,
                env={**os.environ, "HOME": str(folder), "TMPDIR": str(scratch), **values},
                umask=umask or -1,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                text=True,
                check=False,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def impossible(name: str) -> str:
    """Why this machine cannot make a world, empty where it can."""
    worlds = [WORLDS[part] for part in name.split("+")]
    zones = [world.env["TZ"] for world in worlds if "/" in world.env.get("TZ", "")]
    missing = [zone for zone in zones if not pathlib.Path("/usr/share/zoneinfo", zone).exists()]
    if missing:
        return f"no time zone {', '.join(missing)} is on this machine: install tzdata"
    if any(world.busy for world in worlds) and not shutil.which("stress-ng"):
        return "stress-ng is not installed"
    if not any(world.steps for world in worlds):
        return ""
    if os.geteuid() != 0:
        return "only root makes it"
    tried = enter(name, ["true"], subprocess.PIPE)
    return (tried.stdout.strip().splitlines() or [f"exit status {tried.returncode}"])[-1] if tried.returncode else ""


def selected(words: str) -> list[str]:
    """What pytest is told to run only the tests that WORDS choose, by name or path. To read all files takes long."""
    if not words:
        return ["tests/unit"]
    if words.startswith("tests/"):
        return words.split()
    files = sorted((ROOT / "tests/unit").rglob("test_*.py")) if words.isidentifier() else []
    named = [str(path) for path in files if words.lower() in (str(path) + path.read_text()).lower()]
    return ["-k", words, *(named or ["tests/unit"])]


def pytest_in(name: str, seed: int, words: str) -> tuple[bool, float]:
    """Runs the tests in one world; whether they passed, and the seconds it took. WORDS choose some, by name or path."""
    jobs = "0" if words else min(WORLDS[part].jobs for part in name.split("+"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rfEs",
        "-p",
        "randomly",
        f"--randomly-seed={seed}",
        f"--numprocesses={jobs}",
    ]
    command += ["--dist=worksteal", *selected(words)]
    what = "; ".join(WORLDS[part].what for part in name.split("+"))
    print(f"world {name} ({what}), seed {seed}; again: make unit WORLD={name} SEED={seed}", flush=True)
    began = time.monotonic()
    return enter(name, command).returncode == 0, time.monotonic() - began


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1, help="how often each world, with another seed each time")
    parser.add_argument("--seed", type=int, help="seed of the order, by default another each time")
    parser.add_argument("-k", default="", metavar="WORDS", help="only tests of that name, or path, in one process")
    parser.add_argument("worlds", nargs="*", metavar="WORLD")
    options = parser.parse_args()
    # So that nothing stays behind: not even a busy machine.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = chosen(options.worlds, datetime.datetime.now(datetime.UTC).toordinal())
    lines, failed = [], False
    for turn in range(options.times):
        for name in names:
            reason = impossible(name)
            seed = secrets.randbelow(10**6) if options.seed is None else options.seed + turn
            passed, seconds = (False, 0.0) if reason else pytest_in(name, seed, options.k)
            failed = failed or not passed
            told = "passed" if passed else f"impossible: {reason}" if reason else "FAILED"
            lines.append(f"world {name:<28} seed {seed:<8} {told} in {seconds:.0f} s")
            if reason or len(names) * options.times > 1:
                print(lines[-1], flush=True)
    if len(lines) > 1:
        print("\n".join(["", *lines, f"worlds: {sum(' passed ' in line for line in lines)} of {len(lines)} passed"]))
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3], sys.argv[4:])
    sys.exit(main())
