# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's daemon.json, the flags beside it, and what of both a running daemon has taken. Private to the collection; pure."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

#: Where the configuration is unless a flag says otherwise.
CONFIG = "/etc/docker/daemon.json"
#: Flags of dockerd whose names in the file are others, and its short ones.
DIRECTIVES = {
    "host": "hosts", "label": "labels", "storage-opt": "storage-opts", "exec-opt": "exec-opts", "log-opt": "log-opts",
    "insecure-registry": "insecure-registries", "registry-mirror": "registry-mirrors", "default-ulimit": "default-ulimits",
    "authorization-plugin": "authorization-plugins", "add-runtime": "runtimes", "feature": "features", "cdi-spec-dir": "cdi-spec-dirs",
    "dns-opt": "dns-opts", "node-generic-resource": "node-generic-resources", "default-address-pool": "default-address-pools",
    "default-network-opt": "default-network-opts", "graph": "data-root",
}  # fmt: skip
SHORT = {"H": "host", "D": "debug", "G": "group", "b": "bridge", "g": "graph", "l": "log-level", "p": "pidfile", "s": "storage-driver"}  # fmt: skip
#: What a daemon must not change under running containers, whatever live-restore promises.
MOVING = frozenset(
    {
        "bip", "bridge", "containerd", "containerd-namespace", "data-root", "default-address-pools", "exec-opts", "exec-root", "fixed-cidr",
        "graph", "storage-driver", "userns-remap",
    }
)  # fmt: skip


def parse(text: str) -> dict[str, Any]:
    """daemon.json as a dictionary; an empty file is an empty one. Raises ValueError for anything else than an object."""
    # dockerd ignores a byte order mark, and so does this.
    text = text.lstrip("\ufeff")
    if not text.strip():
        return {}
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, wanted an object")
    return value


def merge(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """WANTED laid over CURRENT: dictionaries merge, everything else is replaced, what WANTED does not name stays."""
    merged = dict(current)
    for key, value in wanted.items():
        have = merged.get(key)
        both = isinstance(have, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(have, value) if both else value  # type: ignore[arg-type]
    return merged


def render(config: Mapping[str, Any]) -> str:
    """Text of the file; the order of keys is kept, so that a diff shows only what changed."""
    return json.dumps(config, indent=2) + "\n"


# -- flags -------------------------------------------------------------------------------------------------------------


def flags(argv: Sequence[str]) -> dict[str, Any]:
    """The command line of dockerd to its directives, by their names in daemon.json: True, a text, a list, or a dictionary.

    dockerd takes no arguments but flags: a word behind one that is none itself is its value.
    """
    found: dict[str, list[str]] = {}
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not name:
            continue
        if not word.startswith("--"):
            # -Hfd:// is -H fd://.
            short, rest = name[0], name[1:]
            name = SHORT.get(short, short)
            if rest:
                value, equals = rest + equals + value, "="
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("-") else "true"
        found.setdefault(DIRECTIVES.get(name, name), []).append(value)
    return {name: _flag(name, values) for name, values in found.items()}


def _flag(name: str, values: list[str]) -> Any:
    if name in ("features", "log-opts"):
        pairs = (value.partition("=") for value in values)
        return {key: _scalar(value) if sign else True for key, sign, value in pairs}
    if name.endswith("s") and name not in ("iptables", "ip6tables", "raw-logs", "tls"):
        return values
    return _scalar(values[-1])


def _scalar(text: str) -> Any:
    if text in ("true", "True", "TRUE", "t", "T"):
        return True
    return False if text in ("false", "False", "FALSE", "f", "F") else text


def _same(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(given, Mapping) and all(_same(value, given.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(given, list) and sorted(map(str, wanted)) == sorted(map(str, given))
    if isinstance(given, list):
        given = given[-1]
    return bool(wanted == given) if isinstance(wanted, bool) or isinstance(given, bool) else str(wanted) == str(given)


def beside_flags(options: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """OPTIONS without those that flags give as they are wanted, and the names of those that flags give otherwise.

    Docker does not start with a directive that is in both places, even where they agree.
    """
    left = {name: value for name, value in options.items() if name not in given}
    clashes = [name for name, value in options.items() if name in given and not _same(value, given[name])]
    return left, clashes


def unit_command(shown: Mapping[str, str], read: Any) -> list[str]:
    """The words that systemd starts a unit with: ExecStart of ``systemctl show``, with its Environment and EnvironmentFiles.

    READ returns the text of a file. Empty when the unit starts none.
    """
    match = re.search(r"argv\[\]=(.*?) ; ignore_errors=", shown.get("ExecStart", ""))
    if not match:
        return []
    variables = dict(_pair(word) for word in _words(shown.get("Environment", "")))
    for path in re.findall(r"(/\S+) \(ignore_errors=", shown.get("EnvironmentFiles", "")):
        variables.update(environment_file(read(path)))
    words: list[str] = []
    for word in match.group(1).split():
        alone = re.fullmatch(r"\$(\w+)", word)
        if alone:
            # As a word of its own a variable is as many words as it has.
            words += _words(variables.get(alone.group(1), ""))
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda found: variables.get(found.group(1), ""), word))
    return words


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def environment_file(text: str) -> dict[str, str]:
    """An EnvironmentFile of systemd to its variables; a value may be in quotes, and has no end but that of the line where it is not."""
    found = {}
    for line in text.splitlines():
        name, sign, value = line.strip().partition("=")
        if sign and re.fullmatch(r"\w+", name):
            value = value.strip()
            quoted = len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]
            found[name] = value[1:-1] if quoted else value
    return found


def is_dockerd(argv: Sequence[str]) -> bool:
    """Whether a command is the daemon itself, and not a program around it."""
    return bool(argv) and os.path.basename(argv[0]) == "dockerd"


def flag_home(name: str, files: Mapping[str, str]) -> str | None:
    """Path of the first of FILES (path to text) that has the flag of a directive."""
    long = [flag for flag, directive in DIRECTIVES.items() if directive == name] or [name]
    short = [letter for letter, flag in SHORT.items() if flag in long]
    pattern = "|".join([rf"--(?:{'|'.join(map(re.escape, long))})\b", *(rf"(?<![\w-])-{letter}" for letter in short)])
    for path, text in files.items():
        live = [line for line in text.splitlines() if not line.lstrip().startswith(("#", ";"))]
        if any(re.search(pattern, line) for line in live):
            return path
    return None


# -- desired and running -----------------------------------------------------------------------------------------------


def effective(options: Mapping[str, Any], running: Mapping[str, Any]) -> dict[str, Any]:
    """Those of OPTIONS that a running daemon says it has. It tells of live-restore and of CDI, which newer ones have by themselves.

    RUNNING has ``live_restore`` and ``cdi_spec_dirs`` of ``docker info``, nothing where no daemon answers.
    """
    found: dict[str, Any] = {}
    if "live-restore" in options and options["live-restore"] == running.get("live_restore"):
        found["live-restore"] = options["live-restore"]
    features = options.get("features")
    if isinstance(features, Mapping) and features.get("cdi") is True and running.get("cdi_spec_dirs"):
        found["features"] = {"cdi": True}
    return found


def outstanding(options: Mapping[str, Any], running: Mapping[str, Any]) -> dict[str, Any]:
    """Those of OPTIONS that a running daemon does not have, or does not tell of: only a restart makes sure of them."""
    return _without(options, effective(options, running))


def _without(options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    left = {}
    for name, value in options.items():
        if name in known and isinstance(value, Mapping) and isinstance(known[name], Mapping):
            rest = _without(value, known[name])
            if rest:
                left[name] = rest
        elif name not in known:
            left[name] = value
    return left


def wanted_file(
    current: Mapping[str, Any], options: Mapping[str, Any], given: Mapping[str, Any], running: Mapping[str, Any]
) -> dict[str, Any]:
    """What daemon.json is to hold: OPTIONS over CURRENT, without what flags give or what the daemon has by itself.

    GIVEN are the flags, RUNNING what the daemon tells, empty where it does not run or not with this file. A key that flags give as it is
    wanted leaves the file: an earlier run may have put it there.
    """
    left, _clashes = beside_flags(options, given)
    kept = {name: value for name, value in current.items() if name not in options or name not in given}
    by_itself = {
        name: value
        for name, value in effective(left, running).items()
        if (name == "features" and "cdi" not in (kept.get(name) or {})) or (value is False and name not in kept)
    }
    return merge(kept, _without(left, by_itself))


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of directives whose values differ."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
