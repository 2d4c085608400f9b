# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kept states of the lab: a name stands for one content, and a state that has a name is whole."""

from __future__ import annotations

import pathlib
import sys
from types import SimpleNamespace

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/lab"))

import snapshot  # noqa: E402

LAB = SimpleNamespace(prefix="nimlab")


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


FILES = {"roles/a/tasks/main.yml": "one", "plugins/modules/b.py": "two"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda root: (root / "roles/a/tasks/main.yml").write_text("other"), id="content"),
        pytest.param(lambda root: (root / "plugins/modules/b.py").rename(root / "plugins/modules/c.py"), id="name"),
        pytest.param(lambda root: (root / "plugins/modules/b.py").chmod(0o755), id="executable bit"),
        pytest.param(lambda root: (root / "roles/new").write_text(""), id="new file"),
        pytest.param(lambda root: (root / "plugins/modules/b.py").unlink(), id="file that is gone"),
    ],
)
def test_hash_of_a_tree_tells_every_change(tmp_path, change):
    root = tree(tmp_path, FILES)
    before = snapshot.tree_hash(root, ("roles", "plugins"))
    change(root)
    assert snapshot.tree_hash(root, ("roles", "plugins")) != before


def test_hash_of_a_tree_is_the_same_elsewhere_and_without_what_python_leaves(tmp_path):
    first, second = tree(tmp_path / "first", FILES), tree(tmp_path / "second", FILES)
    tree(second, {"plugins/modules/__pycache__/b.pyc": "compiled", "docs/x.md": "not asked for"})
    assert snapshot.tree_hash(first, ("roles", "plugins")) == snapshot.tree_hash(second, ("roles", "plugins"))


def test_parts_of_a_name_do_not_run_into_each_other():
    assert snapshot.short("ab", "c") != snapshot.short("a", "bc")
    assert snapshot.volume_of("nimlab/converged-gpu01:123") == "nimlab-converged-gpu01-123"


class Engine:
    """Writes down what is asked of Docker."""

    def __init__(self, fails=""):
        self.calls, self.fails = [], fails
        self.images = SimpleNamespace(
            list=lambda name: [SimpleNamespace(tags=[f"{name}:old"])],
            remove=lambda tag, force: self.called("remove image", tag),
        )
        self.volumes = SimpleNamespace(create=lambda name, labels: self.called("create volume", name))
        self.containers = SimpleNamespace(run=lambda image, **options: self.called("copy", *options["volumes"]))

    def called(self, *call):
        self.calls.append(call)
        if call[0] == self.fails:
            raise RuntimeError(call)


def keep(engine, mounts):
    container = SimpleNamespace(
        image=SimpleNamespace(id="sha256:1"),
        attrs={"Mounts": mounts},
        stop=lambda timeout: engine.called("stop"),
        reload=lambda: None,
        commit=lambda repository, tag: engine.called("commit", f"{repository}:{tag}"),
    )
    lab = SimpleNamespace(
        prefix="nimlab", docker=engine, remove_volume=lambda name: engine.called("remove volume", name)
    )
    snapshot.keep(lab, container, "nimlab/converged-gpu01:new")


MOUNTS = [{"Destination": "/sys/fs/cgroup"}, {"Destination": "/var/lib/docker", "Name": "of-the-host"}]


def test_a_host_is_kept_whole_before_it_gets_its_name_and_the_old_one_goes():
    engine = Engine()
    keep(engine, MOUNTS)
    assert engine.calls == [
        ("stop",),
        ("remove image", "nimlab/converged-gpu01:old"),
        ("remove volume", "nimlab-converged-gpu01-old"),
        ("create volume", "nimlab-converged-gpu01-new"),
        ("copy", "of-the-host", "nimlab-converged-gpu01-new"),
        ("commit", "nimlab/converged-gpu01:new"),
    ]


def test_a_host_whose_storage_could_not_be_copied_gets_no_name():
    engine = Engine(fails="copy")
    with pytest.raises(RuntimeError):
        keep(engine, MOUNTS)
    assert "commit" not in [call[0] for call in engine.calls]


def test_a_vendor_has_no_storage_of_engines():
    engine = Engine()
    keep(engine, [{"Destination": "/sys/fs/cgroup"}])
    assert [call[0] for call in engine.calls] == ["stop", "remove image", "remove volume", "commit"]
