# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How weights spread: the schedule, and rsync itself between two caches."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import time

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _share
from hypothesis import given
from hypothesis import strategies as st


def hosts(count):
    return [f"gpu{number:02}" for number in range(1, count + 1)]


def downloads(rounds):
    """Keys that are downloaded."""
    return [item["key"] for got in rounds for item in got.values() if item["source"] is None]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 64, 1000])
def test_one_download_and_as_many_rounds_as_doubling_takes(count):
    rounds = _share.schedule({name: ["llama"] for name in hosts(count)}, {})
    assert downloads(rounds) == ["llama"]
    assert len(rounds) == 1 + math.ceil(math.log2(count))
    assert sorted(name for got in rounds for name in got) == sorted(hosts(count))


def test_eight_hosts_round_by_round():
    rounds = _share.schedule({name: ["llama"] for name in hosts(4)}, {})
    assert rounds == [
        {"gpu01": {"key": "llama", "source": None}},
        {"gpu02": {"key": "llama", "source": "gpu01"}},
        {"gpu03": {"key": "llama", "source": "gpu01"}, "gpu04": {"key": "llama", "source": "gpu02"}},
    ]


def test_what_a_host_has_is_not_downloaded():
    rounds = _share.schedule({"gpu02": ["llama"]}, {"llama": ["gpu01"]})
    assert rounds == [{"gpu02": {"key": "llama", "source": "gpu01"}}]


def test_two_models_are_downloaded_at_a_time_by_two_hosts():
    rounds = _share.schedule({name: ["llama", "phi"] for name in hosts(2)}, {})
    assert rounds[0] == {"gpu01": {"key": "llama", "source": None}, "gpu02": {"key": "phi", "source": None}}
    assert rounds[1] == {"gpu01": {"key": "phi", "source": "gpu02"}, "gpu02": {"key": "llama", "source": "gpu01"}}
    assert len(rounds) == 2


def test_nobody_needs_anything():
    assert _share.schedule({"gpu01": []}, {"llama": ["gpu01"]}) == []


@given(
    st.dictionaries(st.sampled_from(hosts(9)), st.lists(st.sampled_from("abcd"), unique=True), max_size=9),
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from(["old1", "old2"]), unique=True, min_size=1)),
)
def test_every_schedule_is_sound(needs, holders):
    """Each host gets what it needs once, from one that has it, gives one thing a round; nothing is downloaded that somebody has."""
    have = {key: set(names) for key, names in holders.items()}
    got = {name: [] for name in needs}
    for turns in _share.schedule(needs, holders):
        sources = [item["source"] for item in turns.values() if item["source"]]
        assert len(sources) == len(set(sources))
        for item in turns.values():
            if item["source"] is None:
                assert not have.get(item["key"])
            else:
                assert item["source"] in have[item["key"]]
        for name, item in turns.items():
            have.setdefault(item["key"], set()).add(name)
            got[name].append(item["key"])
        fetched = [item["key"] for item in turns.values() if item["source"] is None]
        assert len(fetched) == len(set(fetched))
    assert {name: sorted(keys) for name, keys in got.items()} == {name: sorted(keys) for name, keys in needs.items()}


def need(key="k1", **changes):
    return {
        "name": "llama",
        "share_key": key,
        "cache": "/var/lib/nim/cache/llama",
        "prefetch": ["download-to-cache"],
        "prefetch_env": {},
        "cache_seed": "",
        "cache_marker": "cache",
        **changes,
    }


def known(name, *needs, staged=None, **variables):
    """Variables of a host."""
    cache = {"path": "/srv/nim/llama", "staged": staged} if staged is not None else None
    return {
        "inventory_hostname": name,
        "__model_cache_needs": list(needs),
        "preflight_host": {"services": {"llama": {"cache": cache}, "phi": {"cache": None}}},
        **variables,
    }


STAGED = {"share_key": "k1", "key": "s1", "bytes": 16_000_000_000}
DOWNLOAD = {"gets": {"service": "llama", "source": None, "address": None}, "gives": None}


def copied(source, address=None):
    """What a host that gets a copy is told."""
    return {"gets": {"service": "llama", "source": source, "address": address or source}, "gives": None}


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "gpu01"),
        ({"ansible_host": "10.0.0.1"}, "10.0.0.1"),
        ({"ansible_host": "10.0.0.1", "model_cache_address": "fd00::1"}, "fd00::1"),
        ({"ansible_host": "10.0.0.1", "model_cache_address": "", "__model_cache_address": "10.0.0.9"}, "10.0.0.9"),
    ],
)
def test_plan_names_where_the_weights_are(variables, address):
    plan = _share.staging_plan([known("gpu01", staged=STAGED, **variables), known("gpu02", need())])
    give = {"share_key": "k1", "path": "/srv/nim/llama", "to": "gpu02"}
    assert plan == [{"gpu01": {"gets": None, "gives": give}, "gpu02": copied("gpu01", address)}]


def test_plan_of_a_fleet_without_anything():
    plan = _share.staging_plan([known("gpu01", need()), known("gpu02", need())])
    give = {"share_key": "k1", "path": "/var/lib/nim/cache/llama", "to": "gpu02"}
    assert plan == [{"gpu01": DOWNLOAD}, {"gpu01": {"gets": None, "gives": give}, "gpu02": copied("gpu01")}]


def test_plan_lets_a_host_give_while_it_gets():
    phi = {**need("k2"), "name": "phi", "cache": "/var/lib/nim/cache/phi"}
    first, second = known("gpu01", need(), phi), known("gpu02", need(), phi)
    (one, two) = _share.staging_plan([first, second])
    assert one["gpu01"]["gets"]["service"] == "llama" and one["gpu02"]["gets"]["service"] == "phi"
    assert two["gpu01"]["gives"]["to"] == "gpu02" and two["gpu01"]["gets"]["service"] == "phi"
    assert two["gpu02"]["gives"]["path"] == "/var/lib/nim/cache/phi"


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([need(cache_seed="/srv/seed.tar")], id="was-given-a-seed"),
        pytest.param([need(prefetch=[])], id="has-no-weights"),
        pytest.param([need(cache_marker="host")], id="shares-its-cache-already"),
        pytest.param([], id="lacks-nothing"),
    ],
)
def test_plan_leaves_out_what_is_not_shared(others):
    assert _share.staging_plan([known("gpu01", *others)]) == []


def test_plan_leaves_out_what_a_host_has_itself():
    """Its image may be what is missing."""
    assert _share.staging_plan([known("gpu01", need(), staged=STAGED)]) == []


@pytest.mark.parametrize(
    "staged",
    [{}, {"key": "s1"}, {"share_key": "", "key": "s1"}, {"share_key": "k2"}],
    ids=["none", "older", "empty", "other"],
)
def test_plan_trusts_the_identity_of_what_is_staged(staged):
    assert _share.staging_plan([known("gpu01", staged=staged), known("gpu02", need())]) == [{"gpu02": DOWNLOAD}]


def test_plan_of_a_host_that_was_never_read():
    assert _share.staging_plan([{"inventory_hostname": "gpu03"}, known("gpu02", need())]) == [{"gpu02": DOWNLOAD}]


# -- rsync itself ------------------------------------------------------------------------------------------------------

PASSWORD = "p4ssw0rd-of-one-play"


@pytest.fixture
def serving(tmp_path, port):
    """A cache and a daemon that serves it; returns the cache, the port and where to copy."""
    assert shutil.which("rsync"), "rsync is not installed: make tools"
    cache, there = tmp_path / "cache of llama", tmp_path / "there"
    for name in ("ngc/hub/blobs/1f2e", "vllm/torch_compile_cache/x.so", "model/vllm/kept", ".baremetal-nim.json"):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(f"content of {name}")
    (cache / "ngc/hub/snapshot").symlink_to("blobs/1f2e")
    there.mkdir()
    secrets, config = tmp_path / "secrets", tmp_path / "conf"
    secrets.write_text(f"{_share.USER}:{PASSWORD}\n")
    secrets.chmod(0o600)
    text = _share.daemon_config(str(cache), os.getuid(), os.getgid(), str(secrets), str(tmp_path / "lock"))
    config.write_text(text if os.getuid() == 0 else text.replace("use chroot = yes", "use chroot = no"))
    daemon = subprocess.Popen(
        ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={port}", "--address=127.0.0.1"],
        stderr=subprocess.DEVNULL,
    )
    for _attempt in range(1200):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield cache, port, there
    daemon.terminate()
    daemon.wait()


def copy(port, there, password=PASSWORD, **options):
    command = _share.copy_command("127.0.0.1", port, str(there), os.getuid(), os.getgid())
    assert PASSWORD not in " ".join(command)
    return subprocess.run(command, input=f"{password}\n", text=True, capture_output=True, check=False, **options)


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_copy_brings_the_weights_and_not_what_was_compiled(serving):
    cache, port, there = serving
    done = copy(port, there)
    assert done.returncode == 0, done.stderr
    assert tree(there) == ["model/vllm/kept", "ngc/hub/blobs/1f2e", "ngc/hub/snapshot"]
    assert (there / "ngc/hub/snapshot").is_symlink()
    assert (there / "ngc/hub/snapshot").read_text() == (cache / "ngc/hub/snapshot").read_text()


def test_copy_finds_what_looks_the_same_and_is_not(serving):
    """Same size, same time, other content: a cut-off or rotten file; the second pass compares checksums."""
    cache, port, there = serving
    copy(port, there)
    blob, stat = there / "ngc/hub/blobs/1f2e", (cache / "ngc/hub/blobs/1f2e").stat()
    blob.write_text("CONTENT OF ngc/hub/blobs/1f2e")
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert copy(port, there).returncode == 0
    assert blob.read_text() == "content of ngc/hub/blobs/1f2e"


@pytest.mark.parametrize("password", ["wrong", ""])
def test_copy_needs_the_password(serving, password):
    _cache, port, there = serving
    done = copy(port, there, password)
    assert done.returncode != 0 and tree(there) == []
    assert "auth failed" in done.stderr


def test_nothing_can_be_written_to_a_daemon(serving):
    cache, port, there = serving
    (there / "planted").write_text("x")
    done = subprocess.run(
        ["rsync", str(there / "planted"), f"rsync://{_share.USER}@127.0.0.1:{port}/{_share.MODULE}/"],
        env={**os.environ, "RSYNC_PASSWORD": PASSWORD}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "read only" in done.stderr
    assert "planted" not in tree(cache)
