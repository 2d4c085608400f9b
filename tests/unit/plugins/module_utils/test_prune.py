# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may go, and everything that must not."""

from __future__ import annotations

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _prune
from ansible_collections.baremetal.nim.plugins.module_utils._host import SERVICE_LABEL

ROOT = "/var/lib/nim/cache"
OWN = ["/var/lib/nim/services", "/var/lib/nim/previous", "/var/lib/nim/staged"]
MOUNTS = {"/": "ext4", "/mnt/nfs": "nfs4"}
REPOSITORY = "nvcr.io/nim/meta/llama"
REFERENCE = f"{REPOSITORY}@sha256:{'a' * 64}"
IMAGE = {"Id": "sha256:1234", "RepoDigests": [REFERENCE], "RepoTags": [f"{REPOSITORY}:1.8.6"], "Size": 277_000_000}


@pytest.mark.parametrize(
    ("root", "real", "told"),
    [
        pytest.param(ROOT, ROOT, "", id="default"),
        pytest.param("/mnt/nim", "/mnt/nim", "", id="own-disk"),
        pytest.param("/models", "/models", "", id="own-disk-at-the-top"),
        pytest.param("/home/nim/cache", "/home/nim/cache", "", id="below-a-home"),
        pytest.param("/", "/", "holds /bin", id="everything"),
        pytest.param("/var", "/var", "holds /var/cache", id="var"),
        pytest.param("/var/lib", "/var/lib", "holds /var/lib/containerd", id="var-lib"),
        pytest.param("/var/lib/nim", "/var/lib/nim", "holds /var/lib/nim/services", id="our-own-records"),
        pytest.param("/home", "/home", "holds /home", id="home"),
        pytest.param("/home/nim", "/home/nim", "place of a user", id="a-home"),
        pytest.param("/mnt", "/mnt", "holds /mnt", id="mnt"),
        pytest.param("/etc/nim", "/etc/nim", "place of /etc", id="etc"),
        pytest.param("/var/lib/docker/volumes", "/var/lib/docker/volumes", "place of /var/lib/docker", id="docker"),
        pytest.param(ROOT, "/srv/nim", "leads to /srv/nim by a symbolic link", id="link"),
        pytest.param("cache", "cache", "no plain absolute path", id="relative"),
        pytest.param(f"{ROOT}/..", ROOT, "no plain absolute path", id="dots"),
        pytest.param(f"{ROOT}/", ROOT, "no plain absolute path", id="slash"),
    ],
)
def test_refusal(root, real, told):
    said = _prune.refusal(root, real, OWN)
    assert told in said
    assert bool(told) == bool(said)


def test_mounts():
    text = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "40 22 0:35 / /mnt/two\\040words rw - nfs4 server:/x rw\n"
        "41 22 0:36 / /mnt/none rw shared:2 master:1 - tmpfs tmpfs rw\n"
        "broken\n"
    )
    assert _prune.parse_mounts(text) == {"/": "ext4", "/mnt/two words": "nfs4", "/mnt/none": "tmpfs"}


@pytest.mark.parametrize(
    ("path", "kind"), [("/mnt/nfs/llama", "nfs4"), ("/mnt/nfs", "nfs4"), ("/mnt/nfs2", "ext4"), ("/", "ext4")]
)
def test_file_system(path, kind):
    assert _prune.file_system(path, MOUNTS) == kind


def test_file_system_of_a_host_that_tells_none():
    assert _prune.file_system("/mnt", {}) == ""


def test_what_containers_use():
    item = {
        "Name": "/nim-llama",
        "Image": "sha256:1234",
        "Config": {"Image": REFERENCE, "Labels": {SERVICE_LABEL: "chat"}},
        "Mounts": [{"Source": f"{ROOT}/llama"}, {"Type": "tmpfs"}],
    }
    other = {"Name": "/db", "Image": "sha256:5678", "Config": {"Image": "postgres", "Labels": None}, "Mounts": None}
    who = "container nim-llama"
    assert _prune.containers([item, other]) == {
        "names": {"chat": who, "llama": who},
        "paths": {f"{ROOT}/llama": who},
        "images": {"sha256:1234": who, REFERENCE: who, "sha256:5678": "container db", "postgres": "container db"},
    }


def test_what_is_being_staged():
    text = (
        "nim-stage-llama.service loaded active running baremetal.nim: download\n"
        "  nim-pull-phi-4.service loaded activating start baremetal.nim: pull\nother.service\n"
        "  nim-stage-old.service loaded active exited baremetal.nim: download\n"
        "● nim-pull-old.service loaded failed failed baremetal.nim: pull\n"
    )
    assert _prune.staging(text) == (
        {"llama": "unit nim-stage-llama.service", "phi-4": "unit nim-pull-phi-4.service"},
        # What has ended brings nothing any more, and uses nothing.
        {"old": ["nim-stage-old.service", "nim-pull-old.service"]},
    )


def test_volumes_of_a_unit():
    text = f"ExecStart=nim-run \\\n  --volume {ROOT}/llama:/opt/nim/.cache:ro \\\n  --volume=/mnt/x:/y --env A=/b:c\n"
    assert _prune.volumes(text) == [f"{ROOT}/llama", "/mnt/x"]


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        (f"{REPOSITORY}:1.8.6", REPOSITORY),
        (REFERENCE, REPOSITORY),
        ("nvcr.lab:5000/nim/llama", "nvcr.lab:5000/nim/llama"),
        ("nvcr.lab:5000/nim/llama:1@sha256:aa", "nvcr.lab:5000/nim/llama"),
        ("postgres:17", "postgres"),
    ],
)
def test_repository(reference, name):
    assert _prune.repository(reference) == name


def test_known_repositories():
    records = [
        {"image": "a.io/now:1", "image_reference": "sha256:1234", "history": [{"image": "a.io/before:1"}, "broken"]},
        {"image": None, "history": None},
    ]
    assert _prune.known_repositories(records, "a.io/noted\n", ["a.io/wanted:2"]) == {
        "a.io/now",
        "a.io/before",
        "a.io/noted",
        "a.io/wanted",
    }


# -- caches ------------------------------------------------------------------------------------------------------------


def entry(name="llama", kind="directory", marked=True, foreign=False):
    """What lies in the root."""
    return {"name": name, "kind": kind, "marked": marked, "foreign": foreign}


@pytest.mark.parametrize(
    ("change", "names", "paths", "mounts", "reason"),
    [
        pytest.param({}, {"llama": "wanted"}, {}, {}, "used: wanted", id="wanted"),
        pytest.param({}, {"llama": "kept for rollback"}, {}, {}, "used: kept for rollback", id="kept"),
        pytest.param({}, {"llama": "unit nim-stage-llama"}, {}, {}, "used: unit nim-stage-llama", id="staging"),
        pytest.param({}, {}, {f"{ROOT}/llama": "container x"}, {}, "used: container x", id="mounted-by-a-container"),
        pytest.param({}, {}, {f"{ROOT}/llama/ngc": "container x"}, {}, "used: container x", id="a-part-of-it"),
        pytest.param({}, {}, {ROOT: "container x"}, {}, "used: container x", id="the-root-given-to-a-container"),
        pytest.param({"kind": "link"}, {}, {}, {}, "a symbolic link, which is not followed", id="link"),
        pytest.param({"kind": "other"}, {}, {}, {}, "no directory", id="file"),
        pytest.param({}, {}, {}, {f"{ROOT}/llama": "nfs4"}, f"nfs4 is mounted at {ROOT}/llama", id="mount-point"),
        pytest.param({}, {}, {}, {f"{ROOT}/llama/a/b": "nfs"}, f"nfs is mounted at {ROOT}/llama/a/b", id="mount-below"),
        pytest.param({}, {}, {}, {ROOT: "nfs4"}, "on nfs4, which other hosts may use", id="shared-nfs"),
        pytest.param({}, {}, {}, {"/var": "fuse.s3fs"}, "on fuse.s3fs, which other hosts may use", id="shared-fuse"),
        pytest.param({"marked": False}, {}, {}, {}, "unknown: no marker of staged weights", id="unknown"),
        pytest.param({"foreign": True}, {}, {}, {}, "was only read here: somebody else filled it", id="only-read"),
    ],
)
def test_cache_that_is_kept(change, names, paths, mounts, reason):
    used = {"names": names, "paths": paths}
    plan = _prune.plan_caches(ROOT, [entry(**change)], used, {**MOUNTS, **mounts}, unknown=False)
    assert plan == {"remove": [], "keep": [{"path": f"{ROOT}/llama", "reason": reason}]}


@pytest.mark.parametrize(
    ("change", "paths", "mounts", "unknown", "reason"),
    [
        pytest.param({}, {}, {}, False, "no service llama is wanted, deployed or kept", id="unused"),
        pytest.param({"marked": False}, {}, {}, True, "unknown, and no service uses it", id="unknown-asked-for"),
        pytest.param({"name": ".pruned-llama"}, {}, {}, False, "an earlier prune was cut off", id="left-over"),
        pytest.param(
            {}, {"/": "container monitor"}, {}, False, "no service llama is wanted, deployed or kept", id="monitor"
        ),
        pytest.param(
            {}, {f"{ROOT}/llama-2": "x"}, {}, False, "no service llama is wanted, deployed or kept", id="like-name"
        ),
        pytest.param({}, {}, {ROOT: "xfs"}, False, "no service llama is wanted, deployed or kept", id="own-disk"),
    ],
)
def test_cache_that_goes(change, paths, mounts, unknown, reason):
    item = entry(**change)
    used = {"names": {"phi": "wanted"}, "paths": paths}
    plan = _prune.plan_caches(ROOT, [item], used, {**MOUNTS, **mounts}, unknown)
    assert plan == {"remove": [{"path": f"{ROOT}/{item['name']}", "reason": reason}], "keep": []}


@pytest.mark.parametrize(
    "change",
    [{"kind": "link"}, {"foreign": True}],
    ids=["link", "only-read"],
)
def test_unknown_does_not_mean_everything(change):
    plan = _prune.plan_caches(ROOT, [entry(marked=False, **change)], {"names": {}, "paths": {}}, MOUNTS, unknown=True)
    assert not plan["remove"]


# -- images ------------------------------------------------------------------------------------------------------------


def test_image_that_goes_does_so_by_all_its_references():
    plan = _prune.plan_images([IMAGE], [REPOSITORY], {}, "")
    assert plan["keep"] == []
    assert plan["remove"] == [
        {
            "path": REFERENCE,
            "reason": "no service refers to it",
            "bytes": 277_000_000,
            "references": [REFERENCE, f"{REPOSITORY}:1.8.6"],
            "id": IMAGE["Id"],
        }
    ]


@pytest.mark.parametrize(
    ("image", "used", "blind", "reason"),
    [
        pytest.param({}, {"sha256:1234": "container x"}, "", "used: container x", id="by-a-container"),
        pytest.param({}, {REFERENCE: "kept of x"}, "", "used: kept of x", id="by-a-kept-copy"),
        pytest.param({}, {f"{REPOSITORY}:1.8.6": "wanted"}, "", "used: wanted", id="by-tag"),
        pytest.param({}, {}, "x.json cannot be read", "x.json cannot be read", id="corrupt-record"),
        pytest.param({"RepoTags": ["mine:1"]}, {}, "", "is also mine:1", id="has-another-name"),
    ],
)
def test_image_that_is_kept(image, used, blind, reason):
    plan = _prune.plan_images([{**IMAGE, **image}], [REPOSITORY], used, blind)
    assert plan == {"remove": [], "keep": [{"path": REFERENCE, "reason": reason}]}


@pytest.mark.parametrize(
    "image",
    [{"RepoDigests": ["postgres@sha256:aa"], "RepoTags": ["postgres:17"]}, {"RepoDigests": [], "RepoTags": None}],
    ids=["foreign", "nameless"],
)
def test_images_of_others_are_not_looked_at(image):
    assert _prune.plan_images([{**IMAGE, **image}], [REPOSITORY], {}, "") == {"remove": [], "keep": []}


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "words"), [(False, ("removed", "gained")), (True, ("would remove", "would gain about"))]
)
def test_told(check, words):
    removed = [{"path": f"{ROOT}/llama", "bytes": 16_059_123_456, "reason": "no service"}]
    kept = [{"path": f"{ROOT}/x", "reason": "unknown: no marker"}, {"path": f"{ROOT}/y", "reason": "used: wanted"}]
    places = [{"path": ROOT, "bytes": 153_600, "all": True}]
    assert _prune.told(removed, kept, places, check) == [
        f"{words[0]} 16.1 GB (apparent), the disk {words[1]} 153.6 kB",
        f"{words[0]} {ROOT}/llama, 16.1 GB: no service",
        f"kept {ROOT}/x: unknown: no marker",
    ]


@pytest.mark.parametrize(
    ("places", "check", "words"),
    [
        ([(0, True)], False, "the disk gained 0 B"),
        ([(-2_000_000, True)], False, "the disk gained nothing: others wrote 2.0 MB meanwhile"),
        ([(5000, True), (3000, True)], False, "the disk gained 8.0 kB (5.0 kB in /0, 3.0 kB in /1)"),
        ([(5000, True), (-3000, True)], False, "the disk gained 2.0 kB (5.0 kB in /0, 0 B in /1)"),
        ([(5000, True), (3000, False)], True, "the disk would gain at least 8.0 kB (5.0 kB in /0, 3.0 kB in /1)"),
        ([(0, True)], True, "the disk would gain about 0 B"),
    ],
)
def test_what_the_disk_gained(places, check, words):
    given = [{"path": f"/{number}", "bytes": size, "all": whole} for number, (size, whole) in enumerate(places)]
    assert _prune.gain(given, check) == words


def test_nothing_to_remove_is_said_so():
    assert _prune.told([], [{"path": "/x", "reason": "used: wanted"}], [], False) == ["nothing to remove"]
