# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How weights that one host downloaded get to the others over the local network. Private to the collection; pure.

One host downloads what nobody has; then each host that has it gives it to one other, so that their number doubles with each
round. rsync carries it, from a daemon that lives for one copy, serves one directory read-only and wants a password of that play.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _staging
from ansible_collections.baremetal.nim.plugins.module_utils._staged import MARKER

#: User and module of the daemon.
USER, MODULE = "nim", "weights"
#: What an engine compiled for its own GPU, and what would make it another host's code: never handed on.
OWN = (f"/{MARKER}", "/vllm", "/flashinfer", "/tvm-ffi", "/kernels")


def schedule(
    needs: Mapping[str, Sequence[str]], holders: Mapping[str, Iterable[str]]
) -> list[dict[str, dict[str, str | None]]]:
    """Who gets what from whom, round by round.

    NEEDS maps host names to the keys of the weights they lack, HOLDERS keys to the hosts that have them. Each round maps hosts
    to what they get then: ``key`` and ``source``, a host, or None for a download. In a round each host gets one thing and gives
    one, and no key is downloaded twice.
    """
    left = {host: list(dict.fromkeys(keys)) for host, keys in needs.items() if keys}
    have = {key: list(hosts) for key, hosts in holders.items()}
    rounds = []
    while left:
        got: dict[str, dict[str, str | None]] = {}
        giving: set[str] = set()
        downloaded: set[str | None] = set()
        for host, keys in left.items():
            for key in keys:
                source = next((other for other in have.get(key, []) if other not in giving and other != host), None)
                if source:
                    giving.add(source)
                    got[host] = {"key": key, "source": source}
                    break
            if host in got:
                continue
            missing = next((key for key in keys if not have.get(key) and key not in downloaded), None)
            if missing:
                downloaded.add(missing)
                got[host] = {"key": missing, "source": None}
        for host, item in got.items():
            key = str(item["key"])
            have.setdefault(key, []).append(host)
            left[host].remove(key)
        left = {host: keys for host, keys in left.items() if keys}
        rounds.append(got)
    return rounds


def _staged(host: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Caches of a host by the key of what is staged in them."""
    services = ((host.get("preflight_host") or {}).get("services") or {}).values()
    caches = [cache for service in services if (cache := service.get("cache"))]
    return {cache["staged"]["share_key"]: cache for cache in caches if (cache.get("staged") or {}).get("share_key")}


def _shareable(need: Mapping[str, Any], staged: Mapping[str, Any]) -> bool:
    """Whether a service may get its weights from another host: it needs some, has none, and was given none."""
    return (
        bool(need["prefetch"] or need["prefetch_env"])
        and not need["cache_seed"]
        and need["cache_marker"] == "cache"
        and need["share_key"] not in staged
    )


def staging_plan(hosts: Iterable[Mapping[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """The schedule for hosts of a play, from their variables.

    Each round maps hosts to what they ``gets`` (``service``, ``source``, ``address``; the latter two None for a download) and what
    they ``gives`` (``share_key``, ``path``, ``to``); either may be None.
    """
    known = {host["inventory_hostname"]: host for host in hosts}
    staged = {name: _staged(host) for name, host in known.items()}
    needs = {
        name: {
            need["share_key"]: need for need in host.get("__model_cache_needs") or [] if _shareable(need, staged[name])
        }
        for name, host in known.items()
    }
    holders: dict[str, list[str]] = {}
    for name, caches in staged.items():
        for key in caches:
            holders.setdefault(key, []).append(name)
    rounds = []
    for got in schedule({name: list(keys) for name, keys in needs.items()}, holders):
        turns: dict[str, dict[str, Any]] = {}
        for name, item in got.items():
            key, source = str(item["key"]), item["source"]
            where = address(known[source]) if source else None
            get = {"service": needs[name][key]["name"], "source": source, "address": where}
            turns.setdefault(name, {"gets": None, "gives": None})["gets"] = get
            if source:
                # What it got in an earlier round lies where it needs it itself.
                there = staged[source].get(key)
                path = there["path"] if there else needs[source][key]["cache"]
                give = {"share_key": key, "path": path, "to": name}
                turns.setdefault(source, {"gets": None, "gives": None})["gives"] = give
        rounds.append(turns)
    return rounds


def address(host: Mapping[str, Any]) -> str:
    """Where other hosts reach a host."""
    # What its role worked out, and before that has run, the inventory.
    names = ("__model_cache_address", "model_cache_address", "ansible_host")
    return str(next((host[name] for name in names if host.get(name)), host["inventory_hostname"]))


def daemon_config(path: str, uid: int, gid: int, secrets: str, lock: str) -> str:
    """Configuration of the daemon that serves the cache PATH as the user that owns it.

    LOCK is a file of its own: in the common one, the connections of a daemon that the host has anyway count as well.
    """
    return "\n".join(
        [
            "use chroot = yes",
            "log file = /dev/stderr",
            "max connections = 1",
            f"lock file = {lock}",
            f"[{MODULE}]",
            f"path = {path}",
            f"uid = {uid}",
            f"gid = {gid}",
            "read only = yes",
            "list = no",
            f"auth users = {USER}",
            f"secrets file = {secrets}",
            f"exclude = {' '.join(OWN)}",
            "",
        ]
    )


#: The password comes on standard input, as rsync's environment is seen by root and the user it runs as alone. What the second pass
#: finds to differ by its checksum comes anew.
_COPY = 'IFS= read -r RSYNC_PASSWORD && export RSYNC_PASSWORD && "$@" && exec "$@" --checksum'


def copy_command(host: str, port: int, path: str, uid: int, gid: int) -> list[str]:
    """The command that fills the cache PATH from another host's daemon, its password on standard input."""
    server = f"[{host}]" if ":" in host else host
    return [
        "/bin/sh",
        "-c",
        _COPY,
        "sh",
        # Whatever the other host gives, it is laid down by the user it is for.
        *_staging.as_image_user(uid, gid, ["rsync"]),
        "--recursive",
        "--links",
        "--hard-links",
        "--perms",
        "--chmod=ug-s",
        "--times",
        # A copy that was cut off goes on where it ended.
        "--partial-dir=.rsync-partial",
        "--timeout=60",
        "--contimeout=10",
        f"rsync://{USER}@{server}:{port}/{MODULE}/",
        f"{path}/",
    ]
