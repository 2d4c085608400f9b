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
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import (
    _gate,
    _gpus,
    _names,
    _occupancy,
    _secrets,
    _staged,
    _unlisted,
)
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import (
    BROUGHT_PATHS,
    CONTRACTS,
    GRPC_VARIABLES,
    NATIVE_PROTOCOL,
    OWN_COUNT,
    PORT_VARIABLES,
    PROOFS_WITHOUT_CHAT,
    PROTOCOL_LABEL,
    RESERVED_VARIABLES,
    WEIGHT_VARIABLES,
    WITHOUT_CHAT,
)
from ansible_collections.baremetal.nim.plugins.module_utils._fault import shorten
from ansible_collections.baremetal.nim.plugins.module_utils._gate import shown
from ansible_collections.baremetal.nim.plugins.module_utils._reasons import listed
from ansible_collections.baremetal.nim.plugins.module_utils._service_probes import WITHOUT_CHAT as NO_CHAT_PROBES
from ansible_collections.baremetal.nim.plugins.module_utils._verify_options import unread_options
from ansible_collections.baremetal.nim.plugins.module_utils._written import (
    BOOLEANS,
    Entry,
    Sources,
    as_bool,
    as_int,
    near,
    number_problem,
    seen,
    text_problem,
)
from ansible_collections.baremetal.nim.plugins.module_utils._written import shown as said

#: Raised with the unit template: a new form of unit restarts every service once.
UNIT_FORMAT = 3
#: What a start is given for each GB of staged weights: a slow disk reads 100 MB/s. The largest models, of hundreds of GB, were seen
#: to take most of an hour.
SECONDS_PER_GB = 10
#: Raised with the watchdog's script and units, which hosts then get without a restart.
WATCHDOG_FORMAT = 3
#: Files of the watchdog on a host. They are in the record with those of the service, which does not depend on them.
WATCHDOG_FILES = (
    "/usr/local/libexec/nim-watchdog",
    "/etc/systemd/system/nim-watchdog@.service",
    "/etc/systemd/system/nim-watchdog@.timer",
)
#: Engine to the file that its units are made of: systemd reads Docker's itself, Podman's generator the other.
UNIT_PATHS = {"docker": "/etc/systemd/system/nim-{}.service", "podman": "/etc/containers/systemd/nim-{}.container"}
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
    "grpc_port",
    "bind_address",
    "model",
    "profile",
    "prefetch",
    "offline",
    "cache_seed",
    "env",
    "env_in_clear",
    "log_format",
    "log_rate",
    "otel_endpoint",
    "shm_size",
    "ulimits",
    "capabilities",
    "read_only",
    "key_at_runtime",
    "start_timeout",
    "stop_timeout",
    "uid",
    "gid",
    "cache_size_gb",
    "cache_path",
    "cache_read_only",
    "remove_cache",
    "verify",
    "watchdog",
}
GPU_KEYS = {"count", "memory_gb"}
#: More GPUs than any server has: YAML reads 1:0 as this number.
SIXTY = 60
#: Options of chat_completion that say what is asked and expected, not how the endpoint is reached.
VERIFY_KEYS = {
    "audio_file",
    "check_metadata",
    "expect_finish_reason",
    "expect_max_tokens",
    "expect_min_tokens",
    "expect_profile",
    "expect_regex",
    "expect_script",
    "image_file",
    "language",
    "max_tokens",
    "max_ttft",
    "messages",
    "min_tokens_per_second",
    "probes",
    "prompt",
    "prompts",
    "request_timeout",
    "temperature",
    "tool_choice",
    "url",
    "voice",
}
#: Default and bounds. A unit starts ten times in an hour at most, so fewer restarts may be the watchdog's.
WATCHDOG_NUMBERS = {"idle": (300, 1, 86400), "timeout": (60, 1, 600), "failures": (3, 1, 100), "limit": (3, 1, 8)}
WATCHDOG_KEYS = {"enabled", "probe", *WATCHDOG_NUMBERS}
WATCHDOG_PROBES = ("chat", "health")
#: Options of VERIFY_KEYS that are texts, or lists of them.
VERIFY_TEXTS = (
    "audio_file",
    "expect_finish_reason",
    "expect_profile",
    "expect_regex",
    "expect_script",
    "image_file",
    "language",
    "probes",
    "prompt",
    "url",
    "voice",
)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")
#: No longer than any registry takes it.
_IMAGE = re.compile(
    r"(?=.{1,400}$)(?P<registry>[A-Za-z0-9.-]+(?::[0-9]{1,5})?)/(?P<path>[a-z0-9]+(?:[._/-][a-z0-9]+)*)"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def contract_of(image: str, tag: str) -> str:
    """Contract of an image by its name and the major version of its tag, empty when neither tells."""
    name = image.rpartition("/")[2]
    match = re.match(r"v?([0-9]{1,9})(?:\.|$)", tag)
    major = int(match.group(1)) if match else None
    if major is not None and re.search(OWN_COUNT, name):
        return "classic"
    # A name tells more than a number, which every family counts on its own.
    for known, facts in sorted(CONTRACTS.items(), key=lambda item: not item[1]["names"]):
        named = bool(facts["names"]) and bool(re.search(facts["names"], name))
        if (named and not facts["majors"]) or ((named or not facts["names"]) and major in facts["majors"]):
            return known
    return ""


class ResolveError(ValueError):
    """Carries every problem found, one sentence each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__(listed(self.problems))


def digest_of(value: Any) -> str:
    """SHA-256 of plain data in canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Service(Entry):
    """Resolves one entry of nim_services; collects problems instead of raising."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        host: Mapping[str, Any],
        defaults: Mapping[str, Any],
        written: Sources | None = None,
    ) -> None:
        super().__init__(spec, written)
        self.host, self.defaults = host, defaults
        self.name = "" if spec.get("name") is None else said(spec["name"])
        self.notes: list[str] = []
        #: Variables that may be seen though they are, or look like, secrets.
        self.clear: list[str] = []
        #: Whether name and tag alone told the contract, as nobody has told the image's label.
        self.guessed = False

    def problem(self, text: str) -> None:
        """Notes a problem of this service, once."""
        told = f"service {shorten(self.name, 60) or '(without a name)'}: {text}"
        if told not in self.problems:
            self.problems.append(told)

    def image(self) -> dict[str, Any]:
        """Registry, repository, tag, digest and the reference to pull."""
        image, tag, digest = (self.text(key) for key in ("image", "tag", "digest"))
        match = _IMAGE.fullmatch(image)
        if not match:
            self.problem(
                f"image is {shown(image)}, wanted REGISTRY/PATH without tag, such as nvcr.io/nim/meta/llama-3.1-8b-instruct;"
                " the tag goes into 'tag', a digest into 'digest'."
            )
        if not tag and not digest:
            self.problem('has neither tag nor digest; a service is pinned by tag: "1.8.6" or digest: sha256:….')
        if tag and (not _TAG.fullmatch(tag) or tag == "latest"):
            self.problem(
                f"tag is {shown(tag)}, wanted a version such as \"1.8.6\" ('latest' moves under a running service)."
            )
        if digest and not _DIGEST.fullmatch(digest):
            self.problem(f"digest is {shown(digest)}, wanted sha256: and 64 hexadecimal digits.")
        return {
            "registry": match.group("registry") if match else "",
            "repository": image,
            "tag": tag,
            "digest": digest,
            "image": f"{image}@{digest}" if digest else f"{image}:{tag}",
        }

    def told(self, reference: str) -> Mapping[str, Any]:
        """What the registry said of an image, empty when it was not asked."""
        return (self.defaults.get("told") or {}).get(reference) or {}

    def native(self, reference: str) -> bool | None:
        """Whether an image's label says that it downloads its weights by itself; None when nobody has told its label."""
        # The image that is there decides: it is not pulled once more.
        if reference in (self.host.get("native_images") or []):
            return True
        if reference in (self.host.get("images") or {}):
            return False
        said = self.told(reference)
        return (said.get("labels") or {}).get(PROTOCOL_LABEL) == NATIVE_PROTOCOL if said.get("found") else None

    def contract(self, reference: str, image: str, tag: str) -> str:
        """Name of the image generation. REFERENCE is what is pulled."""
        name = self.choice("contract", "auto", ["auto", *CONTRACTS])
        if name == "auto":
            # The label of an image tells for certain.
            native = self.native(reference)
            self.guessed = native is None
            name = "native" if native else contract_of(image, tag)
            if not name:
                reason = self.told(reference).get("reason")
                also = f", nor does the registry tell it ({reason})" if reason else ""
                self.problem(
                    f"contract cannot be told from tag {shown(tag)}{also}; say contract: classic (NIM 1.x), llm (NIM LLM and VLM 2.x, 3.x),"
                    " native (NeMo Retriever 2.x) or speech (Riva)."
                )
        facts = CONTRACTS.get(name) or CONTRACTS["classic"]
        version = tuple(int(part) for part in re.findall(r"[0-9]{1,9}", tag)[:2])
        for pattern, oldest in facts["oldest"].items():
            if re.search(pattern, image.rpartition("/")[2]) and len(version) == 2 and version < oldest:
                self.problem(
                    f"tag is {shown(tag)}, wanted {'.'.join(map(str, oldest))} or newer: older images of this kind read other variables."
                )
        return name if name in CONTRACTS else "classic"

    def gpus(self) -> list[str]:
        """CDI device names (index, uuid, GPU:PART of MIG, or ``all``) of the GPUs the service names; none when it says how many."""
        wanted = self.spec.get("gpus", "all")
        present = _gpus.devices(self.host.get("gpus") or [])
        if wanted == "all":
            return ["all"]
        if isinstance(wanted, Mapping):
            return []
        several = isinstance(wanted, (list, tuple))
        items = wanted if several else [wanted]
        if not items:
            self.problem("gpus is an empty list; name indices or uuids, or say gpus: all.")
        names = []
        for position, item in enumerate(items):
            if self.not_a_gpu(item, ("gpus", position) if several else ("gpus",)):
                continue
            index = as_int(item)
            name = said(item if index is None else index)
            parts = _gpus.divided(name, self.host.get("gpus") or [])
            # A host whose driver does not answer yet has whatever is named, by a number that can be one.
            if _gpus.find(name, present) if self.host.get("gpus") else _gate.is_gpu(name):
                names.append(name)
            elif parts:
                self.problem(f"gpus names {shown(item)}, which MIG divides; name its parts: {', '.join(parts)}.")
            elif self.host.get("gpus"):
                self.problem(f"gpus names {shown(item)}; this host has {', '.join(map(str, present))}.")
            else:
                self.problem(f"gpus names {shown(item)}, wanted an index, a uuid or a part of MIG, or gpus: all.")
        if len({device.key if (device := _gpus.find(name, present)) else name for name in names}) != len(names):
            self.problem(f"gpus names one GPU twice: {', '.join(names)}.")
        return names

    def not_a_gpu(self, item: Any, path: tuple[Any, ...]) -> bool:
        """Notes what YAML has made of a part of MIG, 1:0, or of a word; whether it has."""
        written = self.written.get(path)
        if isinstance(item, str):
            return False
        wrong = "" if isinstance(item, int) and not isinstance(item, bool) else text_problem("gpus", item, written)
        if item is None:
            wrong = "gpus has an empty item; name an index, a uuid or a part of MIG."
        if not wrong and number_problem("gpus", item, written):
            wrong = f'gpus names {seen(item, written)}; quote a part of MIG: "{written.text if written else item}".'
        if not wrong and written is None and SIXTY <= item < SIXTY**3:
            # Base 60: 1:0 is 60, 2:3 is 123.
            wrong = (
                f'gpus names {item}, which no server has; was it a part of MIG? Quote it: "{item // 60}:{item % 60}".'
            )
        return self.refused(wrong)

    def gpu_request(self) -> dict[str, int] | None:
        """How many GPUs of which memory the service wants, when it does not name them."""
        wanted = self.spec.get("gpus")
        if not isinstance(wanted, Mapping):
            return None
        for key in wanted:
            if key not in GPU_KEYS:
                self.problem(f"gpus has the unknown key {shown(key)}.{near(said(key), GPU_KEYS)}")
        count, memory = as_int(wanted.get("count", 1)), as_int(wanted.get("memory_gb", 0))
        if count is None or count < 1:
            self.problem(f"gpus.count is {shown(wanted.get('count'))}, wanted an integer from 1.")
        if memory is None or memory < 0:
            self.problem(
                f"gpus.memory_gb is {shown(wanted.get('memory_gb'))}, wanted an integer of GB that each GPU has at least."
            )
        return {"count": max(count or 1, 1), "memory_bytes": max(memory or 0, 0) * 10**9}

    def environment(self, contract: Mapping[str, Any]) -> dict[str, str]:
        """Variables of the container, contract defaults first; no secret gets in, and nothing that a file of variables changes."""
        given = self.spec.get("env") or {}
        if not isinstance(given, Mapping):
            self.problem(f"env is {type(given).__name__}, wanted a dictionary of variables.")
            given = {}
        self.clear = self.in_clear()
        env = dict(contract["env"])
        if self.offline():
            env.update(contract["offline_env"])
        if self.choice("log_format", "text", ("text", "json")) == "json":
            env.update(contract["json_env"])
        env.update(self.telemetry(contract))
        if self.spec.get("profile") and contract["prefetch_profile_option"]:
            env["NIM_MODEL_PROFILE"] = self.line("profile")
        for key, value in given.items():
            if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
                quote = "" if isinstance(key, str) else "; quote it, if it is one"
                self.problem(f"env has {shown(key)}, which is no name of a variable{quote}.")
                continue
            # It may be a secret, whatever else is wrong with it.
            wrong = _gate.line_problem(f"env variable {shorten(key, 60)}", f"{key}={said(value)}", hidden=True)
            if self.refused(wrong):
                continue
            secret = _secrets.refusal(key, "" if value is None else said(value), key in self.clear)
            if self.refused(secret):
                continue
            text = self.word(f"env has {key}", value, ("env", key), f'{key}: "{{}}"')
            if text is None:
                continue
            if key in GRPC_VARIABLES and contract["container_grpc_port"] is None:
                self.problem(
                    f"env has {key}, but of images of this generation only the port of HTTP is published; leave it out."
                )
            elif key in PORT_VARIABLES and text == str(contract["container_port"]):
                # So it is anyway.
                continue
            elif key in RESERVED_VARIABLES:
                self.problem(f"env has {key}; {RESERVED_VARIABLES[key]} instead.")
            elif key in contract["renamed"]:
                self.problem(
                    f"env has {key}, which images of this generation do not read; wanted {contract['renamed'][key]}."
                )
            else:
                self.reaches(key, text, contract["mounts"])
                env[str(key)] = text
                self.spelling(str(key), contract["variables"])
        return env

    def reaches(self, key: str, text: str, mounts: Mapping[str, str]) -> None:
        """Refuses a variable with which a server cannot start, or starts as one that nothing here can ask.

        MOUNTS: directory below the cache to the place where the container has it.
        """
        if key == "NIM_SSL_MODE" and text.strip().upper() not in ("", "DISABLED"):
            self.problem(
                f"env has NIM_SSL_MODE {text!r}, so the image would speak https, which neither its health check nor verification and"
                " watchdog do; wanted DISABLED. Put a proxy that speaks https before the service."
            )
        place = posixpath.normpath(text)
        if key not in BROUGHT_PATHS or not place.startswith("/"):
            return
        if any(place == target or place.startswith(f"{target}/") for target in mounts.values()):
            return
        directory, target = next(iter(mounts.items()))
        cache = self.text("cache_path") or f"{self.defaults['cache_root']}/{self.name}"
        own = f"{cache}/{directory}" if directory else cache
        self.problem(
            f"env has {key} {text!r}, which is in no directory that the container gets from the host; wanted a place below {target},"
            f" which is {own} on the host. Put the files there, readable by the user of the image, and write {target}/NAME."
        )

    def in_clear(self) -> list[str]:
        """Variables that the operator lets everybody see who may use the container engine."""
        given = self.spec.get("env_in_clear") or []
        if not isinstance(given, (list, tuple)):
            self.problem(f"env_in_clear is {shown(given)}, wanted a list of names of variables in env.")
            return []
        names = self.words("env_in_clear", given)
        env = self.spec.get("env")
        known = [str(key) for key in env] if isinstance(env, Mapping) else []
        for name in names:
            if name in _secrets.NGC_VARIABLES:
                self.problem(f"env_in_clear has {name}, for which there is ngc_api_key; take it out of both.")
            elif name not in known:
                self.problem(f"env_in_clear has {name}, which is not in env.{near(name, known)}")
        return names

    def start_budget(self, contract: Mapping[str, Any]) -> int:
        """Seconds that a start may take: the contract's, and more for weights that take long to load."""
        cache = ((self.host.get("services") or {}).get(self.name) or {}).get("cache") or {}
        size = as_int((cache.get("staged") or {}).get("bytes", 0)) or 0
        return int(contract["start_timeout"]) + SECONDS_PER_GB * (size // 10**9)

    def offline(self) -> bool:
        """Whether the service has no network to the weights."""
        return self.flag("offline", as_bool(self.defaults.get("offline", False)))

    def telemetry(self, contract: Mapping[str, Any]) -> dict[str, str]:
        """Variables that send traces and metrics to a collector."""
        endpoint = self.text("otel_endpoint")
        if not endpoint:
            return {}
        if _secrets.formed_so(endpoint):
            self.problem(
                f"otel_endpoint has {_secrets.formed_so(endpoint)} in it, which docker inspect shows; name a collector on the host"
                " that adds it."
            )
            return {}
        if not re.fullmatch(r"https?://\S{1,2000}", endpoint) or _gate.stray(endpoint):
            self.problem(
                f"otel_endpoint is {shown(endpoint)}, wanted the URL of an OTLP collector such as http://otel:4318."
            )
        return {
            key: value.format(endpoint=endpoint, name=f"nim-{self.name}") for key, value in contract["otel_env"].items()
        }

    def prefetch(self, contract: Mapping[str, Any]) -> list[str]:
        """The image's command that downloads the weights; empty when there is none, or the image does it by itself."""
        given = self.spec.get("prefetch")
        if given is not None and not isinstance(given, (list, tuple)):
            self.problem(
                f"prefetch is {type(given).__name__}, wanted a list of words, or an empty list to stage nothing."
            )
        command = self.words("prefetch", given) if isinstance(given, (list, tuple)) else list(contract["prefetch"])
        secret = _secrets.formed_so(" ".join(command))
        if secret:
            self.problem(f"prefetch has {secret} in it, which ps shows to every user; take it out.")
        for number, word in enumerate(command):
            wrong = _gate.line_problem(f"prefetch[{number}]", word, lines=True, hidden=True)
            if wrong or not command[0]:
                self.problem(wrong or "prefetch begins with an empty word, wanted the command of the image.")
        profile = self.line("profile")
        if profile and not contract["prefetch_profile_option"]:
            self.problem(
                f"profile is {shown(profile)}, but images of this generation have none;"
                f" choose by env: {contract['renamed']['NIM_MODEL_PROFILE']}."
            )
        elif profile and given is None:
            command += [contract["prefetch_profile_option"], profile]
        return command

    def cache_seed(self) -> str:
        """Tarball or directory on the host from which the weights come instead of a download."""
        path = self.text("cache_seed")
        self.refused(_gate.file_problem("cache_seed", path) if path else "")
        return path

    def publish(self, bind: str, port: int, contract: Mapping[str, Any]) -> list[str]:
        """Ports of the container on the host, as docker run takes them."""
        address = f"[{bind}]" if ":" in bind else bind
        ports = [f"{address}:{port}:{contract['container_port']}"]
        if self.spec.get("grpc_port") is not None:
            if contract["container_grpc_port"] is None:
                self.problem("grpc_port is set, but images of this generation serve none; leave it out.")
            grpc = self.number("grpc_port", 0, 1, 65535)
            ports.append(f"{address}:{grpc}:{contract['container_grpc_port']}")
        return ports

    def spelling(self, name: str, known: Iterable[str]) -> None:
        """Notes a variable that is nearly a known one: images ignore what they do not know."""
        match = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.85)
        if name.startswith("NIM_") and match and match[0] != name:
            self.notes.append(
                f"service {self.name}: env has {name}, which NIM is not known to read. Did you mean {match[0]}?"
            )

    def bind_address(self) -> str:
        """Address that the endpoint listens on."""
        address = self.text("bind_address") or said(self.defaults["bind_address"])
        try:
            # What stands behind a % may be any text, and engines publish no port on an address of one interface.
            ipaddress.ip_address("none" if "%" in address else address)
        except ValueError:
            self.problem(f"bind_address is {shown(address)}, wanted an IP address such as 127.0.0.1, 0.0.0.0 or ::1.")
        return address

    def cache(self) -> dict[str, Any]:
        """Where the cache is, whether it is only read, and where the marker of what is staged there is kept."""
        path, default = self.text("cache_path"), f"{self.defaults['cache_root']}/{self.name}"
        self.refused(_gate.directory_problem("cache_path", path, "/mnt/nim/llama") if path else "")
        read_only = self.flag("cache_read_only")
        return {
            "cache": path or default,
            "cache_read_only": read_only,
            "cache_marker": "host" if path or read_only else "cache",
        }

    def shm_size(self, contract: Mapping[str, Any]) -> str:
        """Size of the shared memory of the container, as docker run takes it."""
        given = self.spec.get("shm_size") or contract["shm_size"]
        size = self.word("shm_size", given, ("shm_size",), 'shm_size: "{}"') or ""
        if size and not _gate.is_size(size):
            self.problem(f"shm_size is {shown(size)}, wanted a size such as 16g.")
        return size

    def ulimits(self, contract: Mapping[str, Any]) -> list[str]:
        """Resource limits of the container, as docker run takes them."""
        given = self.spec.get("ulimits")
        if given is None:
            return list(contract["ulimits"])
        wrong = [item for item in given if not _gate.is_ulimit(item)] if isinstance(given, (list, tuple)) else [given]
        if wrong:
            self.problem(
                f"ulimits has {shown(wrong[0])}, wanted a list of items such as nofile=65536 or memlock=-1:-1."
            )
            return []
        return [str(item) for item in given]

    def capabilities(self, contract: Mapping[str, Any]) -> list[str] | None:
        """What the container keeps of root's power; None leaves it what Docker gives."""
        given = self.spec.get("capabilities")
        if given is None:
            return None if contract["capabilities"] is None else list(contract["capabilities"])
        if not isinstance(given, (list, tuple)):
            self.problem(f"capabilities is {shown(given)}, wanted a list of names such as SYS_PTRACE.")
            return []
        known = _gate.CAPABILITIES
        for item in given:
            if item not in known:
                self.problem(
                    f"capabilities has {shown(item)}, wanted names such as SYS_PTRACE.{near(said(item).upper(), known)}"
                )
        return [said(item) for item in given]

    def key_digest(self) -> str:
        """A trace of the key that the service gets, so that another key restarts it; empty for a service that gets none."""
        key = self.defaults.get("api_key")
        if not as_bool(self.spec.get("key_at_runtime", False)) or key is None:
            return ""
        if not isinstance(key, str):
            self.problem("key_at_runtime is true, but the key is no text; quote ngc_api_key.")
            return ""
        if not key:
            self.problem("key_at_runtime is true, but there is no key; set ngc_api_key, or take the option away.")
        elif _gate.key_problem("the key", key):
            self.problem(f"key_at_runtime is true, but {_gate.key_problem('the key', key)}")
        return digest_of([self.name, key])[:16]

    def texts(self, value: Any, *path: str | int) -> None:
        """Notes what is no text in an option that is a text or a list of them; PATH leads to it."""
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
        several = isinstance(value, (list, tuple))
        for position, item in enumerate(value if several else [value]):
            wrong = text_problem(name, item, self.written.get((*path, position) if several else path))
            self.refused(wrong or (_gate.line_problem(name, item, lines=True) if isinstance(item, str) else ""))

    def verify(self, image: str, contract: Mapping[str, Any]) -> dict[str, Any]:
        """Options for the verification; images without chat are asked for what they do, or for their health only."""
        given = self.spec.get("verify") or {}
        if not isinstance(given, Mapping):
            self.problem(f"verify is {type(given).__name__}, wanted a dictionary such as {{prompt: …}}.")
            return {}
        for key in given:
            if key not in VERIFY_KEYS:
                self.problem(f"verify has the unknown key {shown(key)}.{near(said(key), VERIFY_KEYS)}")
            elif key in VERIFY_TEXTS:
                self.texts(given[key], "verify", key)
        prompts = given.get("prompts")
        for number, prompt in enumerate(prompts if isinstance(prompts, (list, tuple)) else ()):
            for key, value in prompt.items() if isinstance(prompt, Mapping) else ():
                if key in VERIFY_TEXTS:
                    self.texts(value, "verify", "prompts", number, key)
        url = given.get("url")
        if url is not None and not re.fullmatch(r"https?://[^\s/@]{1,300}(/\S{0,2000})?", said(url)):
            self.problem(f"verify.url is {shown(url)}, wanted where clients reach it, such as https://llm.example.com.")
        options = {key: value for key, value in given.items() if key in VERIFY_KEYS}
        name = image.rpartition("/")[2]
        if "probes" not in options and ("health" in contract["probes"] or re.search(WITHOUT_CHAT, name)):
            proofs = (probes for pattern, probes in PROOFS_WITHOUT_CHAT if re.search(pattern, name))
            options["probes"] = list(next(proofs, ("health",)))
        for wrong in unread_options(options):
            self.problem(wrong)
        return options

    def watchdog(self, contract: Mapping[str, Any], chats: bool, start_timeout: int) -> dict[str, Any]:
        """What the watchdog of the service is told, as it stands in the record; only that it is off, where it is."""
        given = self.spec.get("watchdog")
        if not isinstance(given, Mapping):
            given = {} if given is None else {"enabled": given}
        for key in given:
            if key not in WATCHDOG_KEYS:
                self.problem(f"watchdog has the unknown key {shown(key)}.{near(said(key), WATCHDOG_KEYS)}")
        enabled = given.get("enabled", True)
        if said(enabled).strip().lower() not in BOOLEANS:
            self.problem(f"watchdog is {shown(enabled)}, wanted true, false or a dictionary such as {{idle: 600}}.")
        probe = said(given.get("probe") or (contract["watchdog_probe"] if chats else "health"))
        if probe not in WATCHDOG_PROBES:
            self.problem(
                f"watchdog.probe is {shown(probe)}, wanted one of {', '.join(WATCHDOG_PROBES)}.{near(probe, WATCHDOG_PROBES)}"
            )
        numbers = {}
        for key, (default, low, high) in WATCHDOG_NUMBERS.items():
            value = as_int(given.get(key, default))
            if value is None or not low <= value <= high:
                self.problem(f"watchdog.{key} is {shown(given[key])}, wanted an integer from {low} to {high}.")
            numbers[key] = value
        if not as_bool(enabled):
            return {"enabled": False}
        return {
            "enabled": True,
            "format": WATCHDOG_FORMAT,
            "probe": probe,
            **numbers,
            "ready_path": contract["ready_path"],
            "start_timeout": start_timeout,
        }

    def resolve(self) -> dict[str, Any]:
        """The resolved service; problems are in self.problems."""
        wrong = text_problem("name", self.spec.get("name"), self.written.get(("name",)))
        if wrong:
            self.problem(wrong)
        elif not _NAME.fullmatch(self.name):
            self.problem(f"name is {shown(self.name)}, wanted lower-case letters, digits and hyphens, at most 48.")
        for key in self.spec:
            if key not in KEYS:
                self.problem(f"has the unknown key {shown(key)}.{near(said(key), KEYS)}")
        state = self.choice("state", "present", ("present", "absent"))
        if state != "absent" and _names.refusal(self.name):
            self.problem(_names.refusal(self.name))
        engine = str(self.defaults.get("engine", "docker"))
        common = {
            "name": self.name,
            "engine": engine,
            "state": state,
            "unit": f"nim-{self.name}.service",
            "container": f"nim-{self.name}",
            "cache": f"{self.defaults['cache_root']}/{self.name}",
            "unit_path": UNIT_PATHS[engine].format(self.name),
            "unit_paths": {known: path.format(self.name) for known, path in UNIT_PATHS.items()},
            "env_path": f"{self.defaults['config_dir']}/{self.name}.env",
            "key_path": f"{self.defaults['config_dir']}/{self.name}.key",
            "record_path": f"{self.defaults['state_dir']}/{self.name}.json",
        }
        if state == "absent":
            # What is only read is somebody else's.
            read_only = self.flag("cache_read_only")
            return {**common, "remove_cache": self.flag("remove_cache") and not read_only}
        image = self.image()
        contract_name = self.contract(image["image"], image["repository"], image["tag"])
        contract = CONTRACTS[contract_name]
        bind = self.bind_address()
        port = self.number("port", 8000, 1, 65535)
        # An endpoint bound everywhere is asked on loopback.
        probe = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)
        prefetch = self.prefetch(contract)
        env = self.environment(contract)
        gpus = self.gpus()
        service = {
            **common,
            **image,
            "contract": contract_name,
            "contract_guessed": self.guessed,
            "model": self.line("model"),
            "gpus": gpus,
            "gpu_request": self.gpu_request(),
            "gpu_shared": self.flag("gpu_shared"),
            "memory_variable": contract["memory_variable"],
            "bind_address": bind,
            "port": port,
            "grpc_port": as_int(self.spec.get("grpc_port", 0)) or 0,
            "publish": self.publish(bind, port, contract),
            "url": f"http://{probe}:{port}",
            "ready_path": contract["ready_path"],
            **self.cache(),
            "mounts": dict(contract["mounts"]),
            "cache_bytes": self.number("cache_size_gb", self.defaults.get("cache_size_gb", 0), 0, 100000) * 10**9,
            "uid": self.number("uid", contract["uid"], 0, 2**31),
            "gid": self.number("gid", contract["gid"], 0, 2**31),
            "env": env,
            # They go another way than the others wherever there is one.
            "env_hidden": sorted(key for key in env if key in self.clear and _secrets.found(key, env[key])),
            "shm_size": self.shm_size(contract),
            "ulimits": self.ulimits(contract),
            "capabilities": self.capabilities(contract),
            "read_only": self.flag("read_only"),
            "key_at_runtime": self.flag("key_at_runtime"),
            "key_digest": self.key_digest(),
            "start_timeout": self.number("start_timeout", self.start_budget(contract), 1, 86400),
            "log_rate": self.number("log_rate", 10000, 0, 10**7),
            "stop_timeout": self.number("stop_timeout", contract["stop_timeout"], 1, 3600),
            "prefetch": prefetch,
            "prefetch_entrypoint": contract["prefetch_entrypoint"],
            "prefetch_env": dict(contract["prefetch_env"]) if self.spec.get("prefetch") is None else {},
            "offline": self.offline(),
            "cache_seed": self.cache_seed(),
            "verify": self.verify(image["repository"], contract),
            "notes": self.notes,
        }
        probes = service["verify"].get("probes")
        chats = not probes or not NO_CHAT_PROBES.issuperset(probes)
        service["watchdog"] = self.watchdog(contract, chats, service["start_timeout"])
        # What the weights in the cache depend on; a change stages again.
        weights = {key: service[key] for key in ("image", "prefetch", "mounts")}
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
    "gpu_shared",
    "publish",
    "cache",
    "cache_read_only",
    "mounts",
    "env",
    "shm_size",
    "ulimits",
    "capabilities",
    "read_only",
    "key_at_runtime",
    "key_digest",
    "log_rate",
    "stop_timeout",
    "env_path",
)


def _finish(service: dict[str, Any], host: Mapping[str, Any]) -> None:
    """Adds what follows from the GPUs that the service got."""
    service["devices"] = [f"nvidia.com/gpu={gpu}" for gpu in service["gpus"]]
    # Hosts may hand each other the same weights; where no profile is pinned, images choose them by the GPUs.
    present = _gpus.devices(host.get("gpus") or [])
    chosen = present if service["gpus"] == ["all"] else [_gpus.find(name, present) for name in service["gpus"]]
    models = [] if "NIM_MODEL_PROFILE" in service["env"] else sorted(str(gpu.model) for gpu in chosen if gpu)
    service["share_key"] = digest_of([service["stage_key"], models])
    # Services of Docker have the hash that they had before there was another engine.
    engine = {} if service["engine"] == "docker" else {"engine": service["engine"]}
    service["config_hash"] = digest_of({"format": UNIT_FORMAT, **engine, **{key: service[key] for key in _RUNTIME}})


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
        for port in (service["port"], service["grpc_port"]):
            # A port that is none (0) was reported already.
            other = ports.setdefault(port, name) if port else name
            if other != name:
                problems.append(
                    f"service {name}: port {port} is also the port of service {other}; give one of them another."
                )
        if service["port"] and service["port"] == service["grpc_port"]:
            problems.append(f"service {name}: port and grpc_port are both {service['port']}; give one of them another.")
        placed.append(service)
    return problems + _gpus.conflicts(placed, host)


def resolve_services(services: Any, host: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Resolves nim_services of one host.

    HOST is the result of gpu_host_info; DEFAULTS holds ``cache_root``, ``config_dir``, ``state_dir``, ``bind_address``,
    ``offline``, ``cache_size_gb``, ``engine``, ``api_key``, the key for services that serve with it (None: not known here), and
    ``told``, what registries said of images (nim_image_info), and ``written``, for each service by its position how its values stand in
    the operator's files (_written.Sources), as far as that is known. Raises ResolveError with every problem of every service.
    """
    engine = defaults.get("engine", "docker")
    if engine not in UNIT_PATHS:
        raise ResolveError([f"nim_container_engine is {shown(engine)}, wanted {' or '.join(UNIT_PATHS)}."])
    wrong = _gate.directory_problem("nim_cache_root", defaults["cache_root"], "/var/lib/nim/cache", root=True)
    if wrong:
        raise ResolveError([wrong])
    if not isinstance(services, (list, tuple)):
        raise ResolveError([f"nim_services is {type(services).__name__}, wanted a list of services."])
    resolved, problems = [], []
    for position, spec in enumerate(services):
        if not isinstance(spec, Mapping):
            problems.append(f"nim_services has {shown(spec)}, wanted a dictionary with name, image and tag.")
            continue
        service = Service(spec, host, defaults, (defaults.get("written") or {}).get(position))
        resolved.append(service.resolve())
        problems += service.problems
    present = [service for service in resolved if service["state"] != "absent"]

    def room(service: Mapping[str, Any], device: _gpus.Device) -> bool:
        return _occupancy.shortage(service, device, host, resolved) is None

    problems += _gpus.allocate(present, host, room, held=_unlisted.held(resolved, host))
    problems += conflicts(resolved, host)
    problems += _unlisted.conflicts(resolved, host)
    if problems:
        raise ResolveError(problems)
    for placed in present:
        _finish(placed, host)
    return resolved


def undecided_images(services: Any, host: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Images whose contract only their registry can tell, which was not asked yet and may be.

    Takes what resolve_services takes, of DEFAULTS only ``offline`` and ``told``. What is wrong with a service is left to that one to
    tell: nobody is asked for it.
    """
    found = []
    for spec in services if isinstance(services, (list, tuple)) else []:
        service = Service(spec if isinstance(spec, Mapping) else {}, host, defaults)
        if str(service.spec.get("state", "present")) == "absent" or service.offline():
            continue
        image = service.image()
        asked = service.problems or str(service.spec.get("contract", "auto")) != "auto" or service.told(image["image"])
        if not asked and service.native(image["image"]) is None and not contract_of(image["repository"], image["tag"]):
            found.append(image["image"])
    return list(dict.fromkeys(found))


def seen_from_outside(services: Iterable[Mapping[str, Any]], address: str) -> list[dict[str, Any]]:
    """Resolved services with the URL by which clients reach them: ``verify.url``, or that of their host.

    ADDRESS is that of the host. Raises ResolveError for services that listen on its loopback only.
    """
    seen, problems = [], []
    for service in services:
        if service["state"] == "absent":
            continue
        url = service["verify"].get("url")
        bind = ipaddress.ip_address(service["bind_address"])
        # What listens on one address is reached by that.
        host = address if bind.is_unspecified or bind.is_loopback else str(bind)
        if not url and bind.is_loopback and not _is_loopback(host):
            problems.append(
                f"service {service['name']}: bind_address is {bind}, which only its host reaches, but it is to be verified from the"
                " controller; set verify.url to where clients reach it, or bind_address to an address that the firewall opens to them."
            )
        host = f"[{host}]" if ":" in host else host
        seen.append({**service, "url": str(url or f"http://{host}:{service['port']}"), "outside": True})
    if problems:
        raise ResolveError(problems)
    return seen


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def watchdog_reasons(service: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why the watchdog of a service is not as it should be. NOW is what the host knows of the service."""
    record, timer = now.get("record") or {}, now.get("watchdog") or {}
    reasons = []
    if record.get("watchdog") != service["watchdog"]:
        reasons.append("watchdog changed" if "watchdog" in record else "no watchdog yet")
    if any(now["files"].get(path) != record.get("files", {}).get(path) for path in WATCHDOG_FILES):
        reasons.append("files of the watchdog were edited or lost")
    if service["watchdog"]["enabled"]:
        wrong = not (timer.get("enabled") and timer.get("active"))
    else:
        wrong = bool(timer.get("enabled") or timer.get("active"))
    if wrong:
        reasons.append("watchdog does not run" if service["watchdog"]["enabled"] else "watchdog runs")
    return reasons


def staging_doubt(service: Mapping[str, Any], cache: Mapping[str, Any]) -> str:
    """Why image and weights of a service have to be staged, by what its host remembers of its CACHE; empty when they have not."""
    staged = cache.get("staged") or {}
    if not staged:
        doubt = cache.get("doubt") or ""
        # What was never staged is told the same, whether its directory is there or not.
        return f"weights not staged: {doubt}" if doubt and doubt != _staged.NOT_STAGED else "weights not staged"
    place = cache.get("path", service["cache"])
    if place != service["cache"]:
        return f"weights not staged: weights were staged in {place}"
    return "" if staged["key"] == service["stage_key"] else "staged weights are of another image or profile"


def service_changes(services: list[dict[str, Any]], host: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What has to be done on a host: services to ``stage``, to ``deploy``, to ``watch`` and to ``remove``.

    Compares the desired services with what runs (the hash on the container), never with "a file changed": a play that
    was interrupted heals on its next run. Each item is the service with ``reasons``. What is to be watched differs in its
    watchdog only: it is not deployed again, so the deployment before this one stays the one to go back to.
    """
    stage, deploy, watch, remove = [], [], [], []
    for service in services:
        now = (host.get("services") or {}).get(service["name"]) or {}
        unit, container, record, cache, engines = (
            now.get(key) or {} for key in ("unit", "container", "record", "cache", "engines")
        )
        if service["state"] == "absent":
            present = [("unit", unit.get("exists") or engines), ("container", container), ("record", record)]
            present.append(("staging", now.get("staging")))
            present.append(("cache", cache and service["remove_cache"]))
            reasons = [f"{what} present" for what, there in present if there]
            if reasons:
                remove.append({**service, "reasons": reasons})
            continue
        reasons = []
        doubt = staging_doubt(service, cache)
        if doubt:
            reasons.append(doubt)
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
        files = record.get("files", {})
        if any(now["files"].get(path) != files[path] for path in files if path not in WATCHDOG_FILES):
            reasons.append("files were edited or lost")
        if not container.get("running") or unit.get("active") != "active":
            reasons.append(f"unit is {unit.get('active') or 'absent'}")
        elif container.get("config_hash") != service["config_hash"]:
            reasons.append("running container has another configuration")
        elif staged and not doubt and container.get("image_id") not in (None, images.get(staged, staged)):
            # A label is what it says; the image is what runs. What is staged for another deployment tells nothing of this one.
            reasons.append("running container has another image")
        reasons += [
            f"{other} still has its {' and '.join(engines[other])}" for other in engines if other != service["engine"]
        ]
        if unit.get("exists") and not unit.get("enabled"):
            reasons.append("unit is not enabled")
        if not record.get("verified"):
            reasons.append("never verified")
        if now.get("unsettled"):
            reasons.append("a run was cut off while it exchanged its files")
        if reasons:
            deploy.append({**service, "reasons": reasons})
            continue
        reasons = watchdog_reasons(service, now)
        if reasons:
            watch.append({**service, "reasons": reasons})
    return {"stage": stage, "deploy": deploy, "watch": watch, "remove": remove}
