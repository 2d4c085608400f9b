# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module on real directories; docker, podman and systemctl are small scripts that answer from files and write down what they are told."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils._staged import MARKER
from ansible_collections.baremetal.nim.plugins.modules import nim_prune

REPOSITORY = "nvcr.io/nim/meta/llama"
OLD, NEW, LAST = (f"{REPOSITORY}@sha256:{digit * 64}" for digit in "abc")
ENGINE = """\
#!/bin/sh
[ ! -e "$0.err" ] || { cat "$0.err" >&2; exit 1; }
case "$1 $2" in
  "ps --all") cat "$0.ps" 2>/dev/null ;;
  "image ls") cat "$0.images" 2>/dev/null ;;
  "container inspect") cat "$0.containers" ;;
  "image inspect") cat "$0.inspected" ;;
  "info --format") cat "$0.root" 2>/dev/null || echo /nowhere/engine ;;
  "history --no-trunc") for id; do :; done; cat "$0.history.$id" ;;
  "image rm")
    echo "$@" >> "$0.removed"
    [ ! -e "$0.refuses" ] || { cat "$0.refuses" >&2; exit 1; } ;;
esac
true
"""
SYSTEMCTL = """\
#!/bin/sh
[ ! -e "$0.err" ] || { cat "$0.err" >&2; exit 1; }
cat "$0.units" 2>/dev/null || true
"""


def image(reference, number):
    return {"Id": f"sha256:{number}", "RepoDigests": [reference], "RepoTags": [], "Size": 1000}


class Host:
    """A host with caches, and one engine."""

    def __init__(self, root, engine):
        self.root, self.cache, self.engine = root, root / "cache", engine
        self.cache.mkdir()
        self.bin = root / "bin"
        programs = {engine: ENGINE, "systemctl": SYSTEMCTL, **({"dockerd": ""} if engine == "docker" else {})}
        for name, body in programs.items():
            self.write(f"bin/{name}", body).chmod(0o755)
        self.write("mountinfo", "22 1 254:0 / / rw - ext4 /dev/vda rw\n")

    def write(self, path, text):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def staged(self, name, size=5000, marker=True):
        """A cache."""
        self.write(f"cache/{name}/ngc/weights", "w" * size)
        if marker:
            self.write(f"cache/{name}/{MARKER}", json.dumps({"key": "k"}))

    def record(self, name, reference, folder="services", **more):
        record = json.dumps({"image_reference": reference, "image": f"{REPOSITORY}:1", **more})
        self.write(f"nim/services/{name}.json" if folder == "services" else f"nim/previous/{name}/record", record)
        if folder != "services":
            self.write(f"nim/previous/{name}/unit", f"ExecStart=nim-run {reference}\n")

    def images(self, *references):
        found = [{**image(item, number), "Id": self.id(number)} for number, item in enumerate(references)]
        self.write(f"bin/{self.engine}.images", "".join(f"{item['Id']}\n" for item in found))
        self.write(f"bin/{self.engine}.inspected", json.dumps(found))

    def id(self, number):
        """The id of an image as the engine writes it."""
        return f"sha256:{number}" if self.engine == "docker" else str(number)

    def container(self, name, source, number=99):
        self.write(f"bin/{self.engine}.ps", "0123\n")
        item = {
            "Name": f"/{name}",
            "Image": self.id(number),
            "Config": {"Image": "x"},
            "Mounts": [{"Source": str(source)}],
        }
        self.write(f"bin/{self.engine}.containers", json.dumps([item]))

    def removed_images(self):
        log = self.bin / f"{self.engine}.removed"
        return [line.split()[2:] for line in log.read_text().splitlines()] if log.exists() else []

    def left(self):
        return sorted(path.name for path in self.cache.iterdir())


@pytest.fixture(params=["docker", "podman"])
def host(request, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    # Not the engines of the machine that runs the tests.
    monkeypatch.setattr(
        AnsibleModule, "get_bin_path", lambda _self, name, *_args: shutil.which(name, path=f"{tmp_path}/bin")
    )
    monkeypatch.setattr(nim_prune, "MOUNTINFO", str(tmp_path / "mountinfo"))
    return Host(tmp_path, request.param)


@pytest.fixture
def call(host, capsys):
    def run(check=False, **options):
        args = {
            "services": [],
            "cache_root": str(host.cache),
            "host_dir": str(host.root / "nim"),
            "unit_dir": str(host.root / "units"),
            "quadlet_dir": str(host.root / "quadlets"),
            **options,
        }
        with patch_module_args({**args, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            nim_prune.main()
        return json.loads(capsys.readouterr().out)

    return run


def paths(items):
    return [item["path"].rpartition("/")[2] for item in items]


@pytest.fixture
def full(host):
    """One of everything."""
    for name in ("wanted", "deployed", "unit", "kept", "running", "staging", "corrupt", "unused"):
        host.staged(name)
    host.staged("unknown", marker=False)
    host.record("deployed", NEW)
    host.record("kept", LAST, folder="previous")
    host.write("units/nim-unit.service", "ExecStart=nim-run x\n")
    host.write("bin/systemctl.units", "nim-stage-staging.service loaded active running download\n")
    host.container("stranger", host.cache / "running")
    host.write("nim/services/corrupt.json", '{"image": ')
    (host.root / "elsewhere").mkdir()
    (host.cache / "link").symlink_to(host.root / "elsewhere")
    return host


def test_only_what_is_proven_unused_goes(full, call):
    result = call(services=["wanted"])
    assert paths(result["removed"]) == ["unused"]
    assert result["changed"] and result["removed_bytes"] == result["removed"][0]["bytes"] >= 5000
    assert full.left() == ["corrupt", "deployed", "kept", "link", "running", "staging", "unit", "unknown", "wanted"]
    reasons = {item["path"].rpartition("/")[2]: item["reason"] for item in result["kept"]}
    assert reasons.pop("corrupt").endswith("corrupt.json cannot be read")
    assert reasons == {
        "wanted": "used: wanted",
        "deployed": "used: deployed",
        "unit": "used: unit nim-unit.service",
        "kept": "used: kept for rollback",
        "running": "used: container stranger",
        "staging": "used: unit nim-stage-staging.service",
        "unknown": "unknown: no marker of staged weights",
        "link": "a symbolic link, which is not followed",
    }
    again = call(services=["wanted"])
    assert (again["changed"], again["removed"], again["freed_bytes"]) == (False, [], 0)


def test_check_mode_tells_and_keeps(full, call):
    full.images(OLD)
    (full.root / "nim/services/corrupt.json").unlink()
    full.write("nim/repositories", f"{REPOSITORY}\n")
    before = full.left()
    result = call(check=True, services=["wanted", "corrupt"])
    assert paths(result["removed"]) == ["unused", OLD.rpartition("/")[2]]
    apparent = f"{result['removed_bytes'] / 1000:.1f} kB (apparent)"
    assert result["changed"] and result["summary"][0].startswith(f"would remove {apparent}, the disk would gain ")
    assert full.left() == before and full.removed_images() == []


def test_unknown_on_request(full, call):
    assert paths(call(services=["wanted"], unknown=True)["removed"]) == ["unknown", "unused"]
    assert (full.root / "elsewhere").is_dir()


def test_links_in_a_cache_are_not_followed(host, call):
    host.staged("unused")
    precious = host.write("precious/weights", "w")
    (host.cache / "unused/link").symlink_to(host.root / "precious")
    assert paths(call()["removed"]) == ["unused"]
    assert precious.exists() and host.left() == []


def test_mount_point_below_is_left_alone(host, call):
    host.staged("unused")
    host.write(
        "mountinfo", f"22 1 0:1 / / rw - ext4 x rw\n40 22 0:2 / {host.cache}/unused/ngc rw - nfs4 server:/x rw\n"
    )
    result = call()
    assert result["removed"] == [] and host.left() == ["unused"]
    assert result["kept"][0]["reason"] == f"nfs4 is mounted at {host.cache}/unused/ngc"


def test_pipe_as_a_marker_is_none(host, call):
    (host.cache / "trap").mkdir()
    os.mkfifo(host.cache / "trap" / MARKER)
    assert call()["kept"][0]["reason"].startswith("unknown")


def test_cut_off_deletion_is_finished(host, call):
    host.staged(".pruned-unused", marker=False)
    assert paths(call()["removed"]) == [".pruned-unused"]
    assert host.left() == []


@pytest.mark.parametrize("read_only", [False, True])
def test_cache_whose_marker_the_host_keeps(host, call, read_only):
    host.staged("squashed", marker=False)
    text = json.dumps(
        {"path": str(host.cache / "squashed"), "read_only": read_only, "image_reference": OLD, "key": "k"}
    )
    note = host.write("nim/staged/squashed.json", text)
    assert paths(call()["removed"]) == ([] if read_only else ["squashed"])
    assert note.exists() is read_only


@pytest.mark.parametrize(
    ("unit", "volume"),
    [("units/nim-llama.service", "  --volume {} \\\n"), ("quadlets/nim-llama.container", "Volume={}\n")],
)
def test_cache_of_another_name_that_a_service_was_given(host, call, unit, volume):
    host.staged("shared")
    assert call(services=["llama"], caches=[str(host.cache / "shared")])["removed"] == []
    host.write(unit, volume.format(f"{host.cache}/shared:/opt/nim/.cache:ro"))
    assert call()["removed"] == []


# -- images ------------------------------------------------------------------------------------------------------------


def test_images(host, call):
    host.images(OLD, NEW, LAST, "postgres@sha256:aa")
    host.record("llama", NEW, history=[{"image_reference": OLD}])
    host.record("llama", LAST, folder="previous")
    result = call()
    assert [item["path"] for item in result["removed"]] == [OLD]
    assert host.removed_images() == [[OLD]]
    assert [item["reason"] for item in result["kept"]] == [
        "used: deployed of llama",
        "used: kept for rollback of llama",
    ]


@pytest.mark.parametrize(
    ("deployed", "copied", "kept"),
    [
        pytest.param({"config_hash": "b"}, {"config_hash": "a"}, False, id="the-upgrade-is-over"),
        pytest.param({"config_hash": "a"}, {"config_hash": "a"}, True, id="the-upgrade-may-still-fail"),
        pytest.param({}, {"config_hash": "a"}, True, id="nobody-knows"),
    ],
)
def test_what_was_kept_before_the_last_copy_is_of_use_during_an_upgrade_only(host, call, deployed, copied, kept):
    host.images(OLD, NEW, LAST)
    host.record("llama", NEW, **deployed)
    host.record("llama", LAST, folder="previous", **copied)
    host.record("llama.before", OLD, folder="previous", config_hash="0")
    assert (OLD not in [item["path"] for item in call()["removed"]]) is kept


def test_image_of_a_removed_service_is_known_by_the_note(host, call):
    host.images(OLD)
    assert call()["removed"] == []
    host.write("nim/repositories", f"{REPOSITORY}\n")
    assert [item["path"] for item in call()["removed"]] == [OLD]


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("units/nim-llama.service", "ExecStart=nim-run nim-llama 60 \\\n  {}\n"),
        ("quadlets/nim-llama.container", "ContainerName=nim-llama\nImage={}\n"),
    ],
)
def test_image_that_only_a_unit_names_stays(host, call, unit, text):
    host.images(OLD)
    host.write("nim/repositories", f"{REPOSITORY}\n")
    host.write(unit, text.format(OLD))
    assert call()["removed"] == []


@pytest.mark.parametrize("path", ["nim/services/x.json", "nim/previous/x/record"], ids=["record", "kept-copy"])
def test_unreadable_record_keeps_all_images(host, call, path):
    host.images(OLD)
    host.write("nim/repositories", f"{REPOSITORY}\n")
    host.write(path, "[]")
    result = call()
    assert result["removed"] == [] and "cannot be read" in result["kept"][0]["reason"]


@pytest.mark.parametrize(
    ("said", "gone"),
    [("Error: No such image: x", True), ("Error: x: image not known", True), ("conflict: container 1 uses it", False)],
)
def test_engine_that_refuses(host, call, said, gone):
    host.images(OLD)
    host.write("nim/repositories", f"{REPOSITORY}\n")
    host.write(f"bin/{host.engine}.refuses", f"{said}\n")
    result = call()
    assert bool(result["removed"]) is gone
    assert gone or result["kept"] == [{"path": OLD, "reason": f"{host.engine} keeps it: {said}"}]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["engine", "systemctl"])
def test_who_does_not_answer_is_not_guessed(host, call, command):
    host.staged("unused")
    host.write(f"bin/{host.engine if command == 'engine' else command}.err", "Cannot connect")
    result = call()
    assert result["failed"] and "Cannot connect" in result["msg"] and "Nothing was removed." in result["msg"]
    assert host.left() == ["unused"]


def test_root_behind_a_link_is_refused(host, call):
    host.staged("unused")
    (host.root / "alias").symlink_to(host.cache)
    result = call(cache_root=str(host.root / "alias"))
    assert result["failed"] and f"leads to {host.cache} by a symbolic link" in result["msg"]
    assert host.left() == ["unused"]


def test_root_that_holds_more_is_refused(call):
    assert "holds /bin" in call(cache_root="/")["msg"]


def test_host_without_caches(host, call):
    result = call(cache_root=str(host.root / "none"))
    assert (result["changed"], result["removed"], result["summary"]) == (False, [], ["nothing to remove"])


def test_file_system_that_refuses(host, call, monkeypatch):
    host.staged("unused")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(
        nim_prune.shutil, "rmtree", type("", (), {"avoids_symlink_attacks": True, "__call__": staticmethod(refuse)})()
    )
    result = call()
    assert result["failed"] and "Permission denied, wanted to remove" in result["msg"]


# -- what the disk gains -----------------------------------------------------------------------------------------------


@pytest.fixture
def disks(monkeypatch):
    """Lets each look at the free space of a path tell the next of its numbers."""

    def tells(**numbers):
        left = {name: list(values) for name, values in numbers.items()}
        monkeypatch.setattr(nim_prune._disk, "free", lambda path: left[os.path.basename(path)].pop(0))
        return left

    return tells


def stored(host, *images):
    """Images with layers of the engine, which has its history of them. Each is a reference and sizes by layer, the lowest first."""
    root = host.root / "engine"
    root.mkdir()
    host.write(f"bin/{host.engine}.root", f"{root}\n")
    host.images(*(reference for reference, _layers in images))
    inspected = json.loads((host.bin / f"{host.engine}.inspected").read_text())
    for item, (_reference, layers) in zip(inspected, images):
        item["RootFS"] = {"Layers": list(layers)}
        item["Size"] = sum(layers.values())
        made = [*((size, f"RUN {name}") for name, size in layers.items()), (0, "ENV A=b")][::-1]
        lines = "".join(f"{size}\t{how}\n" for size, how in made)
        history = (
            lines if host.engine == "docker" else json.dumps([{"size": size, "CreatedBy": how} for size, how in made])
        )
        host.write(f"bin/{host.engine}.history.{item['Id']}", history)
    host.write(f"bin/{host.engine}.inspected", json.dumps(inspected))
    host.write("nim/repositories", f"{REPOSITORY}\n")


def test_what_tags_share_is_not_gained(host, call, disks):
    """Two versions of one base: the old one's own layer is all that goes with it."""
    stored(host, (OLD, {"base": 14_000_000_000, "old": 150_000}), (NEW, {"base": 14_000_000_000, "new": 160_000}))
    check = call(check=True, images=[NEW])
    assert (check["removed_bytes"], check["freed_bytes"]) == (14_000_150_000, 150_000)
    assert check["summary"][0] == "would remove 14.0 GB (apparent), the disk would gain about 150.0 kB"
    left = disks(engine=[1_000_000, 1_149_000])
    result = call(images=[NEW])
    assert (result["removed_bytes"], result["freed_bytes"]) == (14_000_150_000, 149_000)
    assert result["summary"][0] == "removed 14.0 GB (apparent), the disk gained 149.0 kB"
    assert left == {"engine": []}


def test_layers_that_go_with_several_images_count_once(host, call):
    stored(host, (OLD, {"base": 5_000, "old": 100}), (NEW, {"base": 5_000, "new": 10}))
    check = call(check=True)
    assert (check["removed_bytes"], check["freed_bytes"]) == (10_110, 5_110)


def test_an_engine_that_does_not_tell_its_layers(host, call):
    stored(host, (OLD, {"base": 5_000, "old": 100}))
    (host.bin / f"{host.engine}.history.{host.id(0)}").write_text("3kB\tRUN x\n")
    check = call(check=True)
    assert check["gained"] == [{"path": str(host.root / "engine"), "bytes": 0, "all": False}]
    assert "the disk would gain at least 0 B" in check["summary"][0]


def test_caches_and_images_on_disks_of_their_own(host, call, disks):
    host.staged("unused")
    stored(host, (OLD, {"base": 5_000}))
    disks(cache=[10_000, 15_500], engine=[70_000, 75_000])
    result = call()
    assert result["freed_bytes"] == 10_500
    assert [place["bytes"] for place in result["gained"]] == [5_500, 5_000]
    assert f"the disk gained 10.5 kB (5.5 kB in {host.cache}, 5.0 kB in {host.root}/engine)" in result["summary"][0]


def test_a_disk_that_others_fill_meanwhile(host, call, disks):
    host.staged("unused")
    disks(cache=[10_000_000, 8_000_000])
    result = call()
    assert (result["freed_bytes"], result["gained"][0]["bytes"]) == (0, -2_000_000)
    assert result["summary"][0].endswith("the disk gained nothing: others wrote 2.0 MB meanwhile")


def test_a_cache_that_is_linked_from_elsewhere_frees_nothing(host, call):
    host.staged("unused", size=3_000_000)
    os.link(host.cache / "unused/ngc/weights", host.root / "elsewhere")
    check = call(check=True)
    assert check["removed_bytes"] >= 3_000_000 > check["freed_bytes"]


def test_what_was_gained_before_it_failed_is_told(host, call, disks, monkeypatch):
    host.staged("a")
    host.staged("b")
    disks(cache=[10_000, 15_000])
    remove = nim_prune.Host.remove_cache

    def fails(self, path):
        if path.endswith("/b"):
            raise OSError(5, "Input/output error", path)
        remove(self, path)

    monkeypatch.setattr(nim_prune.Host, "remove_cache", fails)
    result = call()
    assert result["failed"] and result["freed_bytes"] == 5_000 and paths(result["removed"]) == ["a"]
