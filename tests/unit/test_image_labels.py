# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles that learn from a registry what an image is: each of them decides alike, and nobody is asked without need."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
from ansible_collections.baremetal.nim.plugins.filter.resolve_services import resolve_services as filter_of_services
from ansible_collections.baremetal.nim.tests.unit.image_registry import AMD, ARM, CONFIG, NIM, Registry
from ansible_collections.baremetal.nim.tests.unit.role_play import AWAY, HERE, play_role
from ansible_collections.baremetal.nim.tests.unit.serving import serving

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
RECORDED = json.loads((FIXTURES / "h200" / "gpu_host_info.json").read_text())
#: As read on a server with one H200, with eight of them and what a server has that runs services.
HOST = {
    **RECORDED,
    "gpus": [{**RECORDED["gpus"][0], "index": number, "uuid": f"GPU-{number}"} for number in range(8)],
    "engine": {
        **RECORDED["engine"],
        "masked": False,
        "unit": True,
        "by_hand": None,
        "snap": False,
        "rootless": [],
        "flags": {},
        "strangers": [],
        "image_dir": "/var/lib/docker",
        "client": True,
        "config": {"path": "/etc/docker/daemon.json", "error": None, "refused": None, "keys": [], "link": False},
    },
    "systemd": {"running": True, "version": 255},
    "time": 1795423100.0,
    "clock": {"least": -0.4, "most": 0.1},
    "memory": {"total": 10**12, "available": 10**12},
    "disks": {},
    "listeners": [],
}
#: Its name says embedding to nobody, and its tag alone would say NIM LLM.
NAME = "nim/nvidia/retriever"
DIGEST, OTHER = (f"sha256:{digit * 64}" for digit in "de")
#: A tag that tells nothing either.
UNDECIDED = {"tag": "release-7"}
#: Services by name; the registry says that all of their images are native but one, which it does not have.
SERVICES = {
    "tag": {"tag": "2.4.0"},
    "digest": {"digest": DIGEST},
    "undecided": UNDECIDED,
    "gone": {"tag": "2.9.9"},
    "offline": {"tag": "2.4.1", "offline": True},
}


def reference(registry, pin):
    """What is pulled."""
    repository = f"{registry.name}/{NAME}"
    return f"{repository}@{pin['digest']}" if "digest" in pin else f"{repository}:{pin['tag']}"


def services(registry, pins):
    """The operator's list."""
    return [
        {"name": name, "image": f"{registry.name}/{NAME}", "gpus": [number], "port": 8000 + number, **pin}
        for number, (name, pin) in enumerate(pins.items())
    ]


@pytest.fixture
def registry():
    with serving(Registry()) as running:
        manifest = running.pages[f"/v2/{NIM}/manifests/1.0.0"]
        running.pages = {
            f"/v2/{NAME}/manifests/2.4.0": running.pages[f"/v2/{NIM}/manifests/2.2.0"],
            **{f"/v2/{NAME}/manifests/{name}": manifest for name in (DIGEST, AMD, ARM, "release-7", "2.4.1")},
            f"/v2/{NAME}/blobs/{CONFIG}": running.pages[f"/v2/{NIM}/blobs/{CONFIG}"],
        }
        yield running


def asked(registry):
    """For what the registry was asked, of what is asked first of each image."""
    found = (re.search(r"manifests/(.*)", path) for path, _said in registry.requests)
    return sorted(match[1] for match in found if match and match[1] not in (AMD, ARM))


@pytest.fixture
def check(tmp_path, registry):
    """A check of staging and deploying the services; the contracts by which each of the two goes."""

    def run(host, pins):
        contracts = "{{ dict(%s | map(attribute='name') | zip(%s | map(attribute='contract'))) }}"
        told = {
            "staged": contracts % (("__model_cache_stage",) * 2),
            "deployed": contracts % (("__nim_service_changes.deploy",) * 2),
        }
        copy = {"content": "{{ told }}", "dest": str(tmp_path / "told.json"), "mode": "0600"}
        write = {"ansible.builtin.copy": copy, "vars": {"told": told}, "check_mode": False}
        given = {**HERE, "preflight_host": host, "nim_services": services(registry, pins)}
        given["nim_cache_root"] = str(tmp_path / "cache")
        play = {"roles": ["baremetal.nim.model_cache"], "post_tasks": [write]}
        code, words = play_role(tmp_path, "nim_service", given, "--check", tasks="assert", play=play)
        assert code == 0, words
        return json.loads((tmp_path / "told.json").read_text())

    return run


def test_check_without_the_images_decides_as_the_run_will(check, registry):
    """All that a check knows comes from the registry, which is asked once for each image, and not for those that it must not."""
    # The same name with another digest is another image.
    other = f"{registry.name}/{NAME}@{OTHER}"
    host = {**HOST, "images": {other: "sha256:ab"}, "native_images": [other]}
    contracts = {"tag": "native", "digest": "native", "undecided": "native", "gone": "llm", "offline": "llm"}
    assert check(host, SERVICES) == {"staged": contracts, "deployed": contracts}
    assert asked(registry) == sorted(["2.4.0", DIGEST, "release-7", "2.9.9"])


def test_nobody_is_asked_for_images_that_are_there(check, registry):
    """As a run finds them after the pull; also where just their weights are still to be staged."""
    pins = {name: SERVICES[name] for name in ("tag", "digest", "gone")}
    names = {name: reference(registry, pin) for name, pin in pins.items()}
    host = {
        **HOST,
        "images": dict.fromkeys(names.values(), "sha256:ab"),
        "native_images": [names["tag"], names["digest"]],
    }
    contracts = {"tag": "native", "digest": "native", "gone": "llm"}
    assert check(host, pins) == {"staged": contracts, "deployed": contracts}
    assert registry.requests == []


def test_nothing_to_stage_runs_nothing_on_the_host(tmp_path, registry):
    """Not even where the registry had to be asked once."""
    there = reference(registry, UNDECIDED)
    host = {**HOST, "images": {there: "sha256:ab"}, "native_images": [there]}
    given = services(registry, {"undecided": UNDECIDED})
    (service,) = filter_of_services(given, host, cache_root=str(tmp_path))
    staged = {"key": service["stage_key"], "image_reference": there}
    cache = {"uid": service["uid"], "gid": service["gid"], "staged": staged}
    host["services"] = {"undecided": {"cache": cache}}
    variables = {
        "__preflight_transactions": [],
        **AWAY,
        "preflight_host": host,
        "nim_services": given,
        "nim_cache_root": str(tmp_path),
    }
    code, told = play_role(tmp_path, "model_cache", variables)
    assert code == 0 and "changed=0 " in told and registry.requests == [], told


# -- before anything is changed ----------------------------------------------------------------------------------------


@pytest.fixture
def preflight(tmp_path, registry):
    """Verifies a host for some services; returns the exit status and what was told."""

    def run(host, connection, **pins):
        given = {"nvidia_driver_source": "preinstalled", "nim_services": services(registry, pins), **connection}
        return play_role(
            tmp_path,
            "preflight",
            {**given, "preflight_host": host, "__preflight_transactions": []},
            tasks="verify",
        )

    return run


def test_registry_decides_where_name_and_tag_tell_nothing(preflight, registry):
    code, told = preflight(HOST, HERE, undecided=UNDECIDED, tag=SERVICES["tag"])
    assert code == 0 and "gpu01 is fit" in told, told
    # What name and tag tell can wait until it is staged.
    assert asked(registry) == ["release-7"]


def test_host_is_refused_where_the_registry_tells_nothing_either(preflight, registry):
    registry.pages.clear()
    code, told = preflight(HOST, HERE, undecided=UNDECIDED)
    assert code == 2, told
    assert "cannot be told from tag 'release-7', nor does the registry tell it (HTTP Error 404" in told, told
    assert asked(registry) == ["release-7"]


def test_preflight_runs_nothing_on_the_host_otherwise(preflight, registry):
    there = reference(registry, UNDECIDED)
    host = {**HOST, "images": {there: "sha256:ab"}, "native_images": [there]}
    said = {"tag": "release-8", "contract": "llm"}
    code, told = preflight(host, AWAY, undecided=UNDECIDED, tag=SERVICES["tag"], said=said)
    assert code == 0 and registry.requests == [], told


def test_preflight_asks_nobody_for_a_host_without_a_network(preflight, registry):
    code, told = preflight(HOST, AWAY, undecided={**UNDECIDED, "offline": True})
    assert code == 2 and "contract cannot be told from tag 'release-7'; say contract" in told, told
    assert registry.requests == []
