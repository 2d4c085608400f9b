# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what the operator wrote and what the host has, to fully resolved services and the changes they need. Private.

Pure functions over plain data; every conflict of every service is found before any is reported.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _gpus
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import (
    CONTRACTS,
    RESERVED_VARIABLES,
    SECRET_VARIABLES,
    WEIGHT_VARIABLES,
)

#: Raised with the unit template: a new form of unit restarts every service once.
UNIT_FORMAT = 1
KEYS = {
    "name",
    "image",
    "tag",
    "digest",
    "state",
    "contract",
    "gpus",
    "gpu_shared",
    "port",
    "bind_address",
    "model",
    "profile",
    "env",
    "shm_size",
    "ulimits",
    "start_timeout",
    "stop_timeout",
    "uid",
    "gid",
    "cache_size_gb",
    "cache_path",
    "cache_read_only",
    "remove_cache",
    "verify",
}
GPU_KEYS = {"count", "memory_gb"}
VERIFY_KEYS = {"prompt", "messages", "max_tokens", "temperature", "probes", "expect_regex", "request_timeout"}
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")
_IMAGE = re.compile(r"(?P<registry>[A-Za-z0-9.-]+(?::\d+)?)/(?P<path>[a-z0-9]+(?:[._/-][a-z0-9]+)*)")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: Docker and systemd give :, %, $, quotes and spaces a meaning.
_DIRECTORY = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._+@=,-]+){2,}")
_SIZE = re.compile(r"\d+(?:\.\d+)?(?:[kmgt]i?)?b?", re.IGNORECASE)


class ResolveError(ValueError):
    """Carries every problem found, one sentence each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"- {problem}" for problem in self.problems))


def near(word: str, known: Iterable[str]) -> str:
    """ " Did you mean X?" where X is the nearest known word; empty when none is near."""
    match = difflib.get_close_matches(word, sorted(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def digest_of(value: Any) -> str:
    """SHA-256 of plain data in canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def as_int(value: Any) -> int | None:
    """The integer that a YAML value, a survey answer or an extra variable means; None if it means none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int(value)
    text = str(value).strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def as_bool(value: Any) -> bool:
    """Truth of a YAML value or of a survey answer."""
    return value if isinstance(value, bool) else str(value).strip().lower() in ("1", "yes", "true", "on", "y", "t")


class Service:
    """Resolves one entry of nim_services; collects problems instead of raising."""

    def __init__(self, spec: Mapping[str, Any], host: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.spec, self.host, self.defaults = spec, host, defaults
        self.name = str(spec.get("name", ""))
        self.problems: list[str] = []
        self.notes: list[str] = []

    def problem(self, text: str) -> None:
        """Notes a problem of this service."""
        self.problems.append(f"service {self.name or '(without a name)'}: {text}")

    def number(self, key: str, default: Any, low: int, high: int) -> int:
        """An integer option within bounds."""
        value = as_int(self.spec.get(key, default))
        if value is None or not low <= value <= high:
            self.problem(f"{key} is {self.spec.get(key, default)!r}, wanted an integer from {low} to {high}.")
            return 0
        return value

    def choice(self, key: str, default: str, known: Iterable[str]) -> str:
        """An option with named values."""
        value = str(self.spec.get(key, default))
        if value not in set(known):
            self.problem(f"{key} is {value!r}, wanted one of {', '.join(sorted(known))}.{near(value, known)}")
        return value

    def image(self) -> dict[str, Any]:
        """Registry, repository, tag, digest and the reference to pull."""
        image, tag, digest = (str(self.spec.get(key) or "") for key in ("image", "tag", "digest"))
        match = _IMAGE.fullmatch(image)
        if not match:
            self.problem(
                f"image is {image!r}, wanted REGISTRY/PATH without tag, such as nvcr.io/nim/meta/llama-3.1-8b-instruct;"
                " the tag goes into 'tag', a digest into 'digest'."
            )
        if not tag and not digest:
            self.problem('has neither tag nor digest; a service is pinned by tag: "1.8.6" or digest: sha256:….')
        if tag and (not _TAG.fullmatch(tag) or tag == "latest"):
            self.problem(
                f"tag is {tag!r}, wanted a version such as \"1.8.6\" ('latest' moves under a running service)."
            )
        if digest and not _DIGEST.fullmatch(digest):
            self.problem(f"digest is {digest!r}, wanted sha256: and 64 hexadecimal digits.")
        return {
            "registry": match.group("registry") if match else "",
            "repository": image,
            "tag": tag,
            "digest": digest,
            "image": f"{image}@{digest}" if digest else f"{image}:{tag}",
        }

    def contract(self, tag: str) -> str:
        """Name of the image generation."""
        name = self.choice("contract", "auto", ["auto", *CONTRACTS])
        if name != "auto":
            return name
        match = re.match(r"v?(\d+)(?:\.|$)", tag)
        for known, facts in CONTRACTS.items():
            if match and int(match.group(1)) in facts["majors"]:
                return known
        self.problem(
            f"contract cannot be told from tag {tag!r}; say contract: classic (NIM 1.x) or contract: llm (NIM LLM 2.x, 3.x)."
        )
        return next(iter(CONTRACTS))

    def gpus(self) -> list[str]:
        """CDI device names (index, uuid, GPU:PART of MIG, or ``all``) of the GPUs the service names; none when it says how many."""
        wanted = self.spec.get("gpus", "all")
        present = _gpus.devices(self.host.get("gpus") or [])
        if wanted == "all":
            return ["all"]
        if isinstance(wanted, Mapping):
            return []
        items = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if not items:
            self.problem("gpus is an empty list; name indices or uuids, or say gpus: all.")
        names = []
        for item in items:
            index = as_int(item)
            name = str(item) if index is None else str(index)
            parts = _gpus.divided(name, self.host.get("gpus") or [])
            # A host whose driver does not answer yet has whatever is named, by a number that can be one.
            if _gpus.find(name, present) if self.host.get("gpus") else (index is None or index >= 0):
                names.append(name)
            elif parts:
                self.problem(f"gpus names {item!r}, which MIG divides; name its parts: {', '.join(parts)}.")
            else:
                self.problem(f"gpus names {item!r}; this host has {', '.join(map(str, present))}.")
        if len({device.key if (device := _gpus.find(name, present)) else name for name in names}) != len(names):
            self.problem(f"gpus names one GPU twice: {', '.join(names)}.")
        return names

    def gpu_request(self) -> dict[str, int] | None:
        """How many GPUs of which memory the service wants, when it does not name them."""
        wanted = self.spec.get("gpus")
        if not isinstance(wanted, Mapping):
            return None
        for key in wanted:
            if key not in GPU_KEYS:
                self.problem(f"gpus has the unknown key {key!r}.{near(str(key), GPU_KEYS)}")
        count, memory = as_int(wanted.get("count", 1)), as_int(wanted.get("memory_gb", 0))
        if count is None or count < 1:
            self.problem(f"gpus.count is {wanted.get('count')!r}, wanted an integer from 1.")
        if memory is None or memory < 0:
            self.problem(
                f"gpus.memory_gb is {wanted.get('memory_gb')!r}, wanted an integer of GB that each GPU has at least."
            )
        return {"count": max(count or 1, 1), "memory_bytes": max(memory or 0, 0) * 10**9}

    def environment(self, contract: Mapping[str, Any]) -> dict[str, str]:
        """Variables of the container, contract defaults first; no secret and no line break gets in."""
        given = self.spec.get("env") or {}
        if not isinstance(given, Mapping):
            self.problem(f"env is {type(given).__name__}, wanted a dictionary of variables.")
            given = {}
        env = dict(contract["env"])
        if self.spec.get("profile"):
            env["NIM_MODEL_PROFILE"] = str(self.spec["profile"])
        for key, value in given.items():
            # YAML true is "true" to a container, as in a compose file.
            text = str(value).lower() if isinstance(value, bool) else str(value)
            if key in SECRET_VARIABLES:
                self.problem(
                    f"env has {key}; a key there is shown by docker inspect. Set ngc_api_key instead: it is used to stage."
                )
            elif key in RESERVED_VARIABLES:
                self.problem(f"env has {key}; {RESERVED_VARIABLES[key]} instead.")
            elif key in contract["renamed"]:
                self.problem(
                    f"env has {key}, which images of this generation do not read; wanted {contract['renamed'][key]}."
                )
            elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(key)):
                self.problem(f"env has {key!r}, which is no name of a variable.")
            elif "\n" in text:
                self.problem(f"env variable {key} has a line break, which an env file cannot hold.")
            else:
                env[str(key)] = text
                self.spelling(str(key), contract["variables"])
        return env

    def spelling(self, name: str, known: Iterable[str]) -> None:
        """Notes a variable that is nearly a known one: images ignore what they do not know."""
        match = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.85)
        if name.startswith("NIM_") and match and match[0] != name:
            self.notes.append(
                f"service {self.name}: env has {name}, which NIM is not known to read. Did you mean {match[0]}?"
            )

    def bind_address(self) -> str:
        """Address that the endpoint listens on."""
        address = str(self.spec.get("bind_address") or self.defaults["bind_address"])
        try:
            ipaddress.ip_address(address)
        except ValueError:
            self.problem(f"bind_address is {address!r}, wanted an IP address such as 127.0.0.1, 0.0.0.0 or ::1.")
        return address

    def cache(self) -> dict[str, Any]:
        """Where the cache is, whether it is only read, and where the marker of what is staged there is kept."""
        path, default = str(self.spec.get("cache_path") or ""), f"{self.defaults['cache_root']}/{self.name}"
        if path and not _DIRECTORY.fullmatch(path):
            self.problem(
                f"cache_path is {path!r}, wanted an absolute directory such as /mnt/nim/llama, of plain characters."
            )
        read_only = as_bool(self.spec.get("cache_read_only", False))
        return {
            "cache": path or default,
            "cache_read_only": read_only,
            "cache_marker": "host" if path or read_only else "cache",
        }

    def shm_size(self, contract: Mapping[str, Any]) -> str:
        """Size of the shared memory of the container, as docker run takes it."""
        size = str(self.spec.get("shm_size") or contract["shm_size"])
        if not _SIZE.fullmatch(size):
            self.problem(f"shm_size is {size!r}, wanted a size such as 16g.")
        return size

    def ulimits(self, contract: Mapping[str, Any]) -> list[str]:
        """Resource limits of the container, as docker run takes them."""
        given = self.spec.get("ulimits")
        if given is None:
            return list(contract["ulimits"])
        wrong = (
            [item for item in given if not re.fullmatch(r"[a-z]+=-?\d+(:-?\d+)?", str(item))]
            if isinstance(given, (list, tuple))
            else [given]
        )
        if wrong:
            self.problem(f"ulimits has {wrong[0]!r}, wanted a list of items such as nofile=65536 or memlock=-1:-1.")
            return []
        return [str(item) for item in given]

    def verify(self) -> dict[str, Any]:
        """Options for the verifying completion."""
        given = self.spec.get("verify") or {}
        if not isinstance(given, Mapping):
            self.problem(f"verify is {type(given).__name__}, wanted a dictionary such as {{prompt: …}}.")
            return {}
        for key in given:
            if key not in VERIFY_KEYS:
                self.problem(f"verify has the unknown key {key!r}.{near(str(key), VERIFY_KEYS)}")
        return {key: value for key, value in given.items() if key in VERIFY_KEYS}

    def resolve(self) -> dict[str, Any]:
        """The resolved service; problems are in self.problems."""
        if not _NAME.fullmatch(self.name):
            self.problem(f"name is {self.name!r}, wanted lower-case letters, digits and hyphens, at most 48.")
        for key in self.spec:
            if key not in KEYS:
                self.problem(f"has the unknown key {key!r}.{near(str(key), KEYS)}")
        state = self.choice("state", "present", ("present", "absent"))
        common = {
            "name": self.name,
            "state": state,
            "unit": f"nim-{self.name}.service",
            "container": f"nim-{self.name}",
            "cache": f"{self.defaults['cache_root']}/{self.name}",
            "unit_path": f"/etc/systemd/system/nim-{self.name}.service",
            "env_path": f"{self.defaults['config_dir']}/{self.name}.env",
            "record_path": f"{self.defaults['state_dir']}/{self.name}.json",
        }
        if state == "absent":
            # What is only read is somebody else's.
            read_only = as_bool(self.spec.get("cache_read_only", False))
            return {**common, "remove_cache": as_bool(self.spec.get("remove_cache", False)) and not read_only}
        image = self.image()
        contract_name = self.contract(image["tag"])
        contract = CONTRACTS.get(contract_name, CONTRACTS["classic"])
        bind = self.bind_address()
        port = self.number("port", 8000, 1, 65535)
        # An endpoint bound everywhere is asked on loopback.
        probe = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)
        prefetch = list(contract["prefetch"])
        if self.spec.get("profile"):
            prefetch += [contract["prefetch_profile_option"], str(self.spec["profile"])]
        env = self.environment(contract)
        gpus = self.gpus()
        service = {
            **common,
            **image,
            "contract": contract_name,
            "model": str(self.spec.get("model") or ""),
            "gpus": gpus,
            "gpu_request": self.gpu_request(),
            "gpu_shared": as_bool(self.spec.get("gpu_shared", False)),
            "memory_variable": contract["memory_variable"],
            "bind_address": bind,
            "port": port,
            "publish": f"{f'[{bind}]' if ':' in bind else bind}:{port}:{contract['container_port']}",
            "url": f"http://{probe}:{port}",
            "ready_path": contract["ready_path"],
            **self.cache(),
            "cache_mount": contract["cache_mount"],
            "cache_bytes": self.number("cache_size_gb", self.defaults.get("cache_size_gb", 0), 0, 100000) * 10**9,
            "uid": self.number("uid", contract["uid"], 0, 2**31),
            "gid": self.number("gid", contract["gid"], 0, 2**31),
            "env": env,
            "shm_size": self.shm_size(contract),
            "ulimits": self.ulimits(contract),
            "start_timeout": self.number("start_timeout", contract["start_timeout"], 1, 86400),
            "stop_timeout": self.number("stop_timeout", contract["stop_timeout"], 1, 3600),
            "prefetch": prefetch,
            "verify": self.verify(),
            "notes": self.notes,
        }
        # What the weights in the cache depend on; a change stages again.
        weights = {key: service[key] for key in ("image", "prefetch", "cache_mount")}
        given = self.spec.get("env")
        if isinstance(given, Mapping):
            # The option `profile` is in prefetch already.
            weights.update({key: env[key] for key in WEIGHT_VARIABLES if key in given and key in env})
        if service["cache_marker"] == "host":
            # What is staged in one place, or only read, is not what is staged in another.
            weights.update({key: service[key] for key in ("cache", "cache_read_only")})
        service["stage_key"] = digest_of(weights)
        return service


#: What a running container depends on; a change of it restarts the service.
_RUNTIME = (
    "image",
    "devices",
    "publish",
    "cache",
    "cache_mount",
    "env",
    "shm_size",
    "ulimits",
    "stop_timeout",
    "env_path",
)


def _finish(service: dict[str, Any]) -> None:
    """Adds what follows from the GPUs that the service got."""
    service["devices"] = [f"nvidia.com/gpu={gpu}" for gpu in service["gpus"]]
    runtime = {key: service[key] for key in _RUNTIME}
    if service["cache_read_only"]:
        # Only then: the hashes of all other services are what they were.
        runtime["cache_read_only"] = True
    service["config_hash"] = digest_of({"format": UNIT_FORMAT, **runtime})


def conflicts(services: list[dict[str, Any]], host: Mapping[str, Any]) -> list[str]:
    """Problems between services of one host: names, ports and GPUs claimed twice."""
    problems = []
    seen: dict[str, str] = {}
    ports: dict[int, str] = {}
    placed = []
    for service in services:
        name = service["name"]
        if name in seen:
            problems.append(f"service {name}: is listed twice; give the second one another name.")
            continue
        seen[name] = name
        if service["state"] == "absent":
            continue
        # A port that is none (0) was reported already.
        other = ports.setdefault(service["port"], name) if service["port"] else name
        if other != name:
            problems.append(
                f"service {name}: port {service['port']} is also the port of service {other}; give one of them another."
            )
        placed.append(service)
    return problems + _gpus.conflicts(placed, host)


def resolve_services(services: Any, host: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Resolves nim_services of one host.

    HOST is the result of gpu_host_info; DEFAULTS holds ``cache_root``, ``config_dir``, ``state_dir``, ``bind_address``
    and ``cache_size_gb``. Raises ResolveError with every problem of every service.
    """
    if not isinstance(services, (list, tuple)):
        raise ResolveError([f"nim_services is {type(services).__name__}, wanted a list of services."])
    resolved, problems = [], []
    for spec in services:
        if not isinstance(spec, Mapping):
            problems.append(f"nim_services has {spec!r}, wanted a dictionary with name, image and tag.")
            continue
        service = Service(spec, host, defaults)
        resolved.append(service.resolve())
        problems += service.problems
    present = [service for service in resolved if service["state"] != "absent"]
    problems += _gpus.allocate(present, host)
    problems += conflicts(resolved, host)
    if problems:
        raise ResolveError(problems)
    for placed in present:
        _finish(placed)
    return resolved


def service_changes(services: list[dict[str, Any]], host: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What has to be done on a host: services to ``stage``, to ``deploy`` and to ``remove``.

    Compares the desired services with what runs (the hash on the container), never with "a file changed": a play that
    was interrupted heals on its next run. Each item is the service with ``reasons``.
    """
    stage, deploy, remove = [], [], []
    for service in services:
        now = (host.get("services") or {}).get(service["name"]) or {}
        unit, container, record, cache = (now.get(key) or {} for key in ("unit", "container", "record", "cache"))
        if service["state"] == "absent":
            present = [("unit", unit.get("exists")), ("container", container), ("record", record)]
            present.append(("cache", cache and service["remove_cache"]))
            reasons = [f"{what} present" for what, there in present if there]
            if reasons:
                remove.append({**service, "reasons": reasons})
            continue
        reasons = []
        if (cache.get("staged") or {}).get("key") != service["stage_key"]:
            reasons.append(
                "weights not staged" if not cache.get("staged") else "staged weights are of another image or profile"
            )
        # A cache that is only read is somebody else's.
        own = cache and not service["cache_read_only"]
        if own and (cache["uid"], cache["gid"]) != (service["uid"], service["gid"]):
            reasons.append(f"cache belongs to {cache['uid']}:{cache['gid']}, wanted {service['uid']}:{service['gid']}")
        images = host.get("images") or {}
        staged = (cache.get("staged") or {}).get("image_reference")
        if staged and staged not in images and staged not in images.values():
            reasons.append("image is not on the host")
        if reasons:
            stage.append({**service, "reasons": reasons})
        reasons = []
        if record.get("config_hash") != service["config_hash"]:
            reasons.append("configuration changed" if record else "new service")
        if record and any(now["files"].get(path) != want for path, want in record.get("files", {}).items()):
            reasons.append("files were edited or lost")
        if not container.get("running") or unit.get("active") != "active":
            reasons.append(f"unit is {unit.get('active') or 'absent'}")
        elif container.get("config_hash") != service["config_hash"]:
            reasons.append("running container has another configuration")
        if unit.get("exists") and not unit.get("enabled"):
            reasons.append("unit is not enabled")
        if not record.get("verified"):
            reasons.append("never verified")
        if reasons:
            deploy.append({**service, "reasons": reasons})
    return {"stage": stage, "deploy": deploy, "remove": remove}
