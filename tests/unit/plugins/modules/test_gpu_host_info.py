# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run on trees made for it; commands are small scripts that print what real hosts print."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pathlib
import platform
import shutil
import socket
import time

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _command, _lease, _survey, _system, _weights
from ansible_collections.baremetal.nim.plugins.module_utils._staged import LIST, MARKER
from ansible_collections.baremetal.nim.plugins.modules import gpu_host_info

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures"
IMAGE = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
DIGEST = "sha256:6b3d3a4e3c1f7e0a9d5c2b8f4e6a7d9c0b1f2e3d4c5b6a798897a6b5c4d3e2f1"
IMAGE_ID = "sha256:0c58bd6b07f7c7b2c1a6bb5a9ac0a1bba5ab59fa30c8ce2a3a40d4bd3f0f1a2b"
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 154313 1 0000000000000000 100 0 0 10 0
   1: 0401000A:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20731 1 0000000000000000 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20733 1
"""
SYSTEMD = "systemd 257 (257.8-1~deb13u2)\n+PAM +AUDIT +SELINUX +APPARMOR\n"
DOCKER_INFO = {
    "ServerVersion": "26.1.5+dfsg1",
    "DockerRootDir": "/var/lib/docker",
    "LiveRestoreEnabled": True,
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
}
CONTAINER = {
    "Name": "/nim-llama",
    "Image": IMAGE_ID,
    "RestartCount": 0,
    "State": {"Running": True, "ExitCode": 0, "StartedAt": "2026-11-23T07:11:05.1Z"},
    "Config": {
        "Image": f"{IMAGE}@{DIGEST}",
        "Labels": {"com.github.baremetal-nim.service": "llama", "com.github.baremetal-nim.config-hash": "f3d4"},
    },
    "HostConfig": {"PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000"}]}},
}
# Prints the file that is named after the command and its first two words, its first, or none, and leaves as it was told.
SCRIPT = """\
#!/bin/sh
printf '%s\\0' "${0##*/} $*" >> "$0.log"
for said in "$0.$1.$2" "$0.$1" "$0"; do
  [ ! -e "$said.out" ] || { /bin/cat "$said.out"; break; }
done
[ ! -e "$0.err" ] || { /bin/cat "$0.err" >&2; exit 9; }
"""


#: What is told of a Docker that nobody did anything to.
AS_FOUND = {
    "client": False,
    "error": None,
    "strangers": [],
    "masked": False,
    "unit": False,
    "by_hand": None,
    "snap": False,
    "rootless": [],
    "flags": {},
    "config": {"path": "/etc/docker/daemon.json", "error": None, "refused": None, "keys": [], "link": False},
    "image_dir": "/var/lib/docker",
}


class Machine:
    """A host below a directory, whose commands are scripts there."""

    def __init__(self, root):
        self.root = root
        self.bin = root / "usr/bin"
        self.bin.mkdir(parents=True)

    def write(self, path, text):
        """A file of the host."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def command(self, name, error=None, **out):
        """A command, and what it says: out for any first word, else by first word, or two and a dot (hyphens as underscores)."""
        script = self.bin / name
        script.write_text(SCRIPT)
        script.chmod(0o755)
        for word, text in out.items():
            (self.bin / (f"{name}.out" if word == "out" else f"{name}.{word.replace('_', '-')}.out")).write_text(text)
        if error is not None:
            (self.bin / f"{name}.err").write_text(error)

    def asked(self, name=None):
        """Command lines that were run."""
        logs = [self.bin / f"{name}.log"] if name else sorted(self.bin.glob("*.log"))
        return [line for log in logs if log.exists() for line in log.read_text().split("\0")[:-1]]

    def socket_of(self, pid, name, inode):
        """A process that holds a socket."""
        self.write(f"/proc/{pid}/comm", f"{name}\n")
        folder = self.root / f"proc/{pid}/fd"
        folder.mkdir(exist_ok=True)
        (folder / "0").symlink_to("/dev/null")
        (folder / "7").symlink_to(f"socket:[{inode}]")

    def unit(self, name, **properties):
        """The block of systemctl show of a unit."""
        entered = (time.clock_gettime(time.CLOCK_MONOTONIC) - 100) * 1e6
        values = {
            "Id": name,
            "LoadState": "loaded",
            "ActiveState": "active",
            "SubState": "running",
            "UnitFileState": "enabled",
            "NRestarts": "0",
            "Result": "success",
            "ExecMainStatus": "0",
            "ActiveEnterTimestampMonotonic": f"{entered:.0f}",
            **properties,
        }
        return "".join(f"{key}={value}\n" for key, value in values.items())


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with nothing on it. What the module reads from fixed places is read below its root."""
    machine = Machine(tmp_path / "root")
    monkeypatch.setenv("PATH", str(machine.bin))
    monkeypatch.setattr(
        AnsibleModule, "get_bin_path", lambda _self, name, *_args, **_kwargs: shutil.which(name, path=str(machine.bin))
    )

    def inside(path):
        return f"{machine.root}{path}" if path.startswith("/root/") else path

    read = gpu_host_info.HostReader.read
    monkeypatch.setattr(gpu_host_info.HostReader, "read", lambda self, path: read(self, inside(path)))
    return machine


@pytest.fixture
def call(machine, capsys):
    """Run the module; return its result."""

    def run(check_mode=False, **args):
        args = {
            **{f"{name}_root": str(machine.root / name) for name in ("proc", "sys", "etc", "boot", "run", "var")},
            **{name: str(machine.root / name.replace("_", "/")) for name in ("lib_modules", "usr_src", "usr_share")},
            "cdi_spec_dirs": [str(machine.root / "etc/cdi"), str(machine.root / "run/cdi")],
            "state_dir": str(machine.root / "state"),
            "staged_dir": str(machine.root / "staged"),
            "cache_root": str(machine.root / "cache"),
            "paths": [],
            **args,
        }
        with patch_module_args({**args, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit) as caught:
            gpu_host_info.main()
        text = capsys.readouterr().out
        assert caught.value.code == 0, text
        result = json.loads(text)
        assert result.pop("changed") is False
        result.pop("invocation", None)
        return result

    return run


def note(machine):
    """What the host remembers of the weights of llama."""
    return {
        "key": "9c11",
        "image_reference": f"{IMAGE}@{DIGEST}",
        "path": f"{machine.root}/cache/llama",
        "marked": True,
    }


@pytest.fixture
def deployed(machine):
    """A host with two H200 on which llama runs."""
    machine.write("/etc/os-release", 'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n')
    machine.write("/proc/meminfo", "MemTotal:       2113472124 kB\nMemAvailable:   2051987000 kB\n")
    machine.write("/proc/net/tcp", TCP)
    machine.write("/proc/net/tcp6", TCP6)
    machine.write("/proc/driver/nvidia/version", (FIXTURES / "h200/proc.txt").read_text())
    machine.socket_of(4711, "docker-proxy", 154313)
    machine.socket_of(811, "sshd", 20731)
    machine.write("/etc/cdi/nvidia.yaml", (FIXTURES / "h200-x2/cdi-nvidia.yaml").read_text())
    machine.write("/etc/systemd/system/nim-llama.service", "[Unit]\n")
    machine.write("/etc/systemd/system/nim-watchdog@.service", "[Unit]\n")
    login = base64.b64encode(b"$oauthtoken:nvapi-secret").decode()
    machine.write("/root/.docker/config.json", json.dumps({"auths": {"nvcr.io": {"auth": login}}}))
    unit = machine.root / "etc/systemd/system/nim-llama.service"
    record = {
        "name": "llama",
        "config_hash": "f3d4",
        "files": {str(unit): "22bb", "/nowhere/llama.env": "11aa"},
        "verified": True,
    }
    machine.write("/state/llama.json", json.dumps(record))
    machine.write(f"/cache/llama/{MARKER}", json.dumps({"key": "9c11"}))
    machine.write("/cache/llama/model.safetensors", "weights" * 1000)
    listed = _weights.taken(_weights.take(f"{machine.root}/cache/llama", {}, 0))
    machine.write("/staged/llama.sums", _weights.list_text(listed))
    machine.write("/staged/llama.json", json.dumps(note(machine)))
    machine.command("apt")
    machine.command("dockerd")
    machine.command("nvidia-smi", out=(FIXTURES / "h200-x2/busy.xml").read_text())
    shown = machine.unit("docker.service") + "\n" + machine.unit("nim-llama.service", NRestarts="2")
    shown += "\n" + machine.unit("nim-watchdog@llama.service", ActiveState="inactive", UnitFileState="static")
    shown += "\n" + machine.unit("nim-watchdog@llama.timer", SubState="waiting")
    machine.command("systemctl", __version=SYSTEMD, show=shown)
    machine.command(
        "dpkg-query", error="dpkg-query: no packages found matching docker-ce\n", _W="ii  docker.io 26.1.5+dfsg1-9\n"
    )
    rows = f"{IMAGE} 1.8.6 {DIGEST} {IMAGE_ID}\n<none> <none> <none> sha256:77\n"
    machine.command("docker", info=json.dumps(DOCKER_INFO), ps="c1f7\n", inspect=json.dumps([CONTAINER]), images=rows)
    machine.command("docker", **{"images.__filter": ""})
    return machine


def test_who_listens_since_the_look_at_the_processes_is_found(call, deployed, monkeypatch):
    """A container restarts: the proxy of its port comes after the processes were read, and before the ports are."""
    looked = []

    def look(survey):
        if looked:
            (late / "0").symlink_to("socket:[52110]")
        looked.append(survey)
        real(survey)

    real = _survey.Survey.descriptors
    monkeypatch.setattr(_survey.Survey, "descriptors", look)
    deployed.write("/proc/4800/comm", "docker-proxy\n")
    late = deployed.root / "proc/4800/fd"
    late.mkdir()
    line = "   9: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 52110 1 0 100 0 0 10 0\n"
    with (deployed.root / "proc/net/tcp").open("a") as listing:
        listing.write(line)
    result = call()
    assert {"address": "127.0.0.1", "port": 8081, "pid": 4800, "process": "docker-proxy"} in result["listeners"]
    assert len(looked) == 2 and not result["driver"]["holders"], result


def test_deployed_host(call, deployed):
    before = time.time()
    result = call(packages=["docker.io", "docker-ce"])
    assert result["hostname"] == socket.gethostname()
    assert result["os"] == {
        "distribution": "Debian",
        "version": "13",
        "major": "13",
        "codename": "trixie",
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "package_manager": "apt",
    }
    assert result["python"]["version"] == platform.python_version()
    assert result["python"]["libraries"].keys() == {"apt", "debian", "requests"}
    assert result["systemd"]["version"] == 257
    assert before <= result["time"] <= time.time()
    assert result["memory"] == {"total": 2113472124 * 1024, "available": 2051987000 * 1024}
    assert result["cpus"] == os.cpu_count()
    assert result["listeners"] == [
        {"address": "127.0.0.1", "port": 8000, "pid": 4711, "process": "docker-proxy"},
        {"address": "10.0.1.4", "port": 22, "pid": 811, "process": "sshd"},
        {"address": "::", "port": 22, "pid": None, "process": None},
    ]
    driver = result["driver"]
    assert (driver["loaded_version"], driver["cuda_version"], driver["error"]) == ("580.159.04", "13.0", None)
    assert [(gpu["index"], gpu["name"], gpu["memory_used_mib"]) for gpu in result["gpus"]] == [
        (0, "NVIDIA H200", 41487),
        (1, "NVIDIA H200", 1011),
    ]
    assert result["cdi"]["devices"] == sorted((FIXTURES / "h200-x2/cdi-list.txt").read_text().splitlines()[1:])
    assert result["cdi"]["stale"] is False
    assert result["packages"] == {"docker.io": "26.1.5+dfsg1-9"}
    assert result["engine"] == {
        **AS_FOUND,
        "installed": True,
        "kind": "docker",
        "client": True,
        "unit": True,
        "cdi": True,
        "active": True,
        "enabled": True,
        "version": "26.1.5+dfsg1",
        "root_dir": "/var/lib/docker",
        "live_restore": True,
        "cdi_spec_dirs": ["/etc/cdi", "/var/run/cdi"],
        "storage_driver": None,
        "snapshotter": False,
        "cgroup_driver": None,
        "userns": False,
        "swarm": False,
        "containers_running": 0,
        "logins": {"nvcr.io": hashlib.sha256(b"$oauthtoken:nvapi-secret").hexdigest()},
        "credential_helpers": {},
        "config_newer_than_daemon": False,
    }
    assert result["images"] == {f"{IMAGE}:1.8.6": IMAGE_ID, f"{IMAGE}@{DIGEST}": IMAGE_ID}
    assert result["native_images"] == []
    # The controller adds the comparison of the clocks.
    assert {*result, "clock"} == set(documented())


LABEL = "com.nvidia.nim.model_download_protocol"
EMBED, RERANK = "nvcr.io/nim/nvidia/embed", "nvcr.io/nim/nvidia/rerank"


def test_images_that_docker_says_are_native(call, deployed):
    """By the names of those with a tag, and of those that were pulled by digest and have none."""
    native = f"{EMBED} 2.4.0 {DIGEST} sha256:a1\n{RERANK} <none> {DIGEST} sha256:a2\n"
    deployed.command("docker", images=f"{IMAGE} 1.8.6 {DIGEST} {IMAGE_ID}\n{native}", **{"images.__filter": native})
    result = call()
    assert result["native_images"] == [f"{EMBED}:2.4.0", f"{EMBED}@{DIGEST}", f"{RERANK}@{DIGEST}"]
    assert len(result["images"]) == 5
    assert deployed.asked("docker")[-1].startswith(f"docker images --filter label={LABEL}=native-v1 --digests ")


def test_images_that_podman_says_are_native(call, podman):
    images = [
        {"Id": "a1", "Names": [f"{EMBED}:2.4.0"], "RepoDigests": [f"{EMBED}@{DIGEST}"], "Labels": {LABEL: "native-v1"}},
        {"Id": "a2", "Names": None, "RepoDigests": [f"{RERANK}@{DIGEST}"], "Labels": {LABEL: "native-v1"}},
        {"Id": "a3", "Names": [f"{IMAGE}:1.8.6"], "RepoDigests": [f"{IMAGE}@{DIGEST}"], "Labels": {LABEL: "other"}},
        {"Id": "a4", "Names": ["localhost/own:1"], "RepoDigests": None, "Labels": None},
    ]
    podman.command("podman", images=json.dumps(images))
    result = call(engine="podman")
    assert result["native_images"] == [f"{EMBED}:2.4.0", f"{EMBED}@{DIGEST}", f"{RERANK}@{DIGEST}"]
    assert result["images"][f"{IMAGE}:1.8.6"] == "sha256:a3" and len(result["images"]) == 6


def test_login_that_a_credential_helper_keeps(call, deployed):
    config = {"credHelpers": {"nvcr.io": "pass", "ghcr.io": "gone"}}
    deployed.write("/root/.docker/config.json", json.dumps(config))
    given = {"ServerURL": "nvcr.io", "Username": "$oauthtoken", "Secret": "nvapi-secret"}
    deployed.command("docker-credential-pass", get=json.dumps(given))
    (deployed.bin / "timeout").symlink_to("/usr/bin/timeout")
    result = call()
    assert result["engine"]["logins"] == {"nvcr.io": hashlib.sha256(b"$oauthtoken:nvapi-secret").hexdigest()}
    assert result["engine"]["credential_helpers"] == config["credHelpers"]
    assert deployed.asked("docker-credential-pass") == ["docker-credential-pass get"]
    assert "nvapi" not in json.dumps(result)


def test_credential_helper_that_does_not_listen(call, deployed):
    """It ends while it is still being told: the name is longer than a pipe holds. What it answers counts, and the host is read."""
    registry = "r" * 2**20
    deployed.write("/root/.docker/config.json", json.dumps({"credHelpers": {registry: "pass"}}))
    given = {"ServerURL": "nvcr.io", "Username": "$oauthtoken", "Secret": "nvapi-secret"}
    deployed.command("docker-credential-pass", get=json.dumps(given))
    (deployed.bin / "timeout").symlink_to("/usr/bin/timeout")
    result = call()
    assert result["engine"]["logins"] == {registry: hashlib.sha256(b"$oauthtoken:nvapi-secret").hexdigest()}
    assert result["services"]["llama"]["unit"]["active"] == "active"


def documented():
    """Names of the documented return values."""
    return [line[:-1] for line in gpu_host_info.RETURN.splitlines() if line and line[0].isalpha()]


def test_service_of_a_deployed_host(call, deployed):
    services = call()["services"]
    cache = deployed.root / "cache/llama"
    unit = str(deployed.root / "etc/systemd/system/nim-llama.service")
    assert list(services) == ["llama"]
    uptime = services["llama"]["unit"].pop("uptime")
    assert 100 <= uptime < 160
    assert services["llama"] == {
        "unit": {
            "name": "nim-llama.service",
            "exists": True,
            "active": "active",
            "sub": "running",
            "enabled": True,
            "restarts": 2,
            "result": "success",
        },
        "container": {
            "service": "llama",
            "config_hash": "f3d4",
            "image": f"{IMAGE}@{DIGEST}",
            "image_id": IMAGE_ID,
            "running": True,
            "started_at": "2026-11-23T07:11:05.1Z",
            "exit_code": 0,
            "restart_count": 0,
            "ports": [8000],
        },
        "record": json.loads((deployed.root / "state/llama.json").read_text()),
        "files": {unit: hashlib.sha256(b"[Unit]\n").hexdigest(), "/nowhere/llama.env": None},
        "cache": {
            "path": str(cache),
            "uid": os.getuid(),
            "gid": cache.stat().st_gid,
            "mode": f"{cache.stat().st_mode & 0o7777:04o}",
            "staged": note(deployed),
            "doubt": "",
        },
        "engines": {"docker": ["unit", "container"]},
        "staging": [],
        "watchdog": {"exists": True, "enabled": True, "active": True, "failed": False},
    }


@pytest.mark.parametrize("name", [".llama.switch", ".llama.switch.back"])
def test_exchange_that_was_cut_off_is_told(deployed, call, name):
    (deployed.root / "etc/nim").mkdir(exist_ok=True)
    (deployed.root / "etc/nim" / name).write_text("{}")
    assert call()["services"]["llama"]["unsettled"] is True


@pytest.fixture
def podman(deployed):
    """The same host with llama run by Podman, beside Docker."""
    (deployed.root / "etc/systemd/system/nim-llama.service").unlink()
    deployed.write("/etc/containers/systemd/nim-llama.container", "[Container]\n")
    shown = deployed.unit("docker.service") + "\n" + deployed.unit("nim-llama.service", UnitFileState="generated")
    deployed.command("systemctl", __version=SYSTEMD, show=shown)
    deployed.command("docker", info=json.dumps(DOCKER_INFO), ps="", images="")
    deployed.command("dpkg-query", _W="ii  docker.io 26.1.5+dfsg1-9\nii  podman 5.4.2+ds1-2+b2\n")
    images = json.dumps([{"Id": IMAGE_ID[7:], "RepoDigests": [f"{IMAGE}@{DIGEST}"]}])
    container = {**CONTAINER, "Id": CONTAINER_ID, "Name": "nim-llama", "Image": IMAGE_ID[7:]}
    deployed.command("podman", ps=f"{CONTAINER_ID}\n", inspect=json.dumps([container]), images=images)
    return deployed


@pytest.mark.parametrize("there", ["both", "podman"])
def test_engine_without_a_daemon(call, podman, there):
    if there == "podman":
        (podman.bin / "dockerd").unlink()
    result = call(engine="podman" if there == "both" else "auto")
    assert result["engine"] == {
        "installed": True,
        "kind": "podman",
        "cdi": True,
        "active": True,
        "enabled": True,
        "version": "5.4.2",
        "logins": {"nvcr.io": hashlib.sha256(b"$oauthtoken:nvapi-secret").hexdigest()},
        "credential_helpers": {},
        "config_newer_than_daemon": False,
        "image_dir": "/var/lib/containers",
    }
    assert result["images"] == {f"{IMAGE}@{DIGEST}": IMAGE_ID}
    llama = result["services"]["llama"]
    assert (llama["unit"]["exists"], llama["unit"]["enabled"], llama["engines"]) == (
        True,
        True,
        {"podman": ["unit", "container"]},
    )
    assert (llama["container"]["image_id"], llama["container"]["ports"]) == (IMAGE_ID, [8000])
    assert [line.split(" --")[0] for line in podman.asked("podman")] == [
        "podman images",
        "podman ps -aq",
        f"podman inspect {CONTAINER_ID}",
    ]
    # Docker is asked for its containers alone, in case one has still to be stopped.
    assert [line.split(" --")[0] for line in podman.asked("docker")] == ["docker ps -aq"]


def test_podman_that_is_not_installed(call, deployed):
    result = call(engine="podman")
    assert (result["engine"]["installed"], result["engine"]["kind"], result["engine"]["active"]) == (False, None, False)
    assert (result["images"], result["services"]["llama"]["engines"]) == ({}, {"docker": ["unit", "container"]})
    assert result["services"]["llama"]["container"]["running"]


def test_service_that_podman_still_runs(call, podman):
    """Docker is wanted again: what Podman has of the service is seen."""
    llama = call(engine="docker")["services"]["llama"]
    assert llama["engines"] == {"podman": ["unit", "container"]} and llama["container"]["running"]


def test_container_of_the_wanted_engine_is_told(call, podman):
    other = {**CONTAINER, "State": {"Running": False}}
    podman.command("docker", ps="c1f7\n", inspect=json.dumps([other]))
    for engine, running in (("podman", True), ("docker", False)):
        llama = call(engine=engine)["services"]["llama"]
        assert llama["container"]["running"] is running
        assert llama["engines"] == {"docker": ["container"], "podman": ["unit", "container"]}


def test_gpu_of_a_container_of_podman(call, podman):
    podman.command("nvidia-smi", out=(FIXTURES / "h200-x2/busy.xml").read_text())
    podman.write("/proc/4712/cgroup", f"0::/system.slice/nim-llama.service/libpod-payload-{CONTAINER_ID}\n")
    podman.write("/proc/4712/comm", "python3\n")
    (podman.root / "proc/4712/fd").mkdir()
    (podman.root / "proc/4712/fd/3").symlink_to("/dev/nvidia0")
    (holder,) = call(engine="podman")["driver"]["holders"]
    assert holder == {"pid": 4712, "name": "python3", "unit": None, "service": "llama"}


def test_reads_with_few_commands_and_changes_nothing(call, deployed):
    def snapshot():
        return {
            path: path.lstat().st_mtime_ns
            for path in deployed.root.rglob("*")
            if path.suffix != ".log" and path.is_file()
        }

    before = snapshot()
    call(packages=["docker.io", "docker-ce"], check_mode=True)
    assert snapshot() == before
    assert sorted(line.split(" --")[0] for line in deployed.asked()) == [
        "docker images",
        "docker images",
        "docker info",
        "docker inspect c1f7",
        "docker ps -aq",
        "dpkg-query -W -f ${db:Status-Abbrev} ${Package} ${Version}\n",
        "nvidia-smi -q -x",
        "systemctl",
        "systemctl show",
    ]
    assert deployed.asked("systemctl")[-1].endswith(
        " snap.microk8s.daemon-kubelite.service nim-llama.service nim-watchdog@llama.service nim-watchdog@llama.timer"
        " nim-pull-*.service nim-stage-*.service"
    )


def test_virgin_host(call, machine):
    result = call(packages=["docker.io"])
    gone = {"exists": False, "active": False, "enabled": False}
    expected = {
        "memory": {"total": None, "available": None},
        "listeners": [],
        "hardware": {"gpus": [], "nvswitches": 0, "nvlink5": False, "grace": False, "multi_node_nvlink": False},
        "driver": {
            "loaded_version": None,
            "cuda_version": None,
            "error": "nvidia-smi is not installed",
            "flavour": None,
            "module_version": None,
            "module_license": None,
            "module_signer": None,
            "nouveau": {"loaded": False, "bound": []},
            "holders": [],
            "units": dict.fromkeys(_system.DRIVER_UNITS, gone),
            "stopped_units": [],
        },
        "gpus": [],
        "cdi": {"specs": [], "devices": [], "duplicates": [], "stale": False},
        "packages": {},
        "package_state": {"holds": [], "interrupted": False, "incomplete": [], "busy": None},
        "repositories": [],
        "keys": {},
        "files": {},
        "secure_boot": {"enabled": None, "mok_enrolled": None, "mok_key": None},
        "kernel": {
            "running": platform.release(),
            "headers": False,
            "newest": platform.release(),
            "pending": False,
            "installed": [],
        },
        "updates": {"unattended_upgrades": False, "needrestart": False},
        "toolkit": {"version": None},
        "podman": None,
        "reboot": {"required": False, "reasons": []},
        "engine": {
            **AS_FOUND,
            "installed": False,
            "kind": None,
            "cdi": False,
            "active": False,
            "enabled": False,
            "config_newer_than_daemon": False,
        },
        "kubernetes": [],
        "images": {},
        "native_images": [],
        "services": {},
    }
    assert {key: result[key] for key in expected} == expected
    assert result["os"]["distribution"] == "Unknown"
    assert result["os"]["package_manager"] is None
    assert result["systemd"]["version"] is None
    assert machine.asked() == []


# -- hardware, driver and system ---------------------------------------------------------------------------------------

CONTAINER_ID = "c1f7" * 16
MODINFO = """\
filename:       /lib/modules/6.12.48+deb13-amd64/updates/dkms/nvidia.ko.xz
version:        580.159.04
license:        Dual MIT/GPL
alias:          pci:v000010DEd*sv*sd*bc03sc02i00*
alias:          pci:v000010DEd*sv*sd*bc03sc00i00*
depends:        ecc
name:           nvidia
signer:         DKMS module signing key
sig_key:        1F:2A
"""
DATABASE = """\
ii  docker.io 26.1.5+dfsg1-9
hi  nvidia-open 580.159.04-1
hi  nvidia-kernel-open-dkms 580.159.04-1
ii  libcuda1 580.159.04-1
rc  libcuda1-340 340.108-1
ii  nvidia-container-toolkit 1.20.0-1
ii  podman 5.4.2+ds1-2
ii  unattended-upgrades 2.12
un  needrestart
"""


def equipped(machine):
    """The recording of two H200, as sysfs has them, with a driver of another version on disk."""
    for row in (FIXTURES / "h200-x2/host-and-list.txt").read_text().splitlines():
        if row.startswith("0000:"):
            address, vendor, device, kind, *_ = row.split()
            home = f"/sys/bus/pci/devices/{address}"
            for name, text in (("vendor", vendor), ("device", device), ("class", kind)):
                machine.write(f"{home}/{name}", f"{text}\n")
            if vendor == "0x10de":
                (machine.root / home.lstrip("/") / "driver").symlink_to("../../../bus/pci/drivers/nvidia")
    machine.write("/sys/module/nvidia/initstate", "live\n")
    machine.command("modinfo", out=MODINFO)
    machine.command("dpkg-query", _W=DATABASE)
    return machine


def test_hardware_and_driver_of_a_deployed_host(call, deployed):
    equipped(deployed)
    result = call(packages=["*nvidia*", "libcuda1", "libcuda1-*", "docker.io"])
    assert [(gpu["address"], gpu["name"], gpu["driver"]) for gpu in result["hardware"]["gpus"]] == [
        ("0000:00:06.0", "H200 SXM", "nvidia"),
        ("0000:00:07.0", "H200 SXM", "nvidia"),
    ]
    assert {key: result["driver"][key] for key in ("flavour", "module_version", "module_license", "module_signer")} == {
        "flavour": "open",
        "module_version": "580.159.04",
        "module_license": "Dual MIT/GPL",
        "module_signer": "DKMS module signing key",
    }
    assert [(gpu["device_id"], gpu["compute_capability"], gpu["fabric_state"]) for gpu in result["gpus"]] == [
        ("2335", "9.0", "Completed"),
        ("2335", "9.0", "Completed"),
    ]
    assert result["packages"] == {
        "docker.io": "26.1.5+dfsg1-9",
        "nvidia-open": "580.159.04-1",
        "nvidia-kernel-open-dkms": "580.159.04-1",
        "libcuda1": "580.159.04-1",
        "nvidia-container-toolkit": "1.20.0-1",
    }
    assert result["package_state"]["holds"] == ["nvidia-kernel-open-dkms", "nvidia-open"]
    assert (result["toolkit"], result["podman"]) == ({"version": "1.20.0"}, {"version": "5.4.2"})
    assert result["reboot"] == {"required": False, "reasons": []}


def test_toolkit_and_podman_that_no_package_brought(call, deployed):
    deployed.command("nvidia-ctk", out="NVIDIA Container Toolkit CLI version 1.18.2\ncommit: 2f3c\n")
    deployed.command("podman", out="podman version 4.9.3\n")
    result = call()
    assert (result["toolkit"], result["podman"]) == ({"version": "1.18.2"}, {"version": "4.9.3"})


@pytest.mark.parametrize(
    ("cgroup", "unit", "service"),
    [
        ("0::/system.slice/nvidia-persistenced.service\n", "nvidia-persistenced.service", None),
        (f"0::/system.slice/docker-{CONTAINER_ID}.scope\n", None, "llama"),
        (f"12:devices:/docker/{CONTAINER_ID}\n0::/\n", None, "llama"),
        (f"0::/system.slice/docker-{'ab' * 32}.scope\n", None, None),
        ("0::/user.slice/user-0.slice/session-3.scope\n", None, None),
        ("", None, None),
    ],
    ids=["service", "container", "container-cgroup-v1", "foreign-container", "shell", "gone"],
)
def test_holders_of_gpus(call, deployed, cgroup, unit, service):
    """Pain 20: who keeps the driver from being unloaded, and what a GPU's process belongs to."""
    deployed.command("docker", inspect=json.dumps([{**CONTAINER, "Id": CONTAINER_ID}]))
    deployed.write("/proc/571/comm", "python3\n")
    deployed.write("/proc/571/cgroup", cgroup)
    folder = deployed.root / "proc/571/fd"
    folder.mkdir()
    (folder / "3").symlink_to("/dev/nvidiactl")
    (folder / "4").symlink_to("/dev/nvidia0")
    result = call()
    assert result["driver"]["holders"] == [{"pid": 571, "name": "python3", "unit": unit, "service": service}]
    assert [process["service"] for gpu in result["gpus"] for process in gpu["processes"]] == [service, service]


def test_driver_units(call, deployed):
    shown = [
        deployed.unit("nvidia-persistenced.service", UnitFileState="static"),
        deployed.unit("nvidia-fabricmanager.service", ActiveState="failed", UnitFileState="disabled"),
        deployed.unit("nvidia-dcgm.service", LoadState="masked", ActiveState="inactive", UnitFileState="masked"),
        deployed.unit("nvidia-imex.service", LoadState="not-found", ActiveState="inactive", UnitFileState=""),
        deployed.unit("docker.service"),
    ]
    deployed.command("systemctl", show="\n".join(shown))
    deployed.write("/run/nim/driver-stopped.json", '["nim-llama.service", "nvidia-persistenced.service"]')
    driver = call()["driver"]
    assert {name: list(state.values()) for name, state in driver["units"].items()} == {
        "nvidia-persistenced.service": [True, True, True],
        "nvidia-fabricmanager.service": [True, False, False],
        "nvidia-imex.service": [False, False, False],
        "nvidia-dcgm.service": [False, False, False],
        "dcgm-exporter.service": [False, False, False],
        "nvidia-cdi-refresh.service": [False, False, False],
        "nvidia-cdi-refresh.path": [False, False, False],
    }
    assert driver["stopped_units"] == ["nim-llama.service", "nvidia-persistenced.service"]


def test_driver_that_was_upgraded_under_the_loaded_one(call, deployed):
    """Pain 2 and 17."""
    equipped(deployed)
    deployed.command("modinfo", out=MODINFO.replace("580.159.04", "595.71.05"))
    assert call()["reboot"] == {
        "required": True,
        "reasons": ["the loaded driver is 580.159.04, the module on disk is 595.71.05"],
    }


def test_module_that_debian_calls_by_another_name(call, machine):
    machine.write(
        "/etc/modprobe.d/nvidia.conf", "# Debian\ninstall nvidia modprobe -i nvidia-current-open $CMDLINE_OPTS\n"
    )
    machine.command("modinfo", nvidia_current_open=MODINFO)
    driver = call()["driver"]
    assert (driver["module_version"], driver["flavour"]) == ("580.159.04", "open")


@pytest.mark.parametrize(
    ("license", "flavour"), [("Dual MIT/GPL", "open"), ("NVIDIA", "proprietary"), (None, None)], ids=str
)
def test_flavour_of_a_driver_that_is_not_loaded(call, machine, license, flavour):
    if license:
        machine.command("modinfo", out=MODINFO.replace("Dual MIT/GPL", license))
    else:
        machine.command("modinfo", error="modinfo: ERROR: Module nvidia not found.\n")
    driver = call()["driver"]
    assert (driver["flavour"], driver["loaded_version"], driver["module_license"]) == (flavour, None, license)


def test_nouveau_that_holds_the_gpus(call, deployed):
    """Pain 22."""
    equipped(deployed)
    for address in ("0000:00:06.0", "0000:00:07.0"):
        link = deployed.root / f"sys/bus/pci/devices/{address}/driver"
        link.unlink()
        link.symlink_to("../../../bus/pci/drivers/nouveau")
    deployed.write("/sys/module/nouveau/initstate", "live\n")
    deployed.write("/proc/driver/nvidia/version", "")
    result = call()
    assert result["driver"]["nouveau"] == {"loaded": True, "bound": ["0000:00:06.0", "0000:00:07.0"]}
    assert result["reboot"] == {"required": True, "reasons": ["nouveau drives 0000:00:06.0, 0000:00:07.0"]}


def test_gpu_of_unified_memory(call, deployed):
    """GB10 answers [N/A] for its memory, which is the host's."""
    text = (FIXTURES / "h200/smi-q-x.xml").read_text().replace("233510DE", "2E1210DE")
    text = text.replace("NVIDIA H200", "NVIDIA GB10").replace(">Hopper<", ">Blackwell<").replace("143771 MiB", "[N/A]")
    deployed.command("nvidia-smi", out=text)
    gpu = call()["gpus"][0]
    assert (gpu["name"], gpu["device_id"], gpu["compute_capability"]) == ("NVIDIA GB10", "2e12", "12.1")
    assert gpu["memory_total_mib"] is None


def test_files(call, machine):
    path = machine.write("/etc/modprobe.d/nouveau.conf", "blacklist nouveau\n")
    folder = str(path.parent)
    assert call(files=[str(path), "/nowhere/x.conf", folder])["files"] == {
        str(path): hashlib.sha256(b"blacklist nouveau\n").hexdigest(),
        "/nowhere/x.conf": None,
        folder: None,
    }


@pytest.mark.parametrize("folders", [["/etc/cdi"], ["/etc/cdi", "/run/cdi"]], ids=["one", "two"])
def test_cdi_specifications_that_define_the_same_devices(call, machine, folders):
    for folder in folders:
        machine.write(f"{folder}/nvidia.yaml", SPEC)
    cdi = call()["cdi"]
    assert {spec["generated_by"] for spec in cdi["specs"]} == {"nvidia-ctk"}
    assert cdi["duplicates"] == (cdi["devices"] if len(folders) > 1 else [])


def test_cdi_folder_that_is_named_twice(call, machine):
    """/var/run is a link to /run."""
    machine.write("/run/cdi/nvidia.yaml", SPEC)
    (machine.root / "other").symlink_to("run")
    cdi = call(cdi_spec_dirs=[str(machine.root / "run/cdi"), str(machine.root / "other/cdi")])["cdi"]
    assert (len(cdi["specs"]), cdi["duplicates"]) == (1, [])


@pytest.mark.parametrize(("folders", "cdi"), [(["/etc/cdi"], True), ([], False), (None, False)])
def test_engine_that_takes_cdi_devices(call, deployed, folders, cdi):
    deployed.command("docker", info=json.dumps({**DOCKER_INFO, "CDISpecDirs": folders}))
    assert call()["engine"]["cdi"] is cdi


def test_needs_no_more_than_its_time(call, deployed):
    """The budget is half a second on a host; here commands are scripts and a thousand processes run."""
    equipped(deployed)
    for pid in range(1000, 2000):
        folder = deployed.root / f"proc/{pid}/fd"
        folder.mkdir(parents=True)
        for number in range(5):
            (folder / str(number)).symlink_to(f"socket:[{pid}{number}]")
    started = time.process_time()
    call()
    assert time.process_time() - started < 0.5


# -- commands that fail ------------------------------------------------------------------------------------------------

NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        pytest.param({"out": NO_DRIVER, "error": ""}, NO_DRIVER.strip(), id="tells-on-standard-output"),
        pytest.param(
            {"error": "Failed to initialize NVML: Driver/library version mismatch\n"},
            "Failed to initialize NVML",
            id="mismatch",
        ),
        pytest.param({"error": ""}, "nvidia-smi left with exit status 9", id="says-nothing"),
        pytest.param({"out": "<nvidia_smi_log><gpu>"}, "not a report of nvidia-smi -q -x", id="cut-off"),
    ],
)
def test_nvidia_smi_that_fails(call, deployed, said, error):
    (deployed.bin / "nvidia-smi.out").unlink()
    deployed.command("nvidia-smi", **said)
    result = call()
    assert result["driver"]["error"].startswith(error)
    assert result["driver"]["loaded_version"] == "580.159.04"
    assert result["gpus"] == []


def test_nvidia_smi_that_sees_no_gpu(call, deployed):
    deployed.command("nvidia-smi", out="<nvidia_smi_log><driver_version>580.159.04</driver_version></nvidia_smi_log>")
    result = call()
    assert (result["driver"]["error"], result["gpus"]) == (None, [])


def test_dead_docker(call, deployed):
    deployed.command(
        "docker",
        error="",
        info=json.dumps({"ServerVersion": "", "ServerErrors": ["Cannot connect to the Docker daemon"]}),
    )
    shown = deployed.unit(
        "docker.service", ActiveState="failed", ActiveEnterTimestampMonotonic="0", UnitFileState="disabled"
    )
    deployed.command("systemctl", show=shown)
    result = call()
    assert result["engine"] == {
        **AS_FOUND,
        "installed": True,
        "installed_version": None,
        "kind": "docker",
        "client": True,
        "unit": True,
        "cdi": False,
        "active": False,
        "enabled": False,
        "swarm": False,
        "config_newer_than_daemon": False,
    }
    assert result["images"] == {}
    # A question would start the daemon where its socket listens.
    assert deployed.asked("docker") == []


@pytest.mark.parametrize(
    ("gone", "installed"), [("dockerd", False), ("docker", True)], ids=["client-only", "daemon-only"]
)
def test_half_of_docker(call, deployed, gone, installed):
    (deployed.bin / gone).unlink()
    result = call()
    assert (result["engine"]["installed"], result["engine"].get("version"), result["images"]) == (installed, None, {})
    assert deployed.asked("docker") == []


def test_docker_without_nim_containers(call, deployed):
    deployed.command("docker", ps="")
    result = call()
    assert result["services"]["llama"]["container"] is None
    assert not [line for line in deployed.asked("docker") if line.startswith("docker inspect")]


def test_no_packages_asked(call, deployed):
    """Holds and broken installations are told all the same."""
    result = call()
    assert (result["packages"], result["package_state"]["holds"]) == ({}, [])
    assert len(deployed.asked("dpkg-query")) == 1


# -- parts -------------------------------------------------------------------------------------------------------------

SPEC = (FIXTURES / "h200-x2/cdi-nvidia.yaml").read_text()
OLD_SPEC = SPEC.replace("580.159.04", "550.54.15")
AMD = json.dumps({"kind": "amd.com/gpu", "devices": [{"name": "0"}]})
LOADED = (FIXTURES / "h200/proc.txt").read_text()


@pytest.mark.parametrize(
    ("files", "loaded", "specs", "stale"),
    [
        pytest.param({"/run/cdi/nvidia.yaml": SPEC}, LOADED, ["/run/cdi/nvidia.yaml"], False, id="fresh"),
        pytest.param(
            {"/run/cdi/nvidia.yaml": OLD_SPEC}, LOADED, ["/run/cdi/nvidia.yaml"], True, id="of-another-driver"
        ),
        pytest.param({"/run/cdi/nvidia.yaml": SPEC}, "", ["/run/cdi/nvidia.yaml"], True, id="no-driver-loaded"),
        pytest.param({}, LOADED, [], False, id="none"),
        pytest.param({}, "", [], False, id="none-and-no-driver"),
        pytest.param(
            {"/etc/cdi/nvidia.yaml": OLD_SPEC, "/run/cdi/nvidia.yaml": SPEC},
            LOADED,
            ["/etc/cdi/nvidia.yaml", "/run/cdi/nvidia.yaml"],
            True,
            id="hand-made-file-hides-the-fresh-one",
        ),
        pytest.param({"/etc/cdi/amd.json": AMD, "/etc/cdi/broken.json": '{"kind"'}, LOADED, [], False, id="of-others"),
        pytest.param({"/etc/cdi/nvidia.yaml.bak": OLD_SPEC}, LOADED, [], False, id="backup"),
    ],
)
def test_cdi(call, machine, files, loaded, specs, stale):
    machine.write("/proc/driver/nvidia/version", loaded)
    for path, text in files.items():
        machine.write(path, text)
    cdi = call()["cdi"]
    assert [spec["path"] for spec in cdi["specs"]] == [f"{machine.root}{path}" for path in specs]
    assert cdi["stale"] is stale
    assert len(cdi["devices"]) == (5 if specs else 0)


@pytest.mark.parametrize(
    ("age", "properties", "newer"),
    [
        pytest.param(50, {}, True, id="changed-after-the-start"),
        pytest.param(150, {}, False, id="changed-before-the-start"),
        pytest.param(50, {"ActiveEnterTimestampMonotonic": "0"}, False, id="never-started"),
        pytest.param(None, {}, False, id="no-file"),
    ],
)
def test_configuration_newer_than_daemon(call, deployed, age, properties, newer):
    """Docker runs for 100 seconds."""
    if age is not None:
        changed = time.time() - age
        os.utime(deployed.write("/etc/docker/daemon.json", "{}"), (changed, changed))
    deployed.command("systemctl", show=deployed.unit("docker.service", **properties))
    assert call()["engine"]["config_newer_than_daemon"] is newer


@pytest.mark.parametrize("text", ["", '{"name": "lla', "[]", '"x"'], ids=["empty", "cut-off", "list", "string"])
def test_broken_record_is_none(call, deployed, text):
    deployed.write("/state/llama.json", text)
    service = call()["services"]["llama"]
    assert (service["record"], service["files"]) == (None, {})


@pytest.mark.parametrize(
    ("text", "doubt"),
    [
        ("", "no weights were staged"),
        ('{"key": "9c', "no weights were staged"),
        ("[1]", "no weights were staged"),
        ({"image_reference": "x --privileged"}, "no weights were staged"),
        ({"key": "another"}, "the cache does not say any more that its weights are complete"),
    ],
    ids=["empty", "cut-off", "list", "forged", "another-key"],
)
def test_a_note_that_is_none_stages_nothing(call, deployed, text, doubt):
    deployed.write("/staged/llama.json", text if isinstance(text, str) else json.dumps({**note(deployed), **text}))
    cache = call()["services"]["llama"]["cache"]
    assert (cache["staged"], cache["doubt"]) == (None, doubt)


@pytest.mark.parametrize(
    "text",
    [
        None,
        '{"key": "another"}',
        "[" * 100_000,
        '{"key": ["9c11"]}',
        "x" * 2**21,
    ],
    ids=["gone", "another-key", "deep", "list-for-a-word", "endless"],
)
def test_a_marker_decides_no_more_than_that_weights_are_staged_anew(call, deployed, text):
    """The cache is the image's user's own: what he writes there costs himself something, and nobody else."""
    marker = deployed.root / f"cache/llama/{MARKER}"
    marker.unlink()
    if text is not None:
        marker.write_text(text)
    cache = call()["services"]["llama"]["cache"]
    assert (cache["staged"], cache["doubt"]) == (None, "the cache does not say any more that its weights are complete")


def test_a_marker_names_no_image(call, deployed):
    """What is staged, and of which image, is told by the note of root alone."""
    forged = {"key": "9c11", "image_reference": f"{IMAGE}@sha256:{'0' * 64}", "bytes": 10**15, "path": "/etc"}
    deployed.write(f"/cache/llama/{MARKER}", json.dumps(forged))
    assert call()["services"]["llama"]["cache"]["staged"] == note(deployed)
    (deployed.root / "staged/llama.json").unlink()
    assert call()["services"]["llama"]["cache"]["staged"] is None


@pytest.mark.parametrize("name", [MARKER, LIST])
def test_what_is_no_plain_file_in_a_cache_holds_nobody_up(call, deployed, name):
    path = deployed.root / "cache/llama" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert call()["services"]["llama"]["cache"]["path"] == str(path.parent)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert call()["services"]["llama"]["cache"]["path"] == str(path.parent)


@pytest.mark.parametrize(
    ("harm", "doubt"),
    [
        (lambda file: file.unlink(), "none of its 1 files is there"),
        (lambda file: file.write_text("weig"), "model.safetensors has 4 B, wanted 7.0 kB (7000 B)"),
        (lambda file: file.write_text("weights" * 1001), ""),
    ],
    ids=["emptied", "cut-off", "grown"],
)
def test_half_a_cache_does_not_pass_for_whole(call, deployed, harm, doubt):
    harm(deployed.root / "cache/llama/model.safetensors")
    cache = call()["services"]["llama"]["cache"]
    assert (cache["doubt"], cache["staged"] is None) == (doubt, bool(doubt))


def test_weights_that_are_not_listed_are_staged_anew(call, deployed):
    """As an older version left them."""
    (deployed.root / "staged/llama.sums").unlink()
    cache = call()["services"]["llama"]["cache"]
    assert (cache["staged"], cache["doubt"]) == (None, "its files are not listed")


def test_cache_elsewhere_is_the_one_that_this_host_has_staged(call, deployed):
    elsewhere = deployed.root / "nfs/llama"
    kept = {**note(deployed), "key": "77aa", "path": str(elsewhere), "read_only": True, "marked": False}
    deployed.write("/staged/llama.json", json.dumps(kept))
    assert call()["services"]["llama"]["cache"] is None, "what was unmounted is not staged"
    deployed.write("/nfs/llama/model.safetensors", "weights" * 1000)
    cache = call()["services"]["llama"]["cache"]
    assert (cache["path"], cache["uid"], cache["staged"]) == (str(elsewhere), os.getuid(), kept)


def test_services_are_found_by_each_of_their_traces(call, deployed):
    """A unit, a container, a record or a cache alone, as an interrupted play or a hand leaves them."""
    deployed.write("/etc/systemd/system/nim-unit.service", "[Unit]\n")
    deployed.write("/state/record.json", "{}")
    deployed.write("/cache/cache/weights", "")
    deployed.write("/cache/lost+found.txt", "")
    stray = {
        **CONTAINER,
        "Name": "/nim-container",
        "Config": {"Image": "x", "Labels": {"com.github.baremetal-nim.service": "container"}},
    }
    other = {**CONTAINER, "Name": "/other", "Config": {"Image": "x", "Labels": None}}
    deployed.command("docker", inspect=json.dumps([CONTAINER, stray, other]))
    failed = deployed.unit(
        "nim-unit.service", ActiveState="failed", SubState="failed", UnitFileState="disabled", Result="exit-code"
    )
    gone = deployed.unit(
        "nim-llama.service", LoadState="not-found", ActiveState="inactive", ActiveEnterTimestampMonotonic="0"
    )
    timer = deployed.unit("nim-watchdog@unit.timer", UnitFileState="disabled", ActiveState="inactive")
    gave_up = deployed.unit("nim-watchdog@unit.service", ActiveState="failed", UnitFileState="static")
    deployed.command("systemctl", show=f"{failed}\n{gone}\n{timer}\n{gave_up}")
    services = call()["services"]
    assert list(services) == ["cache", "container", "llama", "record", "unit"]
    traces = {
        name: [key for key in ("container", "record", "cache") if now[key] is not None]
        + (["unit"] if now["unit"]["exists"] else [])
        for name, now in services.items()
    }
    assert traces == {
        "cache": ["cache"],
        "container": ["container"],
        "llama": ["container", "record", "cache"],
        "record": ["record"],
        "unit": ["unit"],
    }
    unit = services["unit"]["unit"]
    assert (unit["active"], unit["enabled"], unit["result"]) == ("failed", False, "exit-code")
    assert services["unit"]["watchdog"] == {"exists": True, "enabled": False, "active": False, "failed": True}
    assert services["llama"]["watchdog"] == {"exists": False, "enabled": False, "active": False, "failed": False}
    assert services["llama"]["unit"]["uptime"] is None


def test_disks_are_those_of_the_nearest_parent(call, tmp_path):
    (tmp_path / "there").mkdir()
    paths = [str(tmp_path / "there"), str(tmp_path / "not/there/yet"), "/", "/proc/self"]
    disks = call(paths=paths)["disks"]
    here = os.statvfs(tmp_path)
    assert list(disks)[: len(paths)] == paths
    for path in paths[:2]:
        assert os.path.ismount(disks[path]["mount"])
        assert str(tmp_path).startswith(disks[path]["mount"])
        assert disks[path]["total"] == here.f_blocks * here.f_frsize
        assert 0 < disks[path]["free"] <= disks[path]["total"]
        assert disks[path]["read_only"] is False
    assert disks["/"]["mount"] == "/"
    assert disks["/proc/self"]["mount"] == "/proc"


# -- what does not answer ----------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch):
    """Nobody has time."""
    monkeypatch.setattr(_command, "SECONDS", {})
    monkeypatch.setattr(_command, "_GRACE", 0.2)
    monkeypatch.setattr(_command, "USUAL_SECONDS", 0.5)
    monkeypatch.setattr(gpu_host_info, "FILE_SYSTEM_SECONDS", 0.5)
    monkeypatch.setattr(gpu_host_info, "HELPER_SECONDS", 0.5)


def hang(machine, name, pid="pid"):
    """A program that sleeps in the kernel, as far as a shell can."""
    script = machine.bin / name
    script.write_text(f"#!/bin/sh\ntrap '' TERM\necho $$ > {machine.root}/{pid}\nwhile :; do /bin/sleep 1; done\n")
    script.chmod(0o755)


def test_nvidia_smi_that_hangs(call, deployed, hasty):
    hang(deployed, "nvidia-smi")
    began = time.monotonic()
    result = call()
    assert time.monotonic() - began < 20
    told = "nvidia-smi did not answer within 0.5 s and was ended. Next: dmesg | grep -i -e nvrm -e xid"
    assert result["driver"]["error"].startswith(told) and result["gpus"] == []
    (item,) = result["unanswered"]
    assert item["program"] == "nvidia-smi" and item["message"].startswith(told)
    # All else is known.
    assert result["engine"]["active"] and result["services"]["llama"]["container"]["running"]
    assert not pathlib.Path(f"/proc/{(deployed.root / 'pid').read_text().strip()}").exists()


def test_docker_that_hangs_is_asked_once(call, deployed, hasty):
    hang(deployed, "docker")
    began = time.monotonic()
    result = call()
    assert time.monotonic() - began < 20
    (item,) = result["unanswered"]
    assert item["message"].startswith(
        "docker info did not answer within 0.5 s and was ended. Next: systemctl status docker"
    )


@pytest.mark.parametrize("name", ["systemctl", "dpkg-query", "modinfo"])
def test_other_programs_that_hang(call, deployed, hasty, name):
    hang(deployed, name)
    assert [item["program"] for item in call()["unanswered"]] == [name]


def test_credential_helper_that_hangs_is_no_fault_of_the_host(call, deployed, hasty):
    deployed.write("/root/.docker/config.json", json.dumps({"credHelpers": {"nvcr.io": "vault"}}))
    hang(deployed, "docker-credential-vault")
    result = call()
    assert (result["unanswered"], result["engine"]["logins"]) == ([], {})


def test_decisions_are_not_made_from_a_part(deployed, machine, capsys, hasty):
    hang(deployed, "nvidia-smi")
    with patch_module_args({"strict": True, "paths": [], "_ansible_check_mode": False}), pytest.raises(SystemExit):
        gpu_host_info.main()
    result = json.loads(capsys.readouterr().out)
    assert (
        result["failed"]
        and "and nothing is decided from a part: nvidia-smi did not answer within 0.5 s" in result["msg"]
    )


def test_a_whole_host_is_read_strictly(call, deployed):
    assert call(strict=True)["unanswered"] == []


def test_file_system_that_does_not_answer(call, deployed, hasty, monkeypatch):
    """As NFS whose server is gone: nobody comes back who looks there."""
    dead = str(deployed.root / "mnt/dead")
    deployed.write(
        "/staged/phi.json", json.dumps({"path": f"{dead}/phi", "key": "1", "image_reference": f"{IMAGE}@{DIGEST}"})
    )
    deployed.write("/state/phi.json", json.dumps({"name": "phi"}))
    deployed.write("/proc/mounts", f"/dev/sda1 / ext4 rw 0 0\n10.0.0.5:/nim {dead} nfs4 rw,hard 0 0\n")
    real = {name: getattr(os, name) for name in ("stat", "statvfs", "lstat")}

    def sleepy(name):
        def look(path, *args, **options):
            if str(path).startswith(dead):
                time.sleep(1234)
            return real[name](path, *args, **options)

        return look

    for name in real:
        monkeypatch.setattr(os, name, sleepy(name))
    began = time.monotonic()
    result = call(paths=[f"{dead}/images", str(deployed.root)])
    assert time.monotonic() - began < 30
    assert result["disks"][f"{dead}/images"] is None and result["disks"][str(deployed.root)]["free"] > 0
    assert result["services"]["phi"]["cache"] is None and result["services"]["llama"]["cache"]["staged"]
    # One mount is told once, however many lie on it.
    (item,) = result["unanswered"]
    assert item["program"] == "file system"
    assert item["message"].startswith(
        f"the file system of {dead}/images (10.0.0.5:/nim on {dead}, nfs4) did not answer within 0.5 s. Next: cat /proc/mounts"
    )


def test_cache_root_that_does_not_answer(call, deployed, hasty, monkeypatch):
    root = str(deployed.root / "cache")
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: time.sleep(1234) if str(path).startswith(root) else real(path))
    result = call()
    assert "llama" in result["services"] and len(result["unanswered"]) == 1


# -- users and leases --------------------------------------------------------------------------------------------------


def test_users_by_their_numbers(machine, call):
    assert call()["users"] == {}, "there is nobody to ask"
    known = [
        "ubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash",
        "nim:x:1001:1001::/:/usr/sbin/nologin",
        "old:x:1002:1002::/:",
    ]
    lines = "\n".join(f'[ "$number" != {line.split(":")[2]} ] || echo "{line}"' for line in known)
    script = machine.bin / "getent"
    script.write_text(f"#!/bin/sh\n[ $1 = passwd ] || exit 1\nshift\nfor number; do\n{lines}\ndone\nexit 2\n")
    script.chmod(0o755)
    assert call()["users"] == {"1000": {"name": "ubuntu", "shell": "/bin/bash", "logs_in": True}}
    assert call(uids=[1001, 1002, 7, -1])["users"] == {
        "1001": {"name": "nim", "shell": "/usr/sbin/nologin", "logs_in": False},
        "1002": {"name": "old", "shell": "/bin/sh", "logs_in": True},
    }


def test_a_directory_that_hangs_knows_no_users(call, deployed, hasty):
    hang(deployed, "getent")
    result = call()
    assert (result["unanswered"], result["users"]) == ([], {})


def test_who_changes_the_host(machine, call):
    seen = call()["lock"]
    assert (seen["holder"], seen["last"]) == (None, "") and seen["boot"] and seen["at"] > 0
    leases = _lease.Leases(str(machine.root / "run/nim/lock.d"))
    held, _before = leases.take({"run": "a" * 16, "name": "gpu01", "user": "alice"}, 60, [], (), ())
    seen = call()["lock"]
    assert (seen["holder"]["user"], seen["last"]) == ("alice", held["token"])
    assert seen["at"] >= seen["holder"]["taken"]
