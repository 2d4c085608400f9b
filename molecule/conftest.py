# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of all scenarios share: the way to a host, to its endpoint and to the playbooks."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import docker
import pytest
import requests
import testinfra

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/lab"))

import lab  # noqa: E402

#: The lab under test; another one for trying things out beside a running scenario.
NAME = os.environ.get("LAB_NAME", "molecule")
#: The container engine of the hosts. Every promise is one of both.
ENGINE = os.environ.get("NIM_ENGINE", "docker")
MODEL = "meta/llama-3.1-8b-instruct"


def play(
    playbook: str,
    *args: str,
    extra: dict[str, Any] | None = None,
    limit: str = "",
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a playbook of the collection on the lab; the caller looks at the exit status."""
    done = subprocess.run(play_command(playbook, *args, extra=extra, limit=limit), cwd=ROOT, env=environment or play_environment(),
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # fmt: skip
    # What it names will not work with the next ansible-core.
    assert "[DEPRECATION WARNING]" not in done.stdout, done.stdout
    return done


def play_command(playbook: str, *args: str, extra: dict[str, Any] | None = None, limit: str = "") -> list[str]:
    """The command line of play(); a playbook that is a path is one of the scenario's own."""
    name = playbook if playbook.endswith(".yml") else f"baremetal.nim.{playbook}"
    command = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", str(ROOT / "inventories/lab"), name]
    command += ["-e", json.dumps({"lab_name": NAME, "nim_container_engine": ENGINE, **(extra or {})})]
    return [*command, *(["--limit", limit] if limit else []), *args]


def play_and_kill(playbook: str, at: str, delay: float, extra: dict[str, Any], limit: str) -> str:
    """Starts a playbook and kills it (SIGKILL, the whole group) DELAY seconds after a line with AT; what it had printed."""
    process = subprocess.Popen(play_command(playbook, extra=extra, limit=limit), cwd=ROOT, env=play_environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    seen = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append(line)
        if at in line:
            time.sleep(delay)
            break
    assert process.poll() is None, "the play ended before it could be killed:\n" + "".join(seen)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "".join(seen)


class Running:
    """A playbook that goes on while the test does something else. What it has printed so far is in ``seen``."""

    def __init__(
        self, playbook: str, extra: dict[str, Any], limit: str, environment: dict[str, str] | None = None
    ) -> None:
        self.seen = ""
        self.process = subprocess.Popen(play_command(playbook, extra=extra, limit=limit), cwd=ROOT, text=True,
                                        env=environment or play_environment(), stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen += line

    def wait_for(self, words: str, seconds: float = 300) -> None:
        """Waits until it has printed WORDS."""
        deadline = time.monotonic() + seconds
        while words not in self.seen:
            over = self.process.poll() is not None or time.monotonic() > deadline
            if over and words not in self.seen:
                raise AssertionError(f"never printed {words!r}:\n{self.seen}")
            time.sleep(0.1)

    def finish(self) -> tuple[int, str]:
        """Exit status and all that was printed."""
        code = self.process.wait()
        self.reader.join()
        return code, self.seen

    def kill(self) -> str:
        """Kills it (SIGKILL, the whole group); what it had printed."""
        # One that has ended may have left its number to another.
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.finish()[1]


def play_environment() -> dict[str, str]:
    """The environment of play(): the checkout's settings, not molecule's."""
    # Whoever starts the tests may have told Python not to buffer; users' shells have not.
    drop = ("ANSIBLE_", "MOLECULE_", "PYTHONUNBUFFERED")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
    return {**kept, **lab.KEPT_PAYLOADS, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}


def unconfigured_environment() -> dict[str, str]:
    """The environment of somebody who has installed the collection and configured nothing: no pipelining, above all."""
    empty = lab.STATE / NAME / "empty.cfg"
    empty.write_text("")
    environment = {key: value for key, value in play_environment().items() if key not in lab.KEPT_PAYLOADS}
    return {
        **environment,
        "ANSIBLE_CONFIG": str(empty),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".venv/collections"),
    }


def service(hostname: str, **changes: Any) -> dict[str, Any]:
    """The lab's llama service of a host, changed."""
    spec = {
        "name": "llama",
        "image": f"nvcr.lab:5000/{lab.NIM}",
        "tag": "1.8.6" if hostname == "gpu01" else "2.0.5",
        "model": MODEL,
        "gpus": [0],
        "port": 8000,
        "ulimits": ["stack=67108864"],
    }
    return {**spec, **changes}


def url(hostname: str, port: int = 8000) -> str:
    """Address of an endpoint of a host as this machine reaches it."""
    ports = json.loads((lab.STATE / NAME / "ports.json").read_text())
    return f"http://127.0.0.1:{ports[hostname][str(port)]}"


def ask(hostname: str, prompt: str = "Say hello.", **body: Any) -> dict[str, Any]:
    """One completion, asked and checked without any code of the collection."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 32, **body}
    answer = requests.post(f"{url(hostname)}/v1/chat/completions", json=body, timeout=60)
    answer.raise_for_status()
    result: dict[str, Any] = answer.json()
    message = result["choices"][0]["message"]
    if not message["content"].strip() or result["model"] != MODEL:
        raise AssertionError(f"no answer of {MODEL}: {result}")
    return result


def eventually(check: Callable[[], Any], seconds: float = 180) -> Any:
    """What CHECK returns once it neither raises nor returns something false; the last error after SECONDS."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = check()
            if value:
                return value
            error: Exception = AssertionError(f"still {value!r} after {seconds} s")
        except Exception as problem:  # noqa: BLE001 - whatever goes wrong is told at the end
            error = problem
        if time.monotonic() > deadline:
            raise error
        time.sleep(0.25)


def in_container(host: Any, command: str) -> str:
    """What a command in the service's container says. Only a command that could not even be started is tried again.

    On a busy machine the runtime sometimes loses a process before it runs ("read init-p: connection reset by peer").
    """
    for _attempt in range(10):
        answer = host.run(f"{ENGINE} exec nim-llama {command}")
        if (
            answer.rc != 126
            or "unable to start container process: waiting for init" not in answer.stdout + answer.stderr
        ):
            break
        time.sleep(1)
    assert answer.rc == 0, answer
    return str(answer.stdout)


def container_id(host: Any) -> str:
    """The container of the service, and since when it runs."""
    return str(host.check_output(f"{ENGINE} inspect --format '{{{{.Id}}}} {{{{.State.StartedAt}}}}' nim-llama"))


def served_key(host: Any) -> str:
    """The key in the environment of the service's server; empty when it has none."""
    top = {"docker": "docker top nim-llama -eo pid", "podman": "podman top nim-llama hpid"}[ENGINE]
    pids = f"$({top} | tail -n +2)"
    return str(
        host.check_output(
            f"for pid in {pids}; do tr '\\0' '\\n' < /proc/$pid/environ; done | sed -n s/^NGC_API_KEY=//p | sort -u"
        )
    )


def weight_requests() -> int:
    """How many requests for weights the vendor's server has seen since the last reset."""
    return int(json.loads(vendor_call("GET"))["count"])


def vendor_call(method: str) -> str:
    """Asks or resets the request log of the weights server."""
    container = vendor()
    port = container.attrs["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"]
    answer = requests.request(method, f"http://127.0.0.1:{port}/lab/requests", timeout=10)
    answer.raise_for_status()
    return answer.text


def vendor() -> Any:
    """The vendor's container."""
    return docker.from_env().containers.get(lab.VENDOR)


def machine(hostname: str) -> Any:
    """The container that is a host."""
    return docker.from_env().containers.get(f"{lab.SITE}-{NAME}-{hostname}")


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> dict[str, Any]:
    """All hosts of the lab under test, by name."""
    option = request.config.option
    found = testinfra.get_hosts(
        option.hosts.split(","), connection=option.connection, ssh_config=option.ssh_config, sudo=option.sudo
    )
    return {host.backend.get_pytest_id().split("://")[1]: host for host in found}


@pytest.fixture
def name(host: Any) -> str:
    """Name of the host under test."""
    return str(host.backend.get_pytest_id().split("://")[1])


@pytest.fixture
def journal(host: Any) -> Any:
    """Prints the journal of the service when a test fails."""
    yield
    print(host.run("journalctl -u nim-llama -n 40 --no-pager -o cat").stdout)
