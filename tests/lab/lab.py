# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: a small data centre in containers, for the demo and for tests.

    lab.py up [--name demo] [--hosts gpu01,gpu02] [--engine reference|vllm|families] [--from bare|converged]
    lab.py down [--name demo] | lab.py down --all
    lab.py images [--engine …]      builds what labs are made from, the stocked vendor too
    lab.py converge [--hosts gpu01] makes the hosts that --from=converged starts
    lab.py requests [--reset]       what the weights server was asked
    lab.py keys KEY [KEY...]        which keys the registry and the weights server accept

One vendor host (registry, packages, weights) serves every lab of a site (LAB_SITE, "nimlab"); each lab has GPU hosts of its
own, reached by ssh with .lab/NAME/ssh_config. A site other than the default one goes with its last lab. A host whose name
begins with vm is a virtual machine of the same content. Images are tagged by the hash of what they are made from, so nothing
is built twice.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import docker
import snapshot
from docker.models.containers import Container
from docker.models.networks import Network
from machine import Machine

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STATE = ROOT / ".lab"
PREFIX = "nimlab"
#: Vendor host, network and GPU hosts of one place; images are shared by all. Another one runs beside it undisturbed.
SITE = os.environ.get("LAB_SITE") or PREFIX
NETWORK = SITE
VENDOR = f"{SITE}-vendor"
#: The key every lab accepts unless a test changes it. It opens nothing outside the lab.
LAB_KEY = "nvapi-lab-0123456789abcdefghijklmnopqrstuvwxyz-0123456789ABCDEFGHIJ"
#: GPU recording of each host name; other names get the single-GPU one.
GPUS = {"gpu02": "h200-x2.xml"}
RECORDINGS = {"h200.xml": "h200/smi-q-x.xml", "h200-x2.xml": "h200-x2/idle.xml"}
#: Time zone and language of each host name, as real fleets have them; other names get the last one. Whatever compares times or reads
#: what programs say must not mind. The second language is one that the hosts do not have.
PLACES = {
    "gpu01": ("Asia/Kathmandu", "de_DE.UTF-8"),
    "gpu02": ("America/New_York", "fr_FR.UTF-8"),
    "": ("Australia/Lord_Howe", "de_DE.UTF-8"),
}
#: Where a host is instead whose time zone is this machine's.
ELSEWHERE = "Pacific/Chatham"
#: Repository, tag, flavour and engine of the images that the registry holds.
NIM = "nim/meta/llama-3.1-8b-instruct"
IMAGES = (
    (NIM, "1.8.6", "classic", "reference"),
    (NIM, "2.0.5", "llm", "reference"),
    (NIM, "2.0.5-vllm", "llm", "vllm"),
    ("nim/nvidia/llama-nemotron-embed-1b-v2", "2.2.2", "native", "families"),
    ("nim/nvidia/llama-nemotron-rerank-1b-v2", "2.2.2", "reranker", "families"),
    ("nim/nvidia/magpie-tts-multilingual", "1.7.0", "speech", "families"),
)
#: Variables of an ansible-playbook that takes the payloads of modules from the run before.
KEPT_PAYLOADS = {"ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"), "ANSIBLE_CALLBACKS_ENABLED": "kept_payloads"}
#: What a host serves.
PORTS = ("22", "8000", "8001")
#: Where their ports are published on loopback: Linux gives outgoing connections those from 32768 on.
PORT_RANGE = range(20000, 32000)
#: Label that every stage of the stand-in's build carries.
STAND_IN = "org.opencontainers.image.title=NIM stand-in of the baremetal.nim lab"
#: systemd and a Docker engine inside a container, without --privileged.
RUN_FLAGS: dict[str, Any] = {
    "cap_add": ["ALL"],
    "cap_drop": ["SYS_RESOURCE"],
    "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
    "devices": ["/dev/fuse"],
    # The nodes of the simulated GPUs may be opened: that no driver is behind them is another answer than that somebody forbids it.
    "device_cgroup_rules": ["c 195:* rwm", "c 238:* rwm"],
    "tmpfs": {"/run": "exec", "/tmp": "exec"},
}
DAEMON_JSON = "etc/docker/daemon.json"
#: Podman's images lie on the one volume that a host has.
PODMAN_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "/var/lib/docker/podman"
runroot = "/run/containers/storage"
"""


def say(text: str) -> None:
    """Prints one progress line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


STARTED = time.monotonic()


def add(tar: tarfile.TarFile, name: str, data: bytes | str, mode: int = 0o644, uid: int = 0) -> None:
    """Adds one file to an archive; times are fixed, so equal content gives equal archives."""
    blob = data.encode() if isinstance(data, str) else data
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid = len(blob), mode, uid, uid
    tar.addfile(info, io.BytesIO(blob))


def add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    """Adds a symbolic link to an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    tar.addfile(info)


def place_of(name: str) -> tuple[str, str]:
    """Time zone and language of a host."""
    zone, language = PLACES.get(name, PLACES[""])
    here = os.environ.get("TZ") or os.path.realpath("/etc/localtime")
    return ELSEWHERE if here.endswith(zone) else zone, language


def add_tree(tar: tarfile.TarFile, source: pathlib.Path, name: str = "") -> None:
    """Adds the files of a folder, in a fixed order, executable bits kept."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            mode = 0o755 if os.access(path, os.X_OK) else 0o644
            add(tar, str(pathlib.PurePosixPath(name, path.relative_to(source).as_posix())), path.read_bytes(), mode)


class Lab:
    """The containers of one lab and the vendor host they share."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix = PREFIX
        self.state = STATE / name
        self.docker = docker.from_env(timeout=600)

    # -- images ------------------------------------------------------------------------------------------------

    def image(self, name: str, context: bytes, buildargs: dict[str, str]) -> str:
        """Builds NAME from a tar CONTEXT unless that very content was built before; returns the tag."""
        digest = hashlib.sha256(context + json.dumps(buildargs, sort_keys=True).encode()).hexdigest()[:12]
        tag = f"{PREFIX}/{name}:{digest}"
        if not self.docker.images.list(name=tag):
            say(f"building {tag}")
            try:
                self.docker.images.build(
                    fileobj=io.BytesIO(context),
                    custom_context=True,
                    tag=tag,
                    buildargs=buildargs,
                    rm=True,
                    forcerm=True,
                )
            except docker.errors.BuildError as error:
                lines = "".join(entry.get("stream", "") for entry in error.build_log)
                sys.exit(f"lab: building {name} failed: {error.msg}\n{lines[-4000:]}")
        return tag

    def base(self, suite: str) -> str:
        """A minimal Debian: LAB_BASE_<SUITE> if set, else made by mmdebstrap, else pulled."""
        given = os.environ.get(f"LAB_BASE_{suite.upper()}")
        if given:
            return given
        tag = f"{PREFIX}/base:{suite}"
        if self.docker.images.list(name=tag):
            return tag
        if os.geteuid() == 0 and shutil.which("mmdebstrap"):
            say(f"making a minimal Debian {suite} (mmdebstrap, about half a minute)")
            include = "--include=ca-certificates"
            with subprocess.Popen(
                ["mmdebstrap", "--quiet", "--variant=minbase", include, suite, "-"], stdout=subprocess.PIPE
            ) as process:
                assert process.stdout is not None
                self.docker.api.import_image_from_data(process.stdout, repository=tag.split(":")[0], tag=suite)
            if process.returncode:
                self.docker.images.remove(tag, force=True)
                sys.exit(f"lab: mmdebstrap {suite} failed; see its messages above")
        else:
            release = {"trixie": "13", "bookworm": "12"}[suite]
            say(f"pulling debian:{release}-slim")
            self.docker.images.pull("debian", tag=f"{release}-slim").tag(tag)
        return tag

    def host_image(self) -> str:
        """The bare GPU server."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            add_tree(tar, HERE / "images/host")
            for name, source in RECORDINGS.items():
                add(tar, f"recordings/{name}", (ROOT / "tests/fixtures" / source).read_bytes())
        return self.image("host", buffer.getvalue(), {"BASE": self.base("trixie")})

    def vendor_image(self) -> str:
        """The vendor host."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            add(tar, "Dockerfile", (HERE / "images/vendor/Dockerfile").read_bytes())
            add(tar, "lab-init", (HERE / "images/host/lab-init").read_bytes(), 0o755)
            add_tree(tar, HERE / "images/vendor", "vendor")
            add_tree(tar, HERE / "packages", "packages")
        kernel = self.docker.info()["KernelVersion"]
        return self.image("vendor", buffer.getvalue(), {"BASE": self.base("trixie"), "KERNEL": kernel})

    # -- hosts -------------------------------------------------------------------------------------------------

    def container(self, name: str) -> Container | None:
        """The container of that name, or None."""
        try:
            return self.docker.containers.get(name)
        except docker.errors.NotFound:
            return None

    def start(
        self,
        name: str,
        image: str,
        hostname: str,
        ports: Iterable[str],
        aliases: Iterable[str],
        files: bytes,
        made_for: str = "",
        prepare: Callable[[Container], None] | None = None,
    ) -> Container:
        """Creates and starts a systemd host with FILES (a tar) laid over its root, after what PREPARE does to it."""
        network = self.network()
        unified = "" if self.docker.info().get("CgroupVersion") == "2" else "/unified"
        # The hosts' containers ask the vendor for names, so its address must outlive a restart.
        address = network.attrs["IPAM"]["Config"][0]["Subnet"].replace(".0/24", ".10") if name == VENDOR else None
        endpoint = self.docker.api.create_endpoint_config(aliases=list(aliases), ipv4_address=address)
        ports = list(ports)
        mounts = [docker.types.Mount("/sys/fs/cgroup", f"/sys/fs/cgroup{unified}", type="bind")]
        if name == VENDOR and SITE == PREFIX:
            # What was pushed outlives the vendor host.
            mounts.append(docker.types.Mount("/var/lib/docker-registry", f"{SITE}-registry"))
        host_config = self.docker.api.create_host_config(
            mounts=mounts,
            # A fixed port outlives a restart of the host; Docker would draw a new one.
            port_bindings={port: ("127.0.0.1", free_port()) for port in ports},
            **RUN_FLAGS,
        )
        # What `--security-opt systempaths=unconfined` means; the SDK has no word for it.
        host_config.update(MaskedPaths=[], ReadonlyPaths=[], CgroupnsMode="host")
        created = self.docker.api.create_container(
            image,
            name=name,
            hostname=hostname,
            labels={"project": PREFIX, "site": SITE, "lab": self.name, "made-for": made_for},
            environment={"LAB_CGROUP": name},
            networking_config={"EndpointsConfig": {NETWORK: endpoint}},
            ports=[(int(port.split("/")[0]), "tcp") for port in ports],
            volumes=[] if name == VENDOR else [snapshot.STORAGE],
            host_config=host_config,
        )
        container = self.docker.containers.get(created["Id"])
        if prepare is not None:
            prepare(container)
        container.put_archive("/", files)
        container.start()
        return container

    def network(self) -> Network:
        """The network of this site's labs, on a subnet that nothing here uses."""
        for network in self.docker.networks.list(names=[f"^{NETWORK}$"]):
            return network
        problem = ""
        for net in (*(f"10.213.{number}" for number in range(77, 99)), "172.31.77", "192.168.213"):
            pool = docker.types.IPAMPool(subnet=f"{net}.0/24")
            try:
                return self.docker.networks.create(
                    NETWORK,
                    driver="bridge",
                    labels={"project": PREFIX, "site": SITE},
                    ipam=docker.types.IPAMConfig(pool_configs=[pool]),
                )
            except docker.errors.APIError as error:
                problem = str(error.explanation)
        sys.exit(
            f"lab: no free subnet for the lab's network ({problem}); remove a Docker network that is not used (docker network ls)"
        )

    def execute(self, container: Container, *argv: str) -> str:
        """Runs a command in a container; leaves with its output when it fails."""
        code, output = container.exec_run(list(argv))
        text: str = output.decode(errors="replace")
        if code:
            sys.exit(f"lab: {' '.join(argv)} in {container.name} failed:\n{text}")
        return text

    def wait(self, container: Container, *argv: str, seconds: float = 60) -> None:
        """Waits until a command succeeds in a container."""
        deadline = time.monotonic() + seconds
        while container.exec_run(list(argv)).exit_code:
            if time.monotonic() > deadline:
                journal = container.exec_run(["journalctl", "-b", "-n", "30", "--no-pager"]).output.decode(
                    errors="replace"
                )
                sys.exit(f"lab: {container.name}: {' '.join(argv)} not true after {seconds} s\n{journal}")
            time.sleep(0.25)

    def vendor(self) -> Container:
        """Starts the vendor host unless it runs the current image."""
        image = self.vendor_image()
        stocked = self.stocked_tag(image)
        wanted = [tag for tag in (stocked, image) if snapshot.exists(self, tag)]
        current = self.container(VENDOR)
        if current is not None and current.image.id in [self.docker.images.get(tag).id for tag in wanted]:
            if current.status != "running":
                current.start()
        else:
            if current is not None:
                remove(current)
            say("starting the vendor host: nvcr.lab, apt.lab, ngc.lab")
            empty = io.BytesIO()
            tarfile.open(fileobj=empty, mode="w").close()
            current = self.start(
                VENDOR,
                wanted[0],
                "vendor",
                ["5000/tcp", "80/tcp"],
                ["nvcr.lab", "apt.lab", "ngc.lab"],
                empty.getvalue(),
            )
        self.wait(current, "systemctl", "is-active", "--quiet", "lab-registry", "lab-ngc", "lab-dns", "nginx")
        self.execute(current, "lab-keys", LAB_KEY)
        current.reload()
        return current

    def site_files(
        self, name: str, vendor: Container, more: dict[str, str] | None = None, converged: bool = False
    ) -> bytes:
        """What a site lays out before any playbook, as a tar archive over the root: ways in, its CA, its name server."""
        address = address_of(vendor)
        self.state.mkdir(parents=True, exist_ok=True)
        client_key, host_key = self.state / "id_ed25519", self.state / f"host_{name}"
        for key in (client_key, host_key):
            if not key.exists():
                subprocess.run(
                    ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key.name, "-f", str(key)], check=True
                )
        authority = self.execute(vendor, "cat", "/etc/lab/ca.crt")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            add(tar, "etc/ssh/ssh_host_ed25519_key", host_key.read_bytes(), 0o600)
            add(tar, "etc/ssh/ssh_host_ed25519_key.pub", host_key.with_suffix(".pub").read_bytes())
            add(tar, "home/ops/.ssh/authorized_keys", client_key.with_suffix(".pub").read_bytes(), 0o600, uid=1000)
            add(tar, "opt/lab-driver/gpus", GPUS.get(name, "h200.xml"))
            zone, language = place_of(name)
            add_link(tar, "etc/localtime", f"/usr/share/zoneinfo/{zone}")
            add(tar, "etc/timezone", f"{zone}\n")
            # Of logins and of units: whoever runs a command there, by whatever way.
            for path in ("etc/default/locale", "etc/locale.conf"):
                add(tar, path, f"LANG={language}\n")
            add(tar, "usr/local/share/ca-certificates/lab.crt", authority)
            if not converged:
                # Of containers on the host.
                add(tar, DAEMON_JSON, json.dumps({"dns": [address]}, indent=2) + "\n")
            # A host may have no cgroup controllers, and overlays want what is no overlay.
            add(tar, "etc/containers/containers.conf", f'[containers]\ndns_servers = ["{address}"]\npids_limit = 0\n')
            add(tar, "etc/containers/storage.conf", PODMAN_STORAGE)
            for path, text in (more or {}).items():
                add(tar, path, text)
        return buffer.getvalue()

    def machine(self, name: str, vendor: Container) -> dict[str, int]:
        """Starts one bare GPU host as a virtual machine, unless it runs; returns its ports on loopback."""
        machine, record = Machine(name, self.state), self.state / f"{name}.json"
        disk = self.machine_disk()
        made_for = f"{vendor.image.id} {disk}"
        if machine.pid() is not None:
            running: dict[str, Any] = json.loads(record.read_text())
            if running["made_for"] == made_for:
                return dict(running["ports"])
            machine.stop()
        address = address_of(vendor)
        files = {
            "etc/hostname": f"{name}\n",
            "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n{address} nvcr.lab apt.lab ngc.lab\n",
            # The name server that qemu gives to its machines.
            "etc/resolv.conf": "nameserver 10.0.2.3\n",
        }
        ports = {port: free_port() for port in PORTS}
        archive = self.site_files(name, vendor, files)
        record.write_text(json.dumps({"made_for": made_for, "ports": ports}))
        say(f"booting {name}")
        machine.start(disk, archive, ports)
        return ports

    def machine_disk(self) -> pathlib.Path:
        """Folder of the bare GPU server's disk, kernel and initramfs."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            add_tree(tar, HERE / "images/machine")
        image = self.image("machine", buffer.getvalue(), {"HOST": self.host_image()})
        folder = STATE / "disks" / image.split(":")[1]
        if not (folder / "complete").exists():
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.mkdir(parents=True)
            say("writing the disk of the virtual machine")
            self.docker.containers.run(
                image,
                entrypoint=["/usr/sbin/lab-disk"],
                cap_add=["SYS_ADMIN"],
                security_opt=["apparmor=unconfined", "seccomp=unconfined"],
                volumes={str(folder): {"bind": "/out", "mode": "rw"}},
                remove=True,
            )
            (folder / "complete").touch()
        return folder

    def host(self, name: str, vendor: Container, converged: bool = False) -> Container:
        """Starts one GPU host, bare or converged; an existing one is left as it is."""
        current = self.container(f"{SITE}-{self.name}-{name}")
        image = self.converged_tag(name) if converged else self.host_image()
        if converged and not snapshot.exists(self, image):
            sys.exit(f"lab: there is no converged {name} of this checkout; make one by: lab.py converge --hosts {name}")
        made_for = f"{vendor.image.id} {image} {self.state}"
        if current is not None and current.labels.get("made-for") == made_for:
            if current.status != "running":
                current.start()
            return current
        if current is not None:
            # Made by another checkout or from another image, or trusting another vendor.
            remove(current)
        container = self.start(
            f"{SITE}-{self.name}-{name}",
            image,
            name,
            [f"{port}/tcp" for port in PORTS],
            [name, f"{name}.{self.name}"],
            self.site_files(name, vendor, converged=converged),
            made_for,
            (lambda made: self.fill(made, image, address_of(vendor))) if converged else None,
        )
        self.wait(container, "systemctl", "is-active", "--quiet", "ssh")
        self.execute(container, "chown", "-R", "ops:ops", "/home/ops/.ssh")
        self.execute(container, "update-ca-certificates")
        if converged:
            # It was left serving, and tests begin with that.
            ready = "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v1/health/ready', timeout=2)"
            self.wait(container, "python3", "-c", ready, seconds=300)
        return container

    def fill(self, container: Container, image: str, address: str) -> None:
        """Gives a host that was created from a converged one, and not started yet, its engines' storage and its site's name server."""
        target = snapshot.storage(container)
        assert target is not None
        snapshot.copy(self, image, snapshot.volume_of(image), target)
        found = io.BytesIO(b"".join(container.get_archive(f"/{DAEMON_JSON}")[0]))
        with tarfile.open(fileobj=found) as tar:
            file = tar.extractfile(pathlib.PurePosixPath(DAEMON_JSON).name)
            assert file is not None
            config = json.load(file)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            add(tar, DAEMON_JSON, json.dumps({**config, "dns": [address]}, indent=2) + "\n")
        container.put_archive("/", buffer.getvalue())

    def stocked_tag(self, vendor_image: str) -> str:
        """Name of the vendor with everything in its registry."""
        build = nim_builder()
        images = [build.fingerprint(flavour, engine) for _, _, flavour, engine in IMAGES if engine in snapshot.STOCK]
        return snapshot.stocked_tag(self, vendor_image, [*images, build.weights_fingerprint()])

    def converged_tag(self, name: str) -> str:
        """Name of the host on which this checkout's site.yml has run."""
        return snapshot.converged_tag(self, name, self.host_image(), self.stocked_tag(self.vendor_image()), ROOT)

    def write_state(self, ports: dict[str, dict[str, int]], vendor: Container) -> None:
        """Writes what inventories need to .lab/NAME: ssh_config, known_hosts, ports.json, fingerprint of the package key."""
        blocks, known = [], []
        for name in ports:
            blocks.append(
                f"Host {name} {name}.{self.name}\n  HostName 127.0.0.1\n  HostKeyAlias {name}\n  Port {ports[name]['22']}\n  User ops\n"
                f'  IdentityFile "{self.state}/id_ed25519"\n  IdentitiesOnly yes\n'
                f'  UserKnownHostsFile "{self.state}/known_hosts"\n  StrictHostKeyChecking yes\n'
                # A host that goes down does not always say so.
                "  ServerAliveInterval 15\n  ServerAliveCountMax 8\n"
            )
            known.append(f"{name} {(self.state / f'host_{name}.pub').read_text()}")
        (self.state / "ssh_config").write_text("\n".join(blocks))
        (self.state / "known_hosts").write_text("".join(known))
        listing = self.execute(vendor, "gpg", "--homedir", "/etc/lab/gnupg", "--list-keys", "--with-colons")
        fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
        (self.state / "gpgkey.fingerprint").write_text(fingerprint + "\n")
        (self.state / "ports.json").write_text(json.dumps(ports, indent=2) + "\n")

    # -- images of the registry --------------------------------------------------------------------------------

    def stand_in(self, flavour: str, engine: str) -> str:
        """Builds one image of the NIM stand-in unless it is there; returns its local tag."""
        nim_build = nim_builder()
        local = f"{PREFIX}/{flavour}-{engine}:{nim_build.fingerprint(flavour, engine)}"
        if not self.docker.images.list(name=local):
            say(f"building the NIM stand-in: {flavour}, {engine} engine")
            base = self.base("bookworm" if engine == "vllm" else "trixie")
            nim_build.build(self.docker, base, flavour, engine, local, cache=STATE / "build")
        return local

    def publish(self, vendor: Container, engines: set[str]) -> None:
        """Builds the NIM stand-in and pushes what the registry does not hold yet; lays out the weights."""
        nim_build = nim_builder()
        complete = f"/srv/ngc/.complete-{nim_build.weights_fingerprint()}"
        if vendor.exec_run(["test", "-e", complete]).exit_code:
            vendor.exec_run(["mkdir", "-p", "/srv/ngc"])
            vendor.put_archive("/srv/ngc", nim_build.weights_archive())
            self.execute(vendor, "touch", complete)
        port = vendor.attrs["HostConfig"]["PortBindings"]["5000/tcp"][0]["HostPort"]
        auth = {"username": "$oauthtoken", "password": LAB_KEY}
        for repository, tag, flavour, engine in IMAGES:
            if engine not in engines:
                continue
            local = self.stand_in(flavour, engine)
            image = self.docker.images.get(local)
            if pushed_config(int(port), repository, tag, auth) == image.id:
                continue
            say(f"pushing {repository}:{tag} ({image.attrs['Size'] / 1e6:.0f} MB)")
            # Docker trusts a registry on loopback, so the push needs no CA on this machine.
            remote = f"127.0.0.1:{port}/{repository}"
            image.tag(remote, tag)
            for line in self.docker.images.push(remote, tag=tag, auth_config=auth, stream=True, decode=True):
                if "error" in line:
                    sys.exit(f"lab: pushing {repository}:{tag} failed: {line['error']}")
            self.docker.images.remove(f"{remote}:{tag}")

    # -- commands ----------------------------------------------------------------------------------------------

    def prepare(self, engines: set[str]) -> None:
        """Builds the images that are not there yet, side by side: much of each is a package manager on one core."""
        self.base("trixie")
        # One after another: the second is made of the first one's layers.
        flavours = dict.fromkeys(
            (flavour, engine) for _repository, _tag, flavour, engine in IMAGES if engine in engines
        )
        with concurrent.futures.ThreadPoolExecutor() as pool:
            engines_images = pool.submit(lambda: [self.stand_in(*each) for each in flavours])
            for each in [pool.submit(self.host_image), pool.submit(self.vendor_image)]:
                each.result()
            engines_images.result()

    def images(self, engines: set[str]) -> None:
        """Builds what labs are made from: the bare host, the stocked vendor, and the stand-in with further engines."""
        self.prepare(set(snapshot.STOCK))
        tag = self.stocked_tag(self.vendor_image())
        if not snapshot.exists(self, tag):
            vendor = self.vendor()
            self.publish(vendor, set(snapshot.STOCK))
            say(f"keeping the stocked vendor {tag}")
            snapshot.keep(self, vendor, tag)
            self.close()
        for _repository, _tag, flavour, engine in IMAGES:
            if engine in engines - set(snapshot.STOCK):
                self.stand_in(flavour, engine)

    def converge(self, hosts: list[str]) -> None:
        """Makes the converged hosts of this checkout that are not there yet."""
        wanted = [name for name in hosts if not snapshot.exists(self, self.converged_tag(name))]
        if wanted:
            self.up(wanted, {"reference"})
        for name in wanted:
            tag = self.converged_tag(name)
            say(f"running site.yml on {name}")
            snapshot.converge(ROOT, name, self.name)
            container = self.container(f"{SITE}-{self.name}-{name}")
            assert container is not None
            say(f"keeping {tag}")
            snapshot.keep(self, container, tag)
        self.down(everything=False)

    def up(self, hosts: list[str], engines: set[str], converged: bool = False) -> None:
        """Brings vendor and hosts up."""
        self.prepare(engines)
        vendor = self.vendor()
        self.publish(vendor, engines)
        ports = {}
        for name in hosts:
            if name.startswith("vm"):
                ports[name] = self.machine(name, vendor)
            else:
                ports[name] = published(self.host(name, vendor, converged))
        self.write_state(ports, vendor)
        for name in hosts:
            self.wait_for_login(name)
        say(f"lab {self.name} is up: {', '.join(ports)}")

    def wait_for_login(self, name: str, seconds: float = 300) -> None:
        """Waits until a host lets its operator in."""
        command = [
            "ssh",
            "-F",
            str(self.state / "ssh_config"),
            "-o",
            "ConnectTimeout=5",
            "-o",
            "BatchMode=yes",
            name,
            "true",
        ]
        deadline = time.monotonic() + seconds
        while (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
            if time.monotonic() > deadline:
                console = Machine(name, self.state).console
                last = console.read_text(errors="replace")[-2000:] if console.exists() else ""
                sys.exit(f"lab: {name} does not let anybody in after {seconds} s: {done.stderr.strip()}\n{last}")
            time.sleep(0.5)

    def down(self, everything: bool) -> None:
        """Removes this lab's hosts, or all that any lab left: containers, network, volume, images."""
        labels = [f"project={PREFIX}"] if everything else [f"site={SITE}", f"lab={self.name}"]
        for container in self.docker.containers.list(all=True, filters={"label": labels}):
            if everything or container.name != VENDOR:
                remove(container)
        if SITE != PREFIX and not everything:
            self.close()
        # The files beside the labs' folders tell which engine is ours to stop.
        for folder in STATE.glob("*/") if everything else [self.state]:
            for process in folder.glob("vm*.pid"):
                Machine(process.stem, folder).stop()
            shutil.rmtree(folder, ignore_errors=True)
        if everything:
            for network in self.docker.networks.list(filters={"label": f"project={PREFIX}"}):
                network.remove()
            for volume in self.docker.volumes.list(filters={"name": f"^{PREFIX}-"}):
                self.remove_volume(volume.name)
            # Newest first: an image cannot go before those that were made from it.
            images = sorted(self.docker.images.list(), key=lambda image: str(image.attrs["Created"]), reverse=True)
            for image in images:
                for tag in image.tags:
                    if tag.startswith(f"{PREFIX}/"):
                        self.docker.images.remove(tag, force=True)
            # Stages that a build passed through on its way to another one.
            self.docker.images.prune(filters={"dangling": True, "label": STAND_IN})

    def close(self) -> None:
        """Removes vendor and network of a site that has no lab left."""
        left = self.docker.containers.list(all=True, filters={"label": [f"project={PREFIX}", f"site={SITE}"]})
        if any(container.name != VENDOR for container in left):
            return
        for container in left:
            remove(container)
        for network in self.docker.networks.list(names=[f"^{NETWORK}$"]):
            network.remove()

    def remove_volume(self, name: str) -> None:
        """Removes a volume, if there is one of that name."""
        try:
            self.docker.volumes.get(name).remove(force=True)
        except docker.errors.NotFound:
            return


def remove(container: Container) -> None:
    """Removes a container. Where LAB_COST names a file, the seconds of a core that it used are noted there."""
    if note := os.environ.get("LAB_COST"):
        used = container.stats(stream=False, one_shot=True)["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
        with pathlib.Path(note).open("a") as file:
            file.write(f"{container.name} {used:.1f}\n")
    container.remove(force=True, v=True)


def nim_builder() -> Any:
    """The module that builds the NIM stand-in; its folder is no package."""
    spec = importlib.util.spec_from_file_location("nim_build", HERE / "images/nim/build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def address_of(vendor: Container) -> str:
    """Address of the vendor host in its site's network."""
    return str(vendor.attrs["NetworkSettings"]["Networks"][NETWORK]["IPAddress"])


def published(container: Container) -> dict[str, int]:
    """The ports of a container that are reached on loopback."""
    container.reload()
    bindings = container.attrs["HostConfig"]["PortBindings"]
    return {port.split("/")[0]: int(places[0]["HostPort"]) for port, places in bindings.items()}


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now, below those that outgoing connections get.

    Labs that start side by side must not draw the same one, nor may a connection take it while a host is down.
    """
    while True:
        port = secrets.choice(PORT_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def pushed_config(port: int, repository: str, tag: str, auth: dict[str, str]) -> str | None:
    """The image id (config digest) that the registry holds under a tag, or None."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    url = f"https://127.0.0.1:{port}/v2/{repository}/manifests/{tag}"
    passwords.add_password(None, url, auth["username"], auth["password"])
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPBasicAuthHandler(passwords),
    )
    request = urllib.request.Request(url, headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"})
    try:
        with opener.open(request, timeout=10) as answer:
            return str(json.load(answer).get("config", {}).get("digest"))
    except urllib.error.HTTPError:
        return None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="lab.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up")
    up.add_argument("--name", default="demo")
    up.add_argument("--hosts", default="gpu01,gpu02")
    engines = ("reference", "vllm", "families")
    up.add_argument("--engine", choices=engines, default="reference")
    up.add_argument("--from", dest="start", choices=("bare", "converged"), default="bare")
    images = commands.add_parser("images")
    images.add_argument("--engine", choices=engines, default="reference")
    converge = commands.add_parser("converge")
    converge.add_argument("--hosts", default="gpu01")
    down = commands.add_parser("down")
    down.add_argument("--name", default="demo")
    down.add_argument("--all", action="store_true")
    requests = commands.add_parser("requests")
    requests.add_argument("--reset", action="store_true")
    keys = commands.add_parser("keys")
    keys.add_argument("key", nargs="*", default=[LAB_KEY])
    args = parser.parse_args()
    lab = Lab(getattr(args, "name", args.command))
    if args.command == "up":
        lab.up(args.hosts.split(","), {"reference", args.engine}, args.start == "converged")
    elif args.command == "images":
        lab.images({args.engine})
    elif args.command == "converge":
        lab.converge(args.hosts.split(","))
    elif args.command == "down":
        lab.down(args.all)
    else:
        vendor = lab.container(VENDOR)
        if vendor is None:
            sys.exit("lab: no vendor host runs; start one by: make lab")
        if args.command == "keys":
            lab.execute(vendor, "lab-keys", *args.key)
        else:
            port = vendor.attrs["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"]
            method = "DELETE" if args.reset else "GET"
            request = urllib.request.Request(f"http://127.0.0.1:{port}/lab/requests", method=method)
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
                print(answer.read().decode())


if __name__ == "__main__":
    main()
