# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a disk would gain: real files with links and holes, the kernel's answer about shared data, histories of images."""

from __future__ import annotations

import os

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _disk

MEGABYTE = 1 << 20


@pytest.fixture
def cache(tmp_path):
    """A cache with a file of a megabyte."""
    folder = tmp_path / "cache/ngc"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(os.urandom(MEGABYTE))
    os.sync()
    return tmp_path / "cache"


def about(size):
    """Directories and the ends of blocks come on top."""
    return pytest.approx(size, abs=100_000)


def test_a_file_is_gained(cache):
    assert _disk.frees([str(cache)]) == about(MEGABYTE)


def test_a_hard_link_from_elsewhere_keeps_the_file(cache, tmp_path):
    os.link(cache / "ngc/weights", tmp_path / "elsewhere")
    assert _disk.frees([str(cache)]) == about(0)


def test_hard_links_that_all_go_are_one_file(cache):
    os.link(cache / "ngc/weights", cache / "again")
    assert _disk.frees([str(cache)]) == about(MEGABYTE)


def test_hard_links_between_two_that_go_are_one_file(cache, tmp_path):
    (tmp_path / "other").mkdir()
    os.link(cache / "ngc/weights", tmp_path / "other/weights")
    assert _disk.frees([str(cache), str(tmp_path / "other")]) == about(MEGABYTE)
    assert _disk.frees([str(cache)]) == about(0)


def test_a_hole_was_never_there(cache):
    with open(cache / "sparse", "wb") as out:
        out.truncate(100 * MEGABYTE)
    assert _disk.frees([str(cache)]) == about(MEGABYTE)


def test_links_lead_nowhere(cache, tmp_path):
    (tmp_path / "big").write_bytes(os.urandom(MEGABYTE))
    (cache / "link").symlink_to(tmp_path / "big")
    (cache / "folder").symlink_to(tmp_path)
    assert _disk.frees([str(cache)]) == about(MEGABYTE)


def test_what_goes_away_meanwhile_is_left_out(cache, monkeypatch):
    look = os.lstat

    def gone(path, *args, **options):
        if str(path).endswith("weights"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return look(path, *args, **options)

    monkeypatch.setattr(_disk.os, "lstat", gone)
    assert _disk.frees([str(cache)]) == about(0)


def extents(*found):
    """The kernel's answer with extents of logical offset, length and flags."""
    header = _disk._HEADER.pack(0, 2**64 - 1, 0, len(found), 128, 0)
    return header + b"".join(
        _disk._EXTENT.pack(logical, 0, length, 0, 0, flags, 0, 0, 0) for logical, length, flags in found
    )


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ([], (0, 0, False)),
        ([(0, 4096, 0x1)], (0, 4096, False)),
        ([(0, 4096, 0x2000), (4096, 8192, 0x2001)], (12288, 12288, False)),
        ([(0, 4096, 0x2000), (4096, 8192, 0)], (4096, 12288, True)),
    ],
)
def test_shared_data_as_the_kernel_tells_it(found, answer):
    assert _disk.shared_extents(extents(*found)) == answer


def test_shared_data_is_asked_for_until_the_last(monkeypatch, cache):
    answers = [extents((0, 4096, 0x2000), (4096, 4096, 0)), extents((8192, 4096, 0x2001))]
    starts = []

    def answer(_handle, _request, question):
        starts.append(_disk._HEADER.unpack_from(question.tobytes())[0])
        told = answers.pop(0)
        question[: len(told)] = _disk.array.array("B", told)

    monkeypatch.setattr(_disk.fcntl, "ioctl", answer)
    assert _disk.shared(str(cache / "ngc/weights")) == 8192
    assert starts == [0, 8192]


def test_shared_data_is_not_gained(monkeypatch, cache):
    monkeypatch.setattr(_disk, "shared", lambda _path: MEGABYTE)
    assert _disk.frees([str(cache)], reflinks=True) == about(0)
    assert _disk.frees([str(cache)], reflinks=False) == about(MEGABYTE)


def test_the_kernel_of_this_machine_is_asked(cache):
    """Whatever file system it is: one that cannot tell shares nothing, as far as is known."""
    assert _disk.shared(str(cache / "ngc/weights")) == 0
    assert _disk.shared(str(cache / "nothing")) == 0


def test_free_space_of_what_is_not_there_yet(tmp_path):
    assert _disk.nearest(str(tmp_path / "a/b")) == str(tmp_path)
    assert _disk.free(str(tmp_path / "a/b")) > 0


# -- images ------------------------------------------------------------------------------------------------------------

#: Of an image that Docker 26.1 built.
BUILT = """\
0\t/bin/sh -c #(nop)  CMD ["/opt/nim/start-server.sh"]
0\t/bin/sh -c #(nop)  ENTRYPOINT ["/opt/nim/bin/entrypoint-classic"]
2232\t/bin/sh -c python3 -m nimlib.manifest classic > etc/default/model_manifest.yaml
0\t/bin/sh -c #(nop) WORKDIR /opt/nim
0\t/bin/sh -c #(nop)  ENV PATH=/opt/nim/bin:/usr/bin
150245\t|2 ENGINE=reference VERSION=1.8.6 /bin/sh -c chmod 0755 /opt/nim/bin/*
2806\t/bin/sh -c #(nop) COPY dir:312508a9 in /opt/nim/bin
0\t/bin/sh -c test ! -d /opt/nim/site || true
154213910\t/bin/sh -c apt-get update
123045190\t
"""
BUILDKIT = """\
0\tCMD ["serve"]
0\tRUN /bin/sh -c true # buildkit
500\tCOPY a /a # buildkit
0\tWORKDIR /opt/nim
0\tENV A=b
1000\t/bin/sh -c #(nop) ADD file:1 in /
"""


@pytest.mark.parametrize(
    ("history", "count", "sizes"),
    [
        (BUILT, 5, [123045190, 154213910, 2806, 150245, 2232]),
        # Empty layers count, wherever they are.
        (BUILDKIT, 4, [1000, 0, 500, 0]),
        (BUILDKIT, 2, [1000, 500]),
        (BUILDKIT, 3, None),
        ("", 0, []),
        ("", 2, None),
        ("12.3MB\tRUN x\n", 1, None),
        (
            '[{"size": 0, "CreatedBy": "ENV A=b"}, {"size": 7, "CreatedBy": "RUN x"}, {"size": 9, "CreatedBy": ""}]',
            2,
            [9, 7],
        ),
        ("[", 1, None),
        ("[7]", 1, None),
    ],
)
def test_sizes_of_layers_by_the_history(history, count, sizes):
    assert _disk.layer_sizes(_disk.history(history), count) == sizes


def image(*layers):
    return {"RootFS": {"Layers": list(layers)}}


SIZES = {"a": 100, "a+b": 20, "a+c": 3, "b": 7}


@pytest.mark.parametrize(
    ("going", "staying", "gained"),
    [
        ([image("a", "b")], [], (120, True)),
        # Two tags of one base.
        ([image("a", "b")], [image("a", "c")], (20, True)),
        ([image("a", "b"), image("a", "c")], [], (123, True)),
        ([image("a", "b")], [image("a", "b")], (0, True)),
        # The same layer on another base is another one.
        ([image("a", "b")], [image("b")], (120, True)),
        ([image("a", "d")], [], (100, False)),
        ([{}], [image("a")], (0, True)),
    ],
)
def test_what_goes_with_images(going, staying, gained):
    assert _disk.gained(going, staying, SIZES) == gained
