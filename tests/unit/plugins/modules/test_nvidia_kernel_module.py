# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module against commands that keep their state in files: who was stopped, loaded, started, and in which order."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import nvidia_kernel_module

SYSTEMCTL = """\
#!{python}
import pathlib, sys
home = pathlib.Path({home!r})
verb, names = sys.argv[1], [name for name in sys.argv[2:] if not name.startswith('-') and '.' in name]
if verb == 'show':
    if any('@.' in name for name in names):
        sys.exit('a template is no unit')
    blocks = []
    for name in names:
        unit = home / 'units' / name
        state = unit.read_text() if unit.exists() else 'inactive'
        blocks.append(f"Id={{name}}\\nLoadState={{'loaded' if unit.exists() else 'not-found'}}\\nActiveState={{state}}")
    print('\\n\\n'.join(blocks))
else:
    with open(home / 'calls', 'a') as calls:
        calls.write(f"{{verb}} {{names[0]}}\\n")
    if (home / 'refuses' / names[0]).exists():
        sys.exit('Job failed.')
    (home / 'units' / names[0]).write_text('inactive' if verb == 'stop' else 'active')
"""
MODPROBE = """\
#!{python}
import pathlib, shutil, sys
home = pathlib.Path({home!r})
with open(home / 'calls', 'a') as calls:
    calls.write('modprobe ' + ' '.join(sys.argv[1:]) + '\\n')
if (home / 'stuck').exists():
    sys.exit('modprobe: FATAL: Module nvidia_drm is in use.')
modules, version = home / 'sys/module', home / 'proc/driver/nvidia/version'
if sys.argv[1] == '-r' and not (home / 'disk').exists():
    sys.exit(f'modprobe: FATAL: Module {{sys.argv[2]}} not found.')
if sys.argv[1] == '-r':
    shutil.rmtree(modules)
    version.unlink()
elif not (home / 'disk').exists():
    sys.exit(f'modprobe: FATAL: Module {{sys.argv[1]}} not found in directory /lib/modules/6.12')
else:
    (modules / sys.argv[1] / 'holders').mkdir(parents=True)
    (modules / sys.argv[1] / 'initstate').write_text('live')
    version.write_text('NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  ' + (home / 'disk').read_text() + '  Release\\n')
"""
RMMOD = """\
#!{python}
import pathlib, shutil, sys
home = pathlib.Path({home!r})
with open(home / 'calls', 'a') as calls:
    calls.write('rmmod ' + ' '.join(sys.argv[1:]) + '\\n')
shutil.rmtree(home / 'sys/module')
(home / 'proc/driver/nvidia/version').unlink()
"""
SERVICES = ("nim-llama.service", "nvidia-persistenced.service", "nvidia-dcgm.service", "nvidia-cdi-refresh.service")


class Host:
    """A constructed host; `calls` is what was done to it, in order."""

    def __init__(self, home: pathlib.Path) -> None:
        self.home = home
        for folder in ("bin", "units", "refuses", "proc/driver/nvidia", "etc", "run"):
            (home / folder).mkdir(parents=True)
        for name, text in {"systemctl": SYSTEMCTL, "modprobe": MODPROBE, "rmmod": RMMOD}.items():
            path = home / "bin" / name
            path.write_text(text.format(python=sys.executable, home=str(home)))
            path.chmod(0o755)
        for name in SERVICES:
            (home / "units" / name).write_text("active")
        (home / "etc/nim-llama.service").touch()
        (home / "etc/nim-watchdog@.service").touch()
        for name, users in {"nvidia": ["nvidia_uvm"], "nvidia_uvm": []}.items():
            for user in ["", *users]:
                (home / "sys/module" / name / "holders" / user).mkdir(parents=True, exist_ok=True)
            (home / "sys/module" / name / "initstate").write_text("live")
        (home / "proc/driver/nvidia/version").write_text(
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release\n"
        )
        (home / "disk").write_text("595.71.05")
        self.state_file = home / "run/nim/driver-stopped.json"

    @property
    def calls(self) -> list[str]:
        path = self.home / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def hold(self, pid: int) -> None:
        """A process of training.service that has a GPU open."""
        process = self.home / f"proc/{pid}"
        (process / "fd").mkdir(parents=True)
        (process / "fd/3").symlink_to("/dev/nvidia0")
        (process / "comm").write_text("python3\n")
        (process / "cgroup").write_text("0::/system.slice/training.service\n")


@pytest.fixture
def host(tmp_path, monkeypatch):
    home = Host(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(nvidia_kernel_module, "UNIT_FILES", str(tmp_path / "etc"))
    monkeypatch.setattr(nvidia_kernel_module, "QUADLET_FILES", str(tmp_path / "quadlets"))
    return home


@pytest.fixture
def run(host, capfd):
    def call(state, check=False, **options):
        args = {
            "state": state,
            "state_file": str(host.state_file),
            "proc_root": str(host.home / "proc"),
            "sys_root": str(host.home / "sys"),
            **options,
        }
        with patch_module_args({**args, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            nvidia_kernel_module.main()
        return json.loads(capfd.readouterr().out)

    return call


def test_pain_14_users_stop_in_order_then_the_module_goes(host, run):
    result = run("unloaded")
    assert result["changed"] and result["unloaded"] and result["loaded_version"] is None
    assert host.calls == [
        "stop nim-llama.service",
        "stop nvidia-dcgm.service",
        "stop nvidia-persistenced.service",
        "modprobe -r nvidia_uvm nvidia",
    ]


def test_module_whose_file_is_gone_goes_as_well(host, run):
    (host.home / "disk").unlink()
    result = run("unloaded")
    assert result["unloaded"] and result["error"] is None
    assert host.calls[-2:] == ["modprobe -r nvidia_uvm nvidia", "rmmod nvidia_uvm nvidia"]


def test_what_runs_nvidia_smi_by_itself_stops_first_and_comes_back_last(host, run):
    """It would load modules in the middle of the exchange."""
    (host.home / "units/nvidia-cdi-refresh.path").write_text("active")
    assert run("unloaded")["stopped"][0] == "nvidia-cdi-refresh.path"
    assert run("loaded")["started"][-1] == "nvidia-cdi-refresh.path"


def test_load_starts_in_reverse_with_a_fresh_specification_before_the_service(host, run):
    run("unloaded")
    (host.home / "calls").unlink()
    result = run("loaded")
    assert result["changed"] and result["loaded_version"] == "595.71.05"
    assert host.calls == [
        "modprobe nvidia",
        "modprobe nvidia_uvm",
        "start nvidia-persistenced.service",
        "start nvidia-dcgm.service",
        "restart nvidia-cdi-refresh.service",
        "start nim-llama.service",
    ]
    assert not host.state_file.exists()
    again = run("loaded")
    assert not again["changed"]


def test_play_killed_between_the_two_is_finished_by_the_next(host, run):
    run("unloaded")
    # Another run finds nothing loaded: it must not forget what the first one stopped.
    assert not run("unloaded")["changed"]
    assert run("loaded")["started"][-1] == "nim-llama.service"


def test_kill_after_some_units_stopped_keeps_all_of_them_on_record(host, run):
    host.state_file.parent.mkdir(parents=True)
    host.state_file.write_text('["nim-llama.service", "nvidia-dcgm.service"]')
    for name in ("nim-llama.service", "nvidia-dcgm.service"):
        (host.home / "units" / name).write_text("inactive")
    run("unloaded")
    assert json.loads(host.state_file.read_text()) == [
        "nim-llama.service",
        "nvidia-dcgm.service",
        "nvidia-persistenced.service",
    ]
    assert (host.home / "units/nim-llama.service").read_text() == "inactive"


def test_foreign_process_is_named_and_everything_runs_again(host, run):
    host.hold(4711)
    result = run("unloaded")
    assert result["failed"]
    assert "python3 (pid 4711, training.service)" in result["msg"] and "not touched" in result["msg"]
    assert result["loaded_version"] == "580.159.04"
    assert not any(call.startswith("modprobe") for call in host.calls)
    assert (host.home / "units/nim-llama.service").read_text() == "active"
    assert not host.state_file.exists()


def test_module_that_does_not_go_leaves_the_host_as_it_was(host, run):
    (host.home / "stuck").touch()
    result = run("unloaded")
    assert result["failed"] and "nvidia_drm is in use" in result["msg"] and "reboot" in result["msg"]
    assert (host.home / "units/nvidia-persistenced.service").read_text() == "active"


def test_module_that_does_not_go_is_reported_where_a_reboot_follows(host, run):
    (host.home / "stuck").touch()
    result = run("unloaded", restore=False)
    assert not result.get("failed") and result["unloaded"] is False
    assert "nvidia_drm is in use" in result["error"]
    assert (host.home / "units/nim-llama.service").read_text() == "inactive"


def test_unit_that_does_not_stop_is_named(host, run):
    (host.home / "refuses/nvidia-dcgm.service").touch()
    result = run("unloaded")
    assert result["failed"] and "nvidia-dcgm.service does not stop" in result["msg"]
    assert (host.home / "units/nim-llama.service").read_text() == "active"


def test_unit_that_does_not_start_is_named_with_the_next_command(host, run):
    run("unloaded")
    (host.home / "refuses/nim-llama.service").touch()
    result = run("loaded")
    assert result["failed"] and "journalctl -u nim-llama.service" in result["msg"]
    assert "nvidia-dcgm.service" in result["started"]


def test_driver_that_does_not_load_is_reported_and_nothing_starts(host, run):
    run("unloaded")
    (host.home / "disk").unlink()
    result = run("loaded")
    assert "not found" in result["error"] and not result["changed"] and result["started"] == []
    assert host.state_file.exists()


def test_unit_that_went_with_its_package_is_left_out(host, run):
    run("unloaded")
    (host.home / "units/nvidia-dcgm.service").unlink()
    assert "nvidia-dcgm.service" not in run("loaded")["started"]


@pytest.mark.parametrize("state", ["loaded", "unloaded"])
def test_check_mode_touches_nothing(host, run, state):
    if state == "loaded":
        shutil.rmtree(host.home / "sys/module")
    result = run(state, check=True)
    assert result["changed"] and host.calls == []
    assert not host.state_file.exists()


def test_bare_host_has_nothing_to_unload(host, run):
    shutil.rmtree(host.home / "sys/module")
    result = run("unloaded")
    assert not result["changed"] and result["unloaded"] and host.calls == []


def test_no_modprobe(host, run, monkeypatch):
    (host.home / "bin/modprobe").unlink()
    # This machine may have one.
    found = AnsibleModule.get_bin_path
    monkeypatch.setattr(
        AnsibleModule,
        "get_bin_path",
        lambda module, name, **rest: None if name == "modprobe" else found(module, name, **rest),
    )
    shutil.rmtree(host.home / "sys/module")
    assert "not installed" in run("loaded")["error"]
