#!/usr/bin/env python3
# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs checks and scenarios side by side: tests/suite.py NAME... (lint, unit, build, versions, or a scenario).

Each job has an output of its own below .lab/logs, which is shown whole when the job fails. A job that fails hides no other one: all run,
then a table tells result, seconds and tests of each, then the exit status tells whether all passed. Each scenario has a lab of its own.
TEST_JOBS sets how many run at a time (3).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
#: Empty, or of another toolbox than .venv, which may run this at the same time, its end, such as -2.20.
TOOLBOX = re.sub(r"^\.venv(?=-)|^.*", "", pathlib.Path(sys.prefix).name, count=1)
LOGS = ROOT / f".lab/logs{TOOLBOX}"
#: Whose vendors, networks and hosts these are.
SITE = (os.environ.get("LAB_SITE") or "nimlab") + TOOLBOX.replace(".", "")
#: Seconds after which a job is stopped. The longest takes a third of that.
LIMIT = 2700
#: Seconds between two lines that say what is under way.
BEAT = 60
CHECKS = ("lint", "unit", "build", "versions")
#: What will not work with the next ansible-core.
DEPRECATED = "[DEPRECATION WARNING]"
#: What pytest counts, in its last line.
COUNTS = re.compile(r"\b(\d+) (passed|failed|skipped|errors?)\b")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One way to run a folder of molecule/."""

    #: Folder below molecule/.
    folder: str
    #: Usual seconds; the longest begin first.
    seconds: int
    #: Hosts of its lab.
    hosts: str = "gpu01"
    #: How they start: bare, or as site.yml left them.
    start: str = "bare"
    #: Container engine of the hosts.
    engine: str = "docker"
    #: Engine inside the NIM images.
    nim: str = "reference"


#: Where a scenario does not test the first run, its host starts from one that is converged already.
SCENARIOS = {
    "default": Scenario("default", 390, hosts="gpu01,gpu02"),
    "driver": Scenario("driver", 480, start="converged"),
    "lifecycle": Scenario("lifecycle", 450, start="converged"),
    # The same tests with the other engine, which nothing else installs.
    "lifecycle-podman": Scenario("lifecycle", 440, engine="podman"),
    "faults": Scenario("faults", 360, start="converged"),
    "strangers": Scenario("strangers", 340, start="converged"),
    "interrupted": Scenario("interrupted", 230),
    "vllm": Scenario("vllm", 320, nim="vllm"),
    "chaos": Scenario("chaos", 220, start="converged"),
    # With kernels of their own, and minutes of emulation: by their names only.
    "reboot": Scenario("reboot", 430, hosts="vm01"),
    "dkms": Scenario("dkms", 600),
}


@dataclasses.dataclass
class Job:
    """One command with its output, and what came of it."""

    name: str
    command: list[str]
    seconds: int
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    #: Names of the jobs that must have passed before.
    after: tuple[str, ...] = ()
    #: Whether it must have run tests: without any, it failed.
    tests: bool = False
    #: Lines of its output that are shown when it passed.
    shown: str = r"(?!)"
    began: float = 0.0
    took: float = 0.0
    #: Seconds of a core that its own processes used.
    used: float = 0.0
    result: str = "waiting"

    @property
    def log(self) -> pathlib.Path:
        """File with its output."""
        return LOGS / f"{self.name}.log"

    @property
    def cost(self) -> pathlib.Path:
        """File in which lab.py notes what its containers cost."""
        return LOGS / f"{self.name}.cost"

    def counts(self) -> dict[str, int]:
        """How many tests passed, failed, were skipped or broke, as pytest says at its end."""
        found: dict[str, int] = {}
        for line in text_of(self.log).splitlines():
            if re.match(r"^(=+ )?\d+ (passed|failed|skipped|errors?)\b.* in [\d.:]+", line):
                for number, word in COUNTS.findall(line):
                    word = word.rstrip("s") if word.startswith("error") else word
                    found[word] = found.get(word, 0) + int(number)
        return found

    def hosts(self) -> float:
        """Seconds of a core that the hosts of its lab used, as lab.py noted when it removed them."""
        return sum(float(line.split()[-1]) for line in text_of(self.cost).splitlines())

    def judge(self, code: int | None) -> str:
        """Result of a command that ended with CODE; None is one that was stopped."""
        if code is None:
            return f"stopped after {LIMIT} s"
        if code:
            return f"FAILED ({code})"
        if self.tests and not self.counts().get("passed"):
            return "FAILED (no test ran)"
        if DEPRECATED in text_of(self.log):
            return "FAILED (deprecated)"
        return "passed"


def text_of(path: pathlib.Path) -> str:
    """What a file holds, whatever its bytes are; nothing when it is not there."""
    return path.read_text(errors="replace") if path.exists() else ""


def plan(names: list[str]) -> list[Job]:
    """The jobs of those checks and scenarios, and what they need, in the order in which they begin."""
    unknown = [name for name in names if name not in SCENARIOS and name not in CHECKS]
    if unknown:
        sys.exit(
            f"suite: unknown: {', '.join(unknown)}; wanted some of {', '.join([*CHECKS, *SCENARIOS])}.\n"
            'Such as: make molecule SCENARIO="default faults"'
        )
    lab = [sys.executable, "tests/lab/lab.py"]
    scenarios = {name: SCENARIOS[name] for name in names if name in SCENARIOS}
    jobs = []
    if scenarios:
        jobs.append(Job("images", [*lab, "images"], 10000, {"LAB_SITE": f"{SITE}-images"}))
    if any(item.nim == "vllm" for item in scenarios.values()):
        # Minutes on a fresh machine, and only this one scenario waits for it.
        env = {"LAB_SITE": f"{SITE}-vllm-image"}
        jobs.append(Job("vllm-image", [*lab, "images", "--engine=vllm"], 9500, env, after=("images",)))
    if any(item.start == "converged" for item in scenarios.values()):
        env = {"LAB_SITE": f"{SITE}-converge"}
        jobs.append(Job("converge", [*lab, "converge"], 9000, env, after=("images",)))
    if "lint" in names:
        jobs.append(Job("lint", ["tests/lint.sh"], 8000, shown=r"."))
    if "build" in names:
        jobs.append(Job("build", ["tests/build.sh"], 7000, shown=r"^build"))
    if "unit" in names:
        shown = r"^(SKIPPED|world|\d+ passed)"
        jobs.append(Job("unit", ["make", "--no-print-directory", "unit", "WORLD=today"], 6000, tests=True, shown=shown))
    if "versions" in names:
        # Words of the make that called this are not for the one that is called.
        command = [
            "env",
            "--unset=SCENARIO",
            "--unset=MAKEFLAGS",
            "make",
            "--no-print-directory",
            "matrix",
            "QUICK=1",
            "CORE=",
        ]
        shown = r"^(SKIPPED|matrix:|\d+ passed)"
        jobs.append(Job("versions", command, 5000, {"TEST_JOBS": "1"}, tests=True, shown=shown))
    jobs += [scenario_job(name, item) for name, item in scenarios.items()]
    return sorted(jobs, key=lambda job: -job.seconds)


def scenario_job(name: str, scenario: Scenario) -> Job:
    """The job of one scenario, with a lab of its own."""
    env = {
        "LAB_SITE": f"{SITE}-{name}",
        "LAB_NAME": f"{name}{TOOLBOX}",
        "LAB_HOSTS": scenario.hosts,
        "LAB_ENGINE": scenario.nim,
        "LAB_FROM": scenario.start,
        "NIM_ENGINE": scenario.engine,
        # Two runs of one folder must not share molecule's state.
        "MOLECULE_EPHEMERAL_DIRECTORY": str(ROOT / ".lab/ephemeral" / f"{name}{TOOLBOX}"),
        "MOLECULE_GLOB": "molecule/*/molecule.yml",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "NO_COLOR": "1",
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ["molecule", "test", "-s", scenario.folder]
    return Job(name, command, scenario.seconds, env, after=needs_of(scenario), tests=True)


def needs_of(scenario: Scenario) -> tuple[str, ...]:
    """The jobs that make what a scenario starts from."""
    if scenario.start == "converged":
        return ("converge",)
    return ("vllm-image",) if scenario.nim == "vllm" else ("images",)


class Suite:
    """Runs jobs, a few at a time."""

    def __init__(self, jobs: list[Job], at_a_time: int) -> None:
        self.jobs, self.at_a_time = jobs, at_a_time
        self.started = time.monotonic()
        self.busy = cpu_seconds()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.changed = threading.Condition()

    def say(self, text: str) -> None:
        """Prints a line with the seconds since the start."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)

    def run(self) -> bool:
        """Runs all jobs; whether all passed."""
        LOGS.mkdir(parents=True, exist_ok=True)
        for job in self.jobs:
            job.log.unlink(missing_ok=True)
            job.cost.unlink(missing_ok=True)
        beat = time.monotonic()
        with self.changed:
            while any(job.result in ("waiting", "running") for job in self.jobs):
                self.begin()
                self.changed.wait(timeout=5)
                if time.monotonic() - beat > BEAT:
                    beat = time.monotonic()
                    self.say("under way: " + ", ".join(self.state(job) for job in self.jobs if job.result == "running"))
        self.table()
        return all(job.result == "passed" for job in self.jobs)

    def begin(self) -> None:
        """Starts what may start now, and gives up what waits for a job that failed."""
        results = {job.name: job.result for job in self.jobs}
        for job in self.jobs:
            if job.result != "waiting":
                continue
            missing = [name for name in job.after if results[name] not in ("passed", "waiting", "running")]
            if missing:
                job.result = f"FAILED (not run: {missing[0]} failed)"
                results[job.name] = job.result
                self.say(f"{job.name}: {job.result}")
            elif all(results[name] == "passed" for name in job.after) and len(self.processes) < self.at_a_time:
                self.start(job)

    def start(self, job: Job) -> None:
        """Starts one job in a process group of its own."""
        job.began, job.result = time.monotonic(), "running"
        self.say(f"{job.name} begins")
        with job.log.open("wb") as log:
            self.processes[job.name] = subprocess.Popen(
                job.command,
                cwd=ROOT,
                env={**os.environ, "LAB_COST": str(job.cost), **job.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threading.Thread(target=self.wait_for, args=(job, self.processes[job.name]), daemon=True).start()

    def wait_for(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        """Waits for the end of one job and tells it."""
        late = threading.Event()

        def end() -> None:
            late.set()
            stop(process)

        timer = threading.Timer(LIMIT, end)
        timer.daemon = True
        timer.start()
        # Unlike Popen.wait, this tells what the process and its children cost.
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        code = None if late.is_set() else process.returncode
        with self.changed:
            job.used = usage.ru_utime + usage.ru_stime
            job.took = time.monotonic() - job.began
            job.result = job.judge(code)
            del self.processes[job.name]
            self.say(f"{job.name}: {job.result} in {job.took:.0f} s")
            output = text_of(job.log)
            if job.result == "passed":
                lines = [line for line in output.splitlines() if re.search(job.shown, line)]
            else:
                lines = [f"----- output of {job.name} -----", *output.splitlines(), f"----- end of {job.name} -----"]
            print("\n".join(lines) + "\n" * bool(lines), end="", flush=True)
            self.changed.notify_all()

    def state(self, job: Job) -> str:
        """How far a running job is."""
        done = len(re.findall(r" PASSED\b", text_of(job.log)))
        return f"{job.name} {time.monotonic() - job.began:.0f} s" + (f" ({done} tests passed)" if done else "")

    def table(self) -> None:
        """Prints what came of each job, and where the time went."""
        line = "{:<18} {:<32} {:>7} {:>7} {:>7} {:>7}  {}"
        print("\n" + line.format("JOB", "RESULT", "BEGAN", "SECONDS", "CPU", "HOSTS", "TESTS"))
        for job in self.jobs:
            began = f"{job.began - self.started:.0f}" if job.began else "-"
            tests = ", ".join(f"{number} {word}" for word, number in job.counts().items()) or "-"
            columns = (f"{number:.0f}" for number in (job.took, job.used, job.hosts()))
            print(line.format(job.name, job.result, began, *columns, tests))
        wall, cores = time.monotonic() - self.started, os.cpu_count() or 1
        share = (cpu_seconds() - self.busy) / (wall * cores)
        print(f"{wall:.0f} s in all, {self.at_a_time} jobs at a time; {cores} cores were busy {share:.0%} of the time")

    def stop(self) -> None:
        """Stops everything that runs."""
        for process in list(self.processes.values()):
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a job with all that it started, politely first. Its own thread waits for it."""
    for number, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        deadline = time.monotonic() + seconds
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                time.sleep(0.05)
                os.killpg(process.pid, 0)
        except ProcessLookupError:
            return


def cpu_seconds() -> float:
    """Seconds that all cores have been busy since the machine's boot."""
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    # user, nice, system, interrupts and stolen time; neither idle nor waiting for disks.
    return sum(fields[index] for index in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Command line."""
    at_a_time = int(os.environ.get("TEST_JOBS") or 3)
    suite = Suite(plan(sys.argv[1:]), at_a_time)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return 0 if suite.run() else 1
    finally:
        suite.stop()


if __name__ == "__main__":
    sys.exit(main())
