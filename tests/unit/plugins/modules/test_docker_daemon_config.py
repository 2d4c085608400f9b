# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run on real files; dockerd is a small script."""

from __future__ import annotations

import json
import stat

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.modules import docker_daemon_config

pytestmark = pytest.mark.usefixtures("strict_umask")

OURS = {"live-restore": True, "features": {"cdi": True}}
THEIRS = '{\n    "dns": ["10.213.77.10"],\n    "features": {"buildkit": true},\n    "log-driver": "journald"\n}\n'
DOCKERD = """\
#!/bin/sh
# Keeps what it is asked and shown; says no when there is a file that tells it to.
printf '%s\\n' "$@" > "$0.asked"
/bin/cat "$3" > "$0.shown"
[ ! -e "$0.refuses" ] || { echo "unable to configure the Docker daemon with file $3: unknown option" >&2; exit 1; }
echo "configuration OK"
"""


@pytest.fixture
def dockerd(tmp_path, monkeypatch):
    """A dockerd on the PATH, before any real one."""
    script = tmp_path / "bin" / "dockerd"
    script.parent.mkdir()
    script.write_text(DOCKERD)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return script


@pytest.fixture
def path(tmp_path):
    """Where the configuration is; its directory is not there yet."""
    return tmp_path / "etc" / "docker" / "daemon.json"


@pytest.fixture
def call(path, dockerd, tmp_path, capsys):
    """Run the module; return its result."""

    def run(options=OURS, **modes):
        args = {"options": options, "path": str(path), "_ansible_tmpdir": str(tmp_path)}
        args.update({f"_ansible_{mode}": on for mode, on in modes.items()})
        with patch_module_args(args), pytest.raises(SystemExit) as caught:
            docker_daemon_config.main()
        result = json.loads(capsys.readouterr().out)
        assert caught.value.code == (1 if result.get("failed") else 0)
        return result

    return run


def put(path, text):
    """Write the configuration as somebody else left it."""
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_new_file(call, path):
    result = call()
    assert (result["changed"], result["config"]) == (True, OURS)
    assert json.loads(path.read_text()) == OURS
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert "diff" not in result


@pytest.mark.parametrize("text", ["", "{}\n", THEIRS], ids=["empty", "empty-object", "with-other-keys"])
def test_second_run_changes_nothing(call, path, dockerd, text):
    put(path, text)
    first = call(diff=True)
    before = path.stat()
    dockerd.with_suffix(".asked").unlink()
    second = call(diff=True)
    assert (first["changed"], second["changed"]) == (True, False)
    assert second["config"] == first["config"]
    assert "diff" not in second
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert not dockerd.with_suffix(".asked").exists()


def test_keys_of_others_stay_and_dictionaries_merge(call, path):
    put(path, THEIRS)
    result = call()
    config = json.loads(path.read_text())
    assert config == result["config"]
    assert config == {
        "dns": ["10.213.77.10"],
        "features": {"buildkit": True, "cdi": True},
        "log-driver": "journald",
        "live-restore": True,
    }
    assert list(config) == ["dns", "features", "log-driver", "live-restore"]


def test_mode_of_an_existing_file_stays(call, path):
    put(path, THEIRS)
    path.chmod(0o600)
    assert call()["changed"] is True
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_has_it_all_keeps_its_layout(call, path):
    text = '{"features": {"cdi": true}, "live-restore": true, "bip": "172.17.0.1/16"}'
    put(path, text)
    assert call()["changed"] is False
    assert path.read_text() == text


def test_diff_shows_both_texts(call, path):
    put(path, THEIRS)
    diff = call(diff=True)["diff"]
    assert diff == {"before": THEIRS, "after": path.read_text(), "before_header": str(path), "after_header": str(path)}


@pytest.mark.parametrize("text", [None, THEIRS], ids=["bare-host", "existing-file"])
def test_check_mode_writes_nothing(call, path, dockerd, text):
    if text is not None:
        put(path, text)
    result = call(check_mode=True, diff=True)
    assert result["changed"] is True
    assert json.loads(result["diff"]["after"]) == result["config"]
    assert result["diff"]["before"] == (text or "")
    assert (path.read_text() if path.exists() else None) == text
    assert path.parent.exists() is (text is not None)
    assert not dockerd.with_suffix(".asked").exists()


@pytest.mark.parametrize(
    "text",
    ['{"dns": ["10.0.0.2"],}', "dns: [10.0.0.2]\n", "[]", '{"dns": [', b'{"label": "caf\xe9"}'],
    ids=["trailing-comma", "yaml", "list", "cut-off", "latin-1"],
)
@pytest.mark.parametrize("check_mode", [False, True], ids=["run", "check"])
def test_a_file_that_is_no_configuration_is_left_alone(call, path, text, check_mode):
    put(path, text)
    before = path.read_bytes()
    result = call(check_mode=check_mode)
    assert result["failed"] is True
    assert result["msg"].startswith(f"{path} is no valid configuration: ")
    assert result["msg"].endswith("nothing was changed.")
    assert "Correct it by hand" in result["msg"]
    assert path.read_bytes() == before


def test_dockerd_is_shown_the_merged_configuration_before_it_is_installed(call, path, dockerd):
    put(path, THEIRS)
    result = call()
    validate, option, scratch = dockerd.with_suffix(".asked").read_text().splitlines()
    assert (validate, option) == ("--validate", "--config-file")
    assert scratch != str(path)
    assert json.loads(dockerd.with_suffix(".shown").read_text()) == result["config"]


@pytest.mark.parametrize("text", [None, THEIRS], ids=["bare-host", "existing-file"])
def test_what_dockerd_refuses_is_not_installed(call, path, dockerd, text):
    if text is not None:
        put(path, text)
    dockerd.with_suffix(".refuses").touch()
    result = call({"live-restore": True, "typo": 1})
    assert result["failed"] is True
    assert "dockerd refuses the merged configuration: unable to configure" in result["msg"]
    assert result["msg"].endswith(f"{path} was not changed.")
    assert (path.read_text() if path.exists() else None) == text


def test_options_of_another_type_are_refused(call, path):
    assert "dict" in call(["live-restore"])["msg"]
    assert not path.exists()
