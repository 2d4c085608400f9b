# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's driver: its packages have the names that the collection asks for, its kernel refuses what a real one does."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _driver_data

LAB = Path(__file__).resolve().parents[2] / "lab"


def script(path: Path) -> ModuleType:
    """A script without a suffix, as a module."""
    loader = importlib.machinery.SourceFileLoader(path.name.replace("-", "_"), str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


repository = script(LAB / "packages/build-repository")


def test_packages_that_the_plan_asks_for_are_in_the_repository():
    wanted = {
        *_driver_data.COMPUTE["debian"]["open"],
        *_driver_data.FULL["open"],
        *(group["apt"] for group in (_driver_data.FABRIC_MANAGER, _driver_data.FABRIC_LIBRARY, _driver_data.IMEX)),
        *_driver_data.NVLINK5,
    }
    assert wanted <= {*repository.DRIVER_PACKAGES, *repository.OTHERS}


def test_needs_are_packages_of_the_repository():
    needs = {name for needed in repository.DRIVER_PACKAGES.values() for name in needed}
    assert needs <= {*repository.DRIVER_PACKAGES}


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The kernel's side with driver 1.2 on disk and nothing loaded."""
    module = script(LAB / "images/host/hardware/lab-kernel")
    for name in ("HOME", "RUN", "DISK"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(module, name, tmp_path / name)
    (module.DISK / module.KERNEL).write_text("1.2\n")
    monkeypatch.setattr(module, "load_nvidia", lambda version: None)
    monkeypatch.setattr(module, "unload_nvidia", lambda: None)
    monkeypatch.setattr(module, "held", lambda: False)
    return module


def test_a_module_brings_what_it_needs_and_takes_what_nobody_needs(kernel):
    kernel.insert("nvidia_uvm")
    kernel.insert("nvidia_drm")
    assert kernel.users("nvidia") == ["nvidia_drm", "nvidia_modeset", "nvidia_uvm"]
    kernel.remove("nvidia_drm")
    assert kernel.loaded() == {"nvidia", "nvidia_uvm"}
    kernel.remove("nvidia_uvm")
    assert not kernel.loaded()
    kernel.remove("nvidia")


def test_what_is_used_or_held_stays(kernel, monkeypatch):
    kernel.insert("nvidia_uvm")
    with pytest.raises(kernel.Refused, match=r"^FATAL: Module nvidia is in use\.$"):
        kernel.remove("nvidia")
    with pytest.raises(kernel.Refused, match="in use by: nvidia_uvm$"):
        kernel.remove_one("nvidia")
    monkeypatch.setattr(kernel, "held", lambda: True)
    with pytest.raises(kernel.Refused, match=r"^FATAL: Module nvidia_uvm is in use\.$"):
        kernel.remove("nvidia_uvm")
    assert kernel.loaded() == {"nvidia", "nvidia_uvm"}


def test_modprobe_removes_only_what_is_on_disk(kernel):
    kernel.insert("nvidia")
    (kernel.DISK / kernel.KERNEL).unlink()
    with pytest.raises(kernel.Refused, match=r"^FATAL: Module nvidia not found\.$"):
        kernel.remove("nvidia")
    kernel.remove_one("nvidia")
    assert not kernel.loaded()


def test_modules_of_two_drivers_do_not_mix(kernel):
    kernel.insert("nvidia")
    (kernel.DISK / kernel.KERNEL).write_text("3.4\n")
    with pytest.raises(kernel.Refused, match="Invalid argument"):
        kernel.insert("nvidia_uvm")


def test_nouveau_has_the_gpus(kernel):
    (kernel.HOME / "nouveau").touch()
    kernel.insert("nouveau")
    with pytest.raises(kernel.Refused, match="could not insert 'nvidia': No such device"):
        kernel.insert("nvidia")


@pytest.mark.parametrize(
    ("text", "kept"), [("blacklist nouveau\n", True), ("# blacklist nouveau\n", False), ("", False)]
)
def test_blacklist(kernel, tmp_path, text, kept):
    (tmp_path / "site.conf").write_text(text)
    assert kernel.keeps_out_nouveau(tmp_path) is kept
