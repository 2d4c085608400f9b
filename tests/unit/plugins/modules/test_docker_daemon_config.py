# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run on real files; dockerd, docker and systemctl are small scripts that behave as the real ones were seen to."""

from __future__ import annotations

import json
import os
import stat
import sys
import time

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
#: systemctl, docker and journalctl of a host whose state is in a JSON file beside them.
HOST = r"""
import json, pathlib, sys
me = pathlib.Path(sys.argv[0])
state = json.loads((me.parent / "state.json").read_text())
words = sys.argv[1:]
state["calls"].append(" ".join([me.name, *[word for word in words if not word.startswith("-")]]))

def config():
    path = pathlib.Path(state["path"])
    return json.loads(path.read_text() or "{}") if path.exists() else {}

def start():
    # The old one ends what nothing kept; the new one has what the file says.
    if state["active"] and not state["live"]:
        state["containers"] = {}
    state["active"] = not any(word in json.dumps(config()) for word in state["breaks"])
    state["live"] = state["active"] and (state["flag_live"] or config().get("live-restore", False))
    state["cdi"] = state["active"] and state["cdi_by_itself"] or bool((config().get("features") or {}).get("cdi"))
    return 0 if state["active"] else 1

code = 0
if me.name == "systemctl":
    verb = words[0]
    if verb == "show":
        print("Id=docker.service")
        print(f"LoadState={'masked' if state['masked'] else 'loaded'}\nUnitFileState={'enabled' if state['enabled'] else 'disabled'}")
        print(f"ActiveState={'active' if state['active'] else 'inactive'}\nActiveEnterTimestampMonotonic={state['entered']}")
        print(f"MainPID=0\nExecStart={{ path=/usr/bin/dockerd ; argv[]={state['command']} ; ignore_errors=no ; pid=0 }}")
        print(f"FragmentPath={state['unit']}")
    elif verb in ("start", "restart"):
        code = start()
    elif verb == "reload":
        state["live"] = state["live"] or (config().get("live-restore", False) and state["reloads"])
    elif verb == "enable":
        state["enabled"] = True
    if code:
        print("Job for docker.service failed.", file=sys.stderr)
elif me.name == "docker" and words[0] == "info":
    code = 0 if state["active"] and state["answers"] else 1
    swarm = {"LocalNodeState": "active" if state["swarm"] else "inactive"}
    print(json.dumps({"ServerVersion": "" if code else "26.1.5", "LiveRestoreEnabled": state["live"], "Swarm": swarm,
                      "CDISpecDirs": ["/etc/cdi"] if state["cdi"] else [], "ContainersRunning": len(state["containers"])}))
elif me.name == "docker" and words[0] == "ps":
    for name, (service, _started) in state["containers"].items():
        print(f"{name}\t{service}")
elif me.name == "docker" and words[0] == "inspect":
    for name in words[3:]:
        print(f"/{name} {state['containers'][name][1]}")
elif me.name == "journalctl":
    print('Starting\ntime="x" level=fatal msg="failed to start daemon: it cannot"\ndocker.service: Main process exited')
    if not state["reloads"] and state["active"]:
        print('time="x" level=error msg="Error reconfiguring the daemon: specified default runtime does not exist"')
(me.parent / "state.json").write_text(json.dumps(state))
sys.exit(code)
"""
STATE = {
    "active": True, "enabled": True, "masked": False, "answers": True, "live": False, "cdi": False, "cdi_by_itself": False, "swarm": False,
    "reloads": True, "flag_live": False, "breaks": [], "containers": {}, "calls": [], "command": "/usr/bin/dockerd -H fd://", "unit": "",
    "entered": 0,
}  # fmt: skip


@pytest.fixture
def dockerd(tmp_path, monkeypatch):
    """A dockerd on the PATH, before any real one."""
    script = tmp_path / "bin" / "dockerd"
    script.parent.mkdir()
    script.write_text(DOCKERD)
    script.chmod(0o755)
    for name in ("systemctl", "docker", "journalctl"):
        (script.parent / name).write_text(f"#!{sys.executable}\n{HOST}")
        (script.parent / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return script


@pytest.fixture(autouse=True)
def state(path, dockerd, tmp_path, monkeypatch):
    """The host's Docker; what is given changes it, and it is told as it is now."""
    file = dockerd.parent / "state.json"

    def change(**values):
        now = {**json.loads(file.read_text()), **values}
        file.write_text(json.dumps(now))
        return now

    file.write_text(json.dumps({**STATE, "path": str(path)}))
    # Since when the daemon runs: later than whatever a test writes first.
    change(entered=int((time.clock_gettime(time.CLOCK_MONOTONIC) + 3600) * 1e6))
    monkeypatch.setattr(docker_daemon_config, "BEFORE", str(tmp_path / "nim/docker/before.json"))
    monkeypatch.setattr(docker_daemon_config, "RELOAD", 0.5)
    monkeypatch.setattr(docker_daemon_config, "ANSWER", 0.5)
    monkeypatch.setattr(
        docker_daemon_config, "ROOTS", {name: str(tmp_path / name) for name in ("proc", "etc", "run", "var")}
    )
    return change


@pytest.fixture
def path(tmp_path):
    """Where the configuration is; its directory is not there yet."""
    return tmp_path / "etc" / "docker" / "daemon.json"


@pytest.fixture
def call(path, dockerd, tmp_path, capsys):
    """Run the module; return its result."""

    def run(options=OURS, apply="none", allowed=False, **modes):
        args = {
            "options": options,
            "path": str(path),
            "apply": apply,
            "restart_allowed": allowed,
            "timeout": 3,
            "_ansible_tmpdir": str(tmp_path),
        }
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
    assert dockerd.with_suffix(".asked").exists(), "what a run would refuse is refused in a check"


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
    validate, option, scratch, *flags = dockerd.with_suffix(".asked").read_text().splitlines()
    assert (validate, option, flags) == ("--validate", "--config-file", ["-H", "fd://"])
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


def test_a_link_stays_a_link(call, path, tmp_path):
    real = tmp_path / "managed.json"
    real.write_text(THEIRS)
    path.parent.mkdir(parents=True)
    path.symlink_to(real)
    assert call()["changed"] is True
    assert path.is_symlink() and json.loads(real.read_text())["live-restore"] is True


def test_a_byte_order_mark_is_no_error(call, path):
    put(path, "\ufeff" + THEIRS)
    assert call()["config"]["log-driver"] == "journald"


# -- a daemon that runs with it ----------------------------------------------------------------------------------------

WEB = {"web": ["", "2026-11-30T01:00:00Z"], "nim-llama": ["llama", "2026-11-30T02:00:00Z"]}


def test_a_daemon_that_does_not_run_is_started_with_it(call, path, state):
    state(active=False, enabled=False)
    result = call(apply="restart")
    now = state()
    assert (result["changed"], result["restarted"], result["reloaded"], result["ended"]) == (True, True, False, [])
    assert (now["active"], now["enabled"], now["live"], now["cdi"]) == (True, True, True, True)
    assert not any(
        line.startswith("docker info") for line in now["calls"][: now["calls"].index("systemctl start docker.service")]
    )
    again = call(apply="restart")
    assert (again["changed"], again["restarted"]) == (False, False)


def test_containers_of_others_outlive_the_first_run(call, state):
    """live-restore comes by a reload, and only then is the daemon restarted."""
    state(containers=WEB)
    result = call(apply="restart")
    now = state()
    assert (result["changed"], result["reloaded"], result["restarted"], result["ended"]) == (True, True, True, [])
    assert now["containers"] == WEB and now["cdi"]
    assert now["calls"].index("systemctl reload docker.service") < now["calls"].index(
        "systemctl restart docker.service"
    )
    assert call(apply="restart")["changed"] is False


def test_a_reload_that_is_not_heard_refuses_and_leaves_everything(call, path, state):
    put(path, THEIRS)
    state(containers=WEB, reloads=False)
    result = call(apply="restart")
    assert (
        "live-restore did not come on: " in result["msg"]
        and "Error reconfiguring the daemon: specified default runtime does not exist" in result["msg"]
        and ": web would end" in result["msg"]
        and "container_engine_restart_allowed=true" in result["msg"]
    )
    assert path.read_text() == THEIRS and state()["containers"] == WEB
    assert call(apply="restart", allowed=True)["ended"] == ["web"]


@pytest.mark.parametrize(
    ("now", "options", "words"),
    [
        pytest.param({"swarm": True}, OURS, "node of a Docker swarm", id="swarm"),
        pytest.param(
            {"swarm": True}, {"features": {"cdi": True}}, "in a swarm: web would end", id="swarm, and only CDI"
        ),
        pytest.param({}, {"features": {"cdi": True}}, "without live-restore: web would end", id="no live-restore"),
        pytest.param(
            {"live": True},
            {**OURS, "data-root": "/raid"},
            "when data-root changes: web would end",
            id="their files move",
        ),
        pytest.param({"masked": True, "active": False}, OURS, "docker.service is masked", id="masked"),
        pytest.param({"answers": False}, OURS, "runs and does not answer", id="no answer"),
        pytest.param(
            {"command": "/usr/bin/dockerd --live-restore=false"},
            OURS,
            "gets live-restore by a flag",
            id="a flag says otherwise",
        ),
    ],
)
@pytest.mark.parametrize("check_mode", [False, True], ids=["run", "check"])
def test_refused_before_anything_is_changed(call, path, state, now, options, words, check_mode):
    put(path, THEIRS)
    before = state(containers=WEB, **now)
    result = call(options, apply="restart", check_mode=check_mode)
    assert words in result["msg"] and result["msg"].endswith("was not changed."), result["msg"]
    after = state()
    assert path.read_text() == THEIRS and {**after, "calls": []} == {**before, "calls": []}


def test_what_may_end_is_told(call, state):
    state(swarm=True, containers=WEB)
    result = call({"features": {"cdi": True}}, apply="restart", allowed=True)
    assert (result["restarted"], result["ended"]) == (True, ["web"])


@pytest.mark.parametrize("text", [None, THEIRS], ids=["no file", "a file"])
@pytest.mark.parametrize("active", [True, False], ids=["it ran", "it did not run"])
def test_the_old_file_comes_back_when_docker_does_not(call, path, state, text, active):
    if text is not None:
        put(path, text)
    state(breaks=["nosuch"], containers=WEB if active else {}, active=active)
    result = call({**OURS, "default-runtime": "nosuch"}, apply="restart")
    assert result["failed"] is True
    assert (
        "does not start with the merged configuration: " in result["msg"]
        and "failed to start daemon: it cannot" in result["msg"]
    )
    assert f"The old {path} is back and Docker serves with it." in result["msg"]
    assert (path.read_text() if path.exists() else None) == text
    assert state()["active"] is True and state()["containers"] == (WEB if active else {})
    assert not os.path.exists(docker_daemon_config.BEFORE)


def test_both_reasons_when_the_old_file_does_not_do_either(call, path, state):
    put(path, THEIRS)
    state(active=False, breaks=["dns"])
    result = call(apply="restart")
    assert "and Docker does not start with it either: " in result["msg"] and path.read_text() == THEIRS


def test_a_daemon_that_does_not_start_for_other_reasons(call, path, state):
    put(path, json.dumps(OURS))
    state(active=False, breaks=["live"])
    result = call(apply="restart")
    assert result["msg"].startswith("Docker does not start: ") and "was not changed" in result["msg"]


def newer(path, state):
    """The file was written after the daemon started."""
    state(entered=int((time.clock_gettime(time.CLOCK_MONOTONIC) - 3600) * 1e6))


def test_a_file_newer_than_the_daemon(call, path, state):
    """Whoever wrote it: what is wanted and not in effect needs a restart, and nothing else does."""
    put(path, json.dumps(OURS))
    newer(path, state)
    result = call(apply="restart")
    assert (result["changed"], result["reloaded"], result["restarted"]) == (True, True, True)
    assert call(apply="restart")["changed"] is False
    log = call({**OURS, "log-driver": "journald"}, apply="restart")
    assert log["restarted"] is True


def test_the_file_of_a_cut_off_run_goes_when_docker_does_not_start_with_it(call, path, state):
    bad = json.dumps({"live-restore": True, "features": {"cdi": True}, "default-runtime": "nosuch"})
    put(path, bad)
    os.makedirs(os.path.dirname(docker_daemon_config.BEFORE))
    with open(docker_daemon_config.BEFORE, "w") as handle:
        json.dump({"path": str(path), "old": THEIRS, "new": bad}, handle)
    state(active=False, breaks=["nosuch"])
    result = call({**OURS, "default-runtime": "nosuch"}, apply="restart")
    assert "is back and Docker serves with it" in result["msg"] and path.read_text() == THEIRS


def test_what_flags_or_the_daemon_itself_give_is_not_written(call, path, state):
    state(
        command="/usr/bin/dockerd --live-restore",
        flag_live=True,
        live=True,
        cdi=True,
        cdi_by_itself=True,
        containers=WEB,
    )
    result = call(apply="restart")
    assert (result["changed"], result["config"], path.exists()) == (False, {}, False)


def test_reload_alone(call, path, state):
    """Before packages of the daemon change."""
    state(containers=WEB)
    result = call(apply="reload")
    assert (result["changed"], result["reloaded"], result["restarted"]) == (True, True, False)
    assert state()["live"] is True and state()["containers"] == WEB
    newer(path, state)
    assert call(apply="restart")["restarted"] is True and state()["containers"] == WEB


def test_check_mode_applies_nothing(call, path, state):
    before = state(containers=WEB)
    result = call(apply="restart", check_mode=True)
    assert (result["changed"], result["restarted"], path.exists()) == (True, True, False)
    assert {**state(), "calls": []} == {**before, "calls": []}


def test_a_file_that_dockerd_refuses_already(call, path, dockerd):
    put(path, THEIRS)
    dockerd.with_suffix(".refuses").touch()
    assert "It refuses the file as it is, too" in call(apply="restart")["msg"]
