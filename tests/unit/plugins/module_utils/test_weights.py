# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of weights on real file systems, laid by somebody who means no good."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import tarfile

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _staged, _staging, _tree, _weights

LATER = float("inf")


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def sums(entries):
    return {name: entry.sum for name, entry in entries.items()}


@pytest.fixture
def cache(tmp_path):
    """A cache as hubs lay it: blobs, and links to them."""
    folder = tmp_path / "cache"
    for name, text in {
        "blobs/1": "one" * 1000,
        "blobs/2": "two" * 1000,
        "config.json": "{}",
        "vllm/kernel.so": "own",
    }.items():
        path = folder / "hub" / name if not name.startswith("vllm") else folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "hub/model").symlink_to("blobs/1")
    for name in (_staged.MARKER, _staged.LIST):
        (folder / name).write_text("of the host before")
    return folder


def taken(cache, known=None, **options):
    return _weights.taken(_weights.take(str(cache), known or {}, LATER, **options))


def test_files_are_listed_with_their_sums(cache):
    report = _weights.take(str(cache), {}, LATER)
    # Links lead to files that are listed where they lie; what engines compile for their own GPU is not of the weights.
    assert sums(_weights.taken(report)) == {
        "hub/blobs/1": sha("one" * 1000),
        "hub/blobs/2": sha("two" * 1000),
        "hub/config.json": sha("{}"),
    }
    assert (report["left"], report["bytes"], report["strange"]) == (0, 6002, [])


def test_sums_go_on_where_they_were_cut_off(cache, monkeypatch):
    made = []
    real = _weights._sum
    monkeypatch.setattr(_weights, "_sum", lambda name, descriptor: made.append(name) or real(name, descriptor))
    known, slices = {}, 0
    while True:
        report = _weights.take(str(cache), known, 0)
        known, slices = _weights.taken(report), slices + 1
        # As a play that is killed leaves them.
        known = _weights.parse_list(_weights.list_text(known))
        if not report["left"]:
            break
    assert (slices, sorted(made)) == (3, ["1", "2", "config.json"])
    assert sums(known) == sums(taken(cache))
    made.clear()
    (cache / "hub/blobs/2").write_text("TWO" * 1000)
    assert sums(taken(cache, known))["hub/blobs/2"] == sha("TWO" * 1000) and made == ["2"], (
        "a file that has changed is read again"
    )


def test_a_list_without_sums_is_one_of_sizes(cache, monkeypatch):
    monkeypatch.setattr(_weights, "_sum", pytest.fail)
    listed = taken(cache, sums=False)
    assert {name: entry.size for name, entry in listed.items()} == {
        "hub/blobs/1": 3000,
        "hub/blobs/2": 3000,
        "hub/config.json": 2,
    }
    assert _weights.differences(listed, listed) == []


def test_what_is_no_file_is_told_and_never_opened(cache, tmp_path):
    os.mkfifo(cache / "hub/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = pathlib.Path.cwd()
        os.chdir(cache)
        listener.bind("socket")
        os.chdir(here)
    (tmp_path / "secret").write_text("x")
    (cache / "hub/link").symlink_to(tmp_path / "secret")
    (cache / "out").symlink_to(tmp_path)
    report = _weights.take(str(cache), {}, LATER)
    assert sorted(report["strange"]) == ["hub/pipe is a pipe", "socket is a socket"]
    assert "hub/link" not in report["entries"] and not any(name.startswith("out") for name in report["entries"])


def test_names_that_are_no_text(cache):
    with open(os.path.join(os.fsencode(cache), b"hub/\xff\n\x1b[2J"), "wb") as out:
        out.write(b"x" * 2000)
    listed = _weights.parse_list(_weights.list_text(taken(cache)))
    (name,) = set(listed) - {"hub/blobs/1", "hub/blobs/2", "hub/config.json"}
    os.unlink(os.path.join(os.fsencode(cache), os.fsencode(name)))
    (problem,) = _weights.damage(str(cache), listed)
    assert problem.endswith("is missing") and problem.isprintable()


HARM = {
    "missing": (lambda path: path.unlink(), "hub/blobs/1 is missing"),
    "cut-off": (lambda path: path.write_text("one"), "hub/blobs/1 has 3 B, wanted 3.0 kB (3000 B)"),
    "a-link-to-another": (
        lambda path: (path.unlink(), path.symlink_to("2")),
        "hub/blobs/1 has 1 B, wanted 3.0 kB (3000 B)",
    ),
}


@pytest.mark.parametrize(("harm", "told"), HARM.values(), ids=HARM)
def test_what_is_lost_is_found(cache, harm, told):
    listed = taken(cache)
    harm(cache / "hub/blobs/1")
    assert _weights.damage(str(cache), listed) == [told]
    found = _weights.compare(str(cache), listed, 0, LATER)
    assert found["problems"] == [told] and found["next"] == 3


def test_another_content_is_found_by_its_sum(cache):
    listed = taken(cache)
    (cache / "hub/blobs/1").write_text("ONE" * 1000)
    (cache / "hub/more").write_text("a file that came later is none of the list's")
    assert _weights.damage(str(cache), listed) == [], "in passing, sizes are looked at"
    told = f"hub/blobs/1 has another content (SHA-256 {sha('ONE' * 1000)[:12]}…, wanted {sha('one' * 1000)[:12]}…)"
    assert _weights.compare(str(cache), listed, 0, LATER)["problems"] == [told]
    assert _weights.differences(listed, taken(cache)) == [told]


def test_a_comparison_in_slices(cache):
    listed, numbers = taken(cache), [0]
    while numbers[-1] < len(listed):
        numbers.append(_weights.compare(str(cache), listed, numbers[-1], 0)["next"])
    assert numbers == [0, 1, 2, 3]


def test_a_directory_that_became_a_link_is_not_entered(cache, tmp_path):
    listed = taken(cache)
    shutil.move(cache / "hub", tmp_path / "hub")
    (cache / "hub").symlink_to(tmp_path / "hub")
    problems = _weights.compare(str(cache), listed, 0, LATER)["problems"]
    assert len(problems) == 3 and all("cannot be read" in problem for problem in problems)


def test_an_emptied_cache_is_told_in_one_line(cache):
    listed = taken(cache)
    shutil.rmtree(cache / "hub")
    assert _weights.damage(str(cache), listed) == ["none of its 3 files is there"]
    assert _weights.damage(str(cache), {}) == [], "of an image without weights nothing is missing"


def test_a_locks_file_may_go(cache):
    listed = taken(cache)
    (cache / "hub/config.json").unlink()
    assert _weights.damage(str(cache), listed) == []


# -- directories -------------------------------------------------------------------------------------------------------


def test_directories_are_entered_by_descriptors(tmp_path):
    with _tree.opened(str(tmp_path)) as root:
        with _tree.made(root, str(tmp_path), "a/b") as there:
            assert stat.S_ISDIR(os.fstat(there).st_mode)
        with _tree.below(root, str(tmp_path), "a/c") as there:
            assert there is None
        _tree.write_file(root, "note", b"text")
        assert (tmp_path / "note").read_text() == "text" and stat.S_IMODE((tmp_path / "note").stat().st_mode) == 0o644
        assert _tree.remove_file(root, "note") and not _tree.remove_file(root, "note")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("enter", [_tree.below, _tree.made])
@pytest.mark.parametrize("place", ["a", "a/b"])
def test_no_link_below_is_followed(tmp_path, place, enter):
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o700)
    cache = tmp_path / "cache"
    (cache / place).parent.mkdir(parents=True)
    (cache / place).symlink_to(precious)
    with (
        _tree.opened(str(cache)) as root,
        pytest.raises(_tree.Planted) as told,
        enter(root, str(cache), "a/b/c"),
    ):
        pass
    assert f"{cache / place} is a link to '{precious}' of uid {os.getuid()}" in str(told.value)
    assert list(precious.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can lay links of others")
def test_a_cache_that_somebody_else_made_a_link_is_not_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "cache").symlink_to("real")
    with _tree.opened(str(tmp_path / "cache")) as root:
        assert os.fstat(root).st_ino == (tmp_path / "real").stat().st_ino, "root's own links are wanted"
    os.lchown(tmp_path / "cache", 1000, 1000)
    with pytest.raises(_tree.Planted, match="is a link of uid 1000"), _tree.opened(str(tmp_path / "cache")):
        pass


@pytest.mark.parametrize("kind", ["file", "pipe", "link", "directory"])
def test_a_file_takes_the_place_of_what_lies_there(tmp_path, kind):
    path = tmp_path / "marker"
    {
        "file": path.touch,
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to("x"),
        "directory": path.mkdir,
    }[kind]()
    with _tree.opened(str(tmp_path)) as root:
        if kind == "directory":
            with pytest.raises(IsADirectoryError):
                _tree.write_file(root, "marker", b"x")
        else:
            _tree.write_file(root, "marker", b"x")
            assert path.read_text() == "x"
    assert [item.name for item in tmp_path.iterdir()] == ["marker"], "nothing is left beside it"


# -- seeds -------------------------------------------------------------------------------------------------------------

KINDS = {"directory": "", "plain": "w", "gzip": "w:gz", "bzip2": "w:bz2", "xz": "w:xz"}


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """Runs the command that fills a cache from a seed, for real."""
    target = tmp_path / "there"
    target.mkdir()
    uid, gid = (1000, 1000) if os.getuid() == 0 else (os.getuid(), os.getgid())
    if os.getuid():
        monkeypatch.setattr(_staging, "as_image_user", lambda _uid, _gid, argv: list(argv))
    else:
        os.chown(target, uid, gid)
        # Whatever runs the tests has laid the folder for itself alone.
        for folder in (tmp_path, *tmp_path.parents):
            if not stat.S_IMODE(folder.stat().st_mode) & stat.S_IXOTH:
                folder.chmod(0o755)

    def run(seed):
        unpack = [] if seed.is_dir() else _staging.unpacker(seed.read_bytes()[:16])
        done = subprocess.run(
            _staging.seed_command(str(seed), str(target), uid, gid, unpack), capture_output=True, text=True, check=False
        )
        return done, target

    return run


def packed(source, path, kind):
    with tarfile.open(path, kind) as archive:
        archive.add(source, ".")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fills_the_cache(cache, unpacked, tmp_path, kind):
    """Content and links as a download would leave them, of the user's own; the marker of the other host stays there."""
    seed = packed(cache, tmp_path / "a seed of $ours", KINDS[kind]) if KINDS[kind] else cache
    # Nobody but root may read what the operator laid there.
    seed.chmod(0o700 if seed.is_dir() else 0o600)
    done, there = unpacked(seed)
    assert done.returncode == 0, done.stderr
    assert sums(taken(there)) == sums(taken(cache))
    assert (there / "hub/model").is_symlink() and (there / "hub/model").read_text() == "one" * 1000
    assert not (there / _staged.MARKER).exists() and (there / _staged.LIST).read_text() == "of the host before"
    assert {path.lstat().st_uid for path in there.rglob("*")} == {there.stat().st_uid}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make devices and set-uid files of root")
@pytest.mark.parametrize("kind", ["directory", "plain"])
def test_a_seed_gives_nobody_rights(cache, unpacked, tmp_path, kind):
    (cache / "hub/su").write_text("x")
    (cache / "hub/su").chmod(0o6755)
    done, there = unpacked(packed(cache, tmp_path / "s.tar", "w") if kind == "plain" else cache)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((there / "hub/su").stat().st_mode) == 0o755
    os.mknod(cache / "hub/disk", 0o666 | stat.S_IFBLK, os.makedev(7, 0))
    done, there = unpacked(packed(cache, tmp_path / "s.tar", "w") if kind == "plain" else cache)
    assert done.returncode != 0 and "hub/disk" in done.stderr and not (there / "hub/disk").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root could write to what is root's")
def test_a_seed_is_not_written_through_a_planted_link(cache, unpacked, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o755)
    (tmp_path / "there/hub").mkdir()
    os.chown(tmp_path / "there/hub", 1000, 1000)
    (tmp_path / "there/hub/blobs").symlink_to(precious)
    unpacked(cache)
    assert list(precious.iterdir()) == []


def test_a_seed_that_is_cut_off_fails(cache, unpacked, tmp_path):
    (cache / "hub/blobs/3").write_bytes(os.urandom(100_000))
    for kind in ("plain", "gzip"):
        seed = packed(cache, tmp_path / kind, KINDS[kind])
        os.truncate(seed, seed.stat().st_size // 2)
        assert unpacked(seed)[0].returncode != 0
    (tmp_path / "none").write_text("no archive")
    assert unpacked(tmp_path / "none")[0].returncode != 0


def test_every_form_of_tarball_has_its_program():
    assert _staging.unpacker(b"") == ["cat"]
    for program in ("gzip", "bzip2", "xz", "zstd", "lz4"):
        if shutil.which(program):
            head = subprocess.run([program, "-c"], input=b"x" * 100, capture_output=True, check=True).stdout
            assert _staging.unpacker(head[:16])[0] == program
