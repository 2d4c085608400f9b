# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run on real directories; docker and systemd are small scripts that record what they are given."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import (
    _lease,
    _share,
    _staged,
    _staging,
    _transient,
    _tree,
    _weights,
)
from ansible_collections.baremetal.nim.plugins.module_utils._fault import CURES
from ansible_collections.baremetal.nim.plugins.modules import nim_cache

pytestmark = pytest.mark.usefixtures("strict_umask")

KEY = "nvapi-9J3k2LmNoPqRsTuVwXyZ"
REPOSITORY = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
IMAGE = f"{REPOSITORY}:1.8.6"
REFERENCE = f"{REPOSITORY}@sha256:6b3d3a4e3c1f7e0a9d5c2b8f4e6a7d9c0b1f2e3d4c5b6a798897a6b5c4d3e2f1"
IMAGE_ID = "sha256:0c58bd6b07f7c7b2c1a6bb5a9ac0a1bba5ab59fa30c8ce2a3a40d4bd3f0f1a2b"
INSPECTED = [
    {"Id": IMAGE_ID, "RepoDigests": [REFERENCE], "Config": {"Entrypoint": ["/opt/nvidia/nvidia_entrypoint.sh"]}}
]
STAGE_KEY = "5cf60d61b0f464370a4259aa3943063e7f011f9423f53bc9e2d5245f79512222"
PULL, STAGE = "nim-pull-llama.service", "nim-stage-llama.service"
SIZE = 16_059_123_456
SOON = 300.0

STARTING = {"ActiveState": "activating", "SubState": "start-pre", "Result": "success"}
RUNNING = {"ActiveState": "active", "SubState": "running", "Result": "success"}
#: As ended just now, with a second for the tests to lay files.
EXITED = {
    "ActiveState": "active",
    "SubState": "exited",
    "Result": "success",
    "ExecMainExitTimestampMonotonic": str(int((time.monotonic() + 10**6) * 10**6)),
}
#: As ended before this test began.
LONG_AGO = {**EXITED, "ExecMainExitTimestampMonotonic": str(int((time.monotonic() - 60) * 10**6))}
FAILED = {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "ExecMainStatus": "1"}

# Every command: its words, parted by 0x1f, and its environment.
RECORD = """\
#!/bin/sh
lab={lab}
{{ printf '%s' "${{0##*/}}"; printf '\\037%s' "$@"; echo; }} >> $lab/log
export -p >> $lab/environment
"""
COMMANDS = {
    # docker image inspect IMAGE
    "docker": """
if [ -e $lab/docker.err ]; then /bin/cat $lab/docker.err >&2; exit 1; fi
if [ -e $lab/image.json ]; then /bin/cat $lab/image.json; exit; fi
echo '[]'
echo "Error response from daemon: No such image: $3" >&2
exit 1
""",
    # Opens the standard input of the unit, as systemd does before systemd-run returns.
    "systemd-run": """
if [ -e $lab/systemd-run.err ]; then /bin/cat $lab/systemd-run.err >&2; exit 1; fi
for word; do
  case $word in
    --unit=*) unit=${word#*=} ;;
    --description=*) description=${word#*=} ;;
    --property=StandardInput=file:*) key=${word#*file:} ;;
    --) break ;;
  esac
done
if [ -n "${key-}" ]; then
  /bin/cat "$key" > $lab/$unit.stdin
  /usr/bin/stat -c %a "$key" "${key%/*}" > $lab/$unit.modes
fi
echo "$description" > $lab/$unit.description
/bin/mv $lab/$unit.next $lab/$unit.shows
if [ $unit = nim-stage-llama.service ] && [ ! -e $lab/nothing ]; then
  /bin/mkdir -p $lab/cache/llama/ngc/hub
  /usr/bin/printf weights > $lab/cache/llama/ngc/hub/model.safetensors
  # The list that a seed or another host brings.
  if [ -e $lab/brought ]; then /bin/cp $lab/brought $lab/cache/llama/.baremetal-nim.sums; fi
fi
""",
    # Each look at a unit shows its next state; the last one stays.
    "cat": '/bin/cat "$@"\n',
    "systemctl": """
for unit; do :; done
case $1 in
  show)
    if [ ! -d $lab/$unit.shows ]; then
      printf 'Id=%s\\nDescription=%s\\nLoadState=not-found\\nActiveState=inactive\\nSubState=dead\\n' "$unit" "$unit"
      exit
    fi
    set -- $lab/$unit.shows/*
    /bin/cat "$1"
    printf 'Id=%s\\nDescription=%s\\n' "$unit" "$(/bin/cat $lab/$unit.description)"
    [ $# = 1 ] || /bin/rm "$1"
    ;;
  stop)
    /bin/rm -rf $lab/$unit.shows
    if [ -e $lab/image.later ]; then /bin/mv $lab/image.later $lab/image.pulled
    elif [ $unit = nim-pull-llama.service ] && [ -e $lab/image.pulled ]; then /bin/mv $lab/image.pulled $lab/image.json; fi
    ;;
esac
""",
    "journalctl": '/bin/cat "$lab/journal.${1#*=}"\n',
    "du": "printf '%s\\t%s\\n' $(/bin/cat $lab/size) \"$2\"\n",
}


class Lab:
    """What the scripts know and record."""

    def __init__(self, root):
        self.root = root
        self.cache = root / "cache" / "llama"
        self.keys = root / "run"
        (root / "bin").mkdir()
        for name, body in COMMANDS.items():
            script = root / "bin" / name
            script.write_text(RECORD.format(lab=root) + body)
            script.chmod(0o755)
        (root / "size").write_text(str(SIZE))

    def image(self, inspected=INSPECTED, there=True):
        """An image that is there, or will be once it is pulled."""
        (self.root / ("image.json" if there else "image.pulled")).write_text(json.dumps(inspected))

    def pulled_by(self, which):
        """The image will be there once the first or the second pull is done."""
        self.image(there=False)
        if which == 2:
            (self.root / "image.pulled").rename(self.root / "image.later")

    def unit(self, name, *states, journal=(), there=None):
        """States that a unit will go through once it is started, or, with a description (THERE), goes through already."""
        folder = self.root / f"{name}.{'next' if there is None else 'shows'}"
        folder.mkdir()
        for number, state in enumerate(states):
            values = {"LoadState": "loaded", "InvocationID": f"id-of-{name}", **state}
            (folder / f"{number:02}").write_text("".join(f"{key}={value}\n" for key, value in values.items()))
        if there is not None:
            (self.root / f"{name}.description").write_text(f"{there}\n")
        (self.root / f"journal.id-of-{name}").write_text("".join(f"{line}\n" for line in journal))

    def done(self, text=None, **changes):
        """What an earlier staging left: weights, the marker and the list beside them, and what the host remembers (or TEXT)."""
        self.weights()
        note = {"key": STAGE_KEY, "image": IMAGE, "image_reference": REFERENCE, "path": str(self.cache), "marked": True}
        note.update(changes)
        (self.cache / _staged.MARKER).write_text(json.dumps({"key": note["key"]}))
        self.note.parent.mkdir(parents=True, exist_ok=True)
        self.note.write_text(json.dumps(note) if text is None else text)
        files = _weights.taken(_weights.take(str(self.cache), {}, 0))
        self.note.with_suffix(".sums").write_text(_weights.list_text(files))

    @property
    def note(self):
        """Where the host remembers."""
        return self.root / "nim/staged/llama.json"

    def weights(self, text="weights"):
        """What a download leaves."""
        (self.cache / "ngc/hub").mkdir(parents=True, exist_ok=True)
        (self.cache / "ngc/hub/model.safetensors").write_text(text)

    def note_of(self, reference):
        """Lets the host remember an image by REFERENCE."""
        self.note.write_text(json.dumps({**self.staged(), "image_reference": reference}))

    def staged(self):
        """What the host remembers."""
        return json.loads(self.note.read_text())

    def commands(self):
        """Words of every command that was run."""
        log = self.root / "log"
        return [line.split("\x1f") for line in log.read_text().splitlines()] if log.exists() else []

    def started(self):
        """Units that were started."""
        return [
            word[7:]
            for command in self.commands()
            if command[0] == "systemd-run"
            for word in command
            if word.startswith("--unit=")
        ]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(_transient, "KEY_DIR", str(lab.keys))
    monkeypatch.setattr(_transient, "POLL", 0.001)
    if os.getuid():
        # Only root may drop groups; a user's write test runs with the groups that it has.
        monkeypatch.setattr(nim_cache.os, "setgroups", lambda _groups: None)
    return lab


@pytest.fixture
def call(lab, capsys):
    """Run the module; return its result."""

    def run(check_mode=False, **args):
        args = {
            "name": "llama",
            "image": IMAGE,
            "repository": REPOSITORY,
            "path": str(lab.cache),
            "host_dir": str(lab.root / "nim"),
            "uid": os.getuid(),
            "gid": os.getgid(),
            "devices": ["nvidia.com/gpu=0"],
            "ulimits": ["nofile=65536"],
            "env": {"NIM_TELEMETRY_MODE": "0"},
            "stage_key": STAGE_KEY,
            "api_key": KEY,
            "timeout": 600,
            **args,
        }
        start = time.monotonic()
        with patch_module_args({**args, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit) as caught:
            nim_cache.main()
        text = capsys.readouterr().out
        assert time.monotonic() - start < SOON
        result = json.loads(text)
        assert caught.value.code == (1 if result.get("failed") else 0)
        # Whatever happens, the key is nowhere but in the standard input of the download.
        assert KEY not in text
        for name in ("log", "environment"):
            assert not (lab.root / name).exists() or KEY not in (lab.root / name).read_text()
        assert not list(lab.keys.glob("*"))
        return result

    return run


@pytest.fixture
def fail(call):
    """Run the module, which must fail; return its result."""

    def run(**args):
        result = call(**args)
        assert result.get("failed"), result
        assert result["msg"].startswith("service llama: ")
        assert result["waiting"] is False
        assert CURES.get(result["failure_class"], "Cure the cause, then run the play again.") in result["msg"]
        assert f" Next: {result['next_command']}" in result["msg"]
        return result

    return run


def description(what):
    """Description of a unit."""
    return f"baremetal.nim: {what} [{STAGE_KEY[:16]}]"


PULLING, DOWNLOADING = description(f"pull of {IMAGE}"), description("download of the weights of llama")


# -- the whole way -----------------------------------------------------------------------------------------------------


def test_from_nothing(lab, call):
    lab.image(there=False)
    lab.unit(PULL, STARTING, RUNNING, EXITED)
    lab.unit(STAGE, RUNNING, RUNNING, EXITED)
    before = time.time()
    result = call()
    result.pop("invocation", None)
    assert result == {
        "changed": True,
        "waiting": False,
        "phase": "done",
        "history": [{"phase": "done", "detail": ""}],
        "last_log": "",
        "image_id": IMAGE_ID,
        "image_reference": REFERENCE,
        "bytes": 7,
    }
    docker = str(lab.root / "bin/docker")
    service = {
        "name": "llama",
        "engine": "docker",
        "devices": ["nvidia.com/gpu=0"],
        "ulimits": ["nofile=65536"],
        "capabilities": None,
        "env": {"NIM_TELEMETRY_MODE": "0"},
        "secret_env": {},
        "path": str(lab.cache),
        "mounts": {"": "/opt/nim/.cache"},
        "prefetch": ["download-to-cache"],
        "prefetch_entrypoint": False,
        "prefetch_env": {},
    }
    pull = _staging.transient_unit(PULL, PULLING, [docker, "pull", IMAGE])
    stage = _staging.transient_unit(
        STAGE,
        DOWNLOADING,
        _staging.stage_command(docker, service, INSPECTED[0], with_key=True),
        f"{lab.keys}/{STAGE}.key",
    )
    # What an unclean end may have left goes first; the name of the container would be taken otherwise.
    leftover = [docker, "rm", "--force", "nim-stage-llama"]
    started = [command for command in lab.commands() if command[0] == "systemd-run" or command[1:2] == ["rm"]]
    assert [started[0], started[1][1:], started[2]] == [pull, leftover[1:], stage]
    # A unit is forgotten as soon as it is done, so that the next one can have its name.
    assert [command for command in lab.commands() if command[:2] == ["systemctl", "stop"]] == [
        ["systemctl", "stop", PULL],
        ["systemctl", "stop", STAGE],
    ]
    staged = lab.staged()
    assert before - 1 <= staged.pop("finished") <= time.time()
    assert staged == {
        "key": STAGE_KEY,
        "share_key": "",
        "image": IMAGE,
        "image_reference": REFERENCE,
        "path": str(lab.cache),
        "read_only": False,
        "marked": True,
        "bytes": 7,
        "files": 1,
    }
    # What the cache says of itself names no image that anybody could be made to run.
    said = json.loads((lab.cache / _staged.MARKER).read_text())
    assert sorted(said) == ["bytes", "files", "finished", "image", "key", "share_key"]
    listed = _weights.parse_list((lab.cache / _staged.LIST).read_bytes())
    assert {name: entry.sum for name, entry in listed.items()} == {
        "ngc/hub/model.safetensors": hashlib.sha256(b"weights").hexdigest()
    }
    assert listed == _weights.parse_list(lab.note.with_suffix(".sums").read_bytes())
    assert {stat.S_IMODE((lab.cache / name).stat().st_mode) for name in (_staged.MARKER, _staged.LIST)} == {0o644}
    assert sorted(path.name for path in lab.cache.iterdir()) == [_staged.MARKER, _staged.LIST, "ngc"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (lab.cache.parent, lab.cache)] == [0o755, 0o755]


def test_the_key_is_given_on_standard_input_of_the_download_only(lab, call):
    lab.image(there=False)
    lab.unit(PULL, EXITED)
    lab.unit(STAGE, EXITED)
    call()
    assert (lab.root / f"{STAGE}.stdin").read_text() == f"{KEY}\n"
    assert (lab.root / f"{STAGE}.modes").read_text().split() == ["600", "700"]
    assert not (lab.root / f"{PULL}.stdin").exists()


def test_podman_stages_as_docker_does(lab, call):
    """Podman says in its own words that there is no image, and ids without the name of the sum."""
    (lab.root / "bin/docker").unlink()
    script = lab.root / "bin/podman"
    script.write_text(
        RECORD.format(lab=lab.root)
        + COMMANDS["docker"].replace("Error response from daemon: No such image: $3", "Error: $3: image not known")
    )
    script.chmod(0o755)
    lab.image([{**INSPECTED[0], "Id": IMAGE_ID[7:]}], there=False)
    lab.unit(PULL, EXITED)
    lab.unit(STAGE, EXITED)
    result = call(engine="podman")
    assert (result["image_id"], result["image_reference"], lab.staged()["image_reference"]) == (
        IMAGE_ID,
        REFERENCE,
        REFERENCE,
    )
    pull, stage = (command[command.index("--") + 1 :] for command in lab.commands() if command[0] == "systemd-run")
    assert pull == [str(script), "pull", IMAGE]
    assert stage[:2] == [str(script), "run"] and "label=disable" in stage and IMAGE_ID in stage
    # An id that a marker got from Docker is the same image.
    lab.note_of(IMAGE_ID)
    assert call(engine="podman")["changed"] is False


def test_podman_that_does_not_answer(lab, fail):
    script = lab.root / "bin/podman"
    script.write_text("#!/bin/sh\necho 'Error: database is locked' >&2\nexit 125\n")
    script.chmod(0o755)
    result = fail(engine="podman")
    assert (
        "podman does not answer: Error: database is locked" in result["msg"] and result["next_command"] == "podman info"
    )


@pytest.mark.parametrize("api_key", [None, ""], ids=["none", "empty"])
def test_without_a_key(lab, call, api_key):
    lab.image()
    lab.unit(STAGE, EXITED)
    assert call(api_key=api_key)["changed"] is True
    (command,) = (command for command in lab.commands() if command[0] == "systemd-run")
    assert not [word for word in command if "StandardInput" in word or word == "--entrypoint"]
    assert command[-2:] == [IMAGE_ID, "download-to-cache"]
    assert not lab.keys.exists()


def test_second_run_looks_only(lab, call):
    lab.image()
    lab.unit(STAGE, EXITED)
    call()
    before = (lab.cache / _staged.MARKER).stat()
    (lab.root / "log").unlink()
    result = call()
    assert (result["changed"], result["phase"], result["bytes"]) == (False, "done", 7)
    assert result["image_reference"] == REFERENCE
    assert lab.commands() == [["docker", "image", "inspect", IMAGE]]
    assert (lab.cache / _staged.MARKER).stat().st_mtime_ns == before.st_mtime_ns


def test_staged_weights_without_their_image_pull_only(lab, call):
    lab.done()
    lab.image(there=False)
    lab.unit(PULL, EXITED)
    result = call()
    assert (result["changed"], result["image_id"]) == (True, IMAGE_ID)
    assert lab.started() == [PULL]


@pytest.mark.parametrize(
    "reference",
    [REFERENCE, f"mirror.example.com/{REFERENCE}", IMAGE_ID],
    ids=["pulled", "pulled-from-a-mirror", "loaded"],
)
def test_staged_weights_of_the_same_image_under_another_name(lab, call, reference):
    lab.done(image_reference=reference)
    lab.image([{**INSPECTED[0], "RepoDigests": [f"mirror.example.com/{REFERENCE}", REFERENCE]}])
    assert call()["changed"] is False


@pytest.mark.parametrize(
    "left",
    [
        pytest.param({"key": "of-another-image"}, id="another-key"),
        pytest.param({"text": ""}, id="empty"),
        pytest.param({"text": '{"key": "5cf6'}, id="cut-off"),
        pytest.param({"text": "[]"}, id="list"),
        # The tag was moved, and the image of old is gone: the unit would ask for a digest that is not there.
        pytest.param({"image_reference": f"{REPOSITORY}@sha256:old"}, id="another-digest-under-the-same-tag"),
    ],
)
def test_any_other_marker_stages_again(lab, call, left):
    lab.done(**left)
    lab.image()
    lab.unit(STAGE, EXITED)
    assert call()["changed"] is True
    assert lab.started() == [STAGE]
    assert (lab.staged()["key"], lab.staged()["image_reference"]) == (STAGE_KEY, REFERENCE)


def test_marker_does_not_follow_a_link(lab, call):
    """The image's user owns the cache and may lay links there."""
    precious = lab.root / "precious"
    precious.write_text("{}")
    precious.chmod(0o600)
    lab.cache.mkdir(parents=True)
    (lab.cache / _staged.MARKER).symlink_to(precious)
    lab.image()
    lab.unit(STAGE, EXITED)
    call()
    assert precious.read_text() == "{}"
    assert not (lab.cache / _staged.MARKER).is_symlink()
    assert lab.staged()["key"] == STAGE_KEY


# -- check mode --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "changed"),
    [("bare-host", True), ("empty-cache", True), ("other-weights", True), ("staged", False)],
    ids=["bare-host", "empty-cache", "other-weights", "staged"],
)
def test_check_mode_runs_nothing_and_writes_nothing(lab, call, state, changed):
    if state == "empty-cache":
        lab.cache.mkdir(parents=True)
    elif state != "bare-host":
        lab.done(key=STAGE_KEY if state == "staged" else "other")
    before = sorted(path.relative_to(lab.root) for path in lab.root.rglob("*"))
    result = call(check_mode=True)
    assert (result["changed"], result["waiting"]) == (changed, False)
    assert lab.commands() == []
    assert sorted(path.relative_to(lab.root) for path in lab.root.rglob("*")) == before


# -- attaching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "states", [[STARTING, RUNNING, EXITED], [RUNNING, EXITED], [EXITED]], ids=["starting", "running", "ended-unseen"]
)
def test_a_download_under_way_is_waited_for(lab, call, states):
    lab.image()
    lab.unit(STAGE, *states, there=DOWNLOADING)
    lab.weights()
    # A play that was killed just after it started the unit left this.
    lab.keys.mkdir()
    (lab.keys / f"{STAGE}.key").write_text(f"{KEY}\n")
    assert call()["phase"] == "done"
    assert lab.started() == []
    assert lab.staged()["key"] == STAGE_KEY


def test_a_pull_that_ended_unseen_is_believed_where_its_image_is(lab, call):
    lab.image()
    lab.unit(PULL, LONG_AGO, there=PULLING)
    lab.unit(STAGE, EXITED)
    assert call()["phase"] == "done"
    assert lab.started() == [STAGE]


@pytest.mark.parametrize("resume", [None, {"elapsed": 0.0}, {"elapsed": 1.5}], ids=["alone", "first", "first-and-late"])
def test_a_pull_that_ended_unseen_is_not_believed_where_its_image_was_removed(lab, call, resume):
    """The action plugin tells the time that has passed with its first call, too."""
    lab.unit(PULL, LONG_AGO, there=PULLING)
    lab.unit(PULL, RUNNING, EXITED)
    lab.unit(STAGE, EXITED)
    # Only the second pull brings it.
    lab.pulled_by(2)
    assert call(resume=resume)["phase"] == "done"
    assert lab.started() == [PULL, STAGE]


def test_a_pull_that_ends_between_two_slices_leaves_no_unit(lab, call):
    lab.image()
    lab.unit(PULL, EXITED, there=PULLING)
    lab.unit(STAGE, EXITED)
    call(resume={"elapsed": 5.0, "bytes": 0, "time": time.time()})
    assert ["systemctl", "stop", PULL] in lab.commands() and lab.started() == [STAGE]


def changed_nothing(_lab):
    """The cache is as the download left it."""


def removed_all(lab):
    shutil.rmtree(lab.cache)


def removed_what_is_in_it(lab):
    shutil.rmtree(lab.cache)
    lab.cache.mkdir()


def removed_one_file(lab):
    (lab.cache / "ngc/hub/other.safetensors").unlink()


def cut_one_file(lab):
    os.truncate(lab.cache / "ngc/hub/model.safetensors", 1)


@pytest.mark.parametrize(
    ("change", "started"),
    [
        (changed_nothing, []),
        (removed_all, [STAGE]),
        (removed_what_is_in_it, [STAGE]),
        (removed_one_file, [STAGE]),
        (cut_one_file, [STAGE]),
    ],
)
def test_a_download_that_ended_unseen_is_believed_while_what_it_left_is_there(lab, call, change, started):
    lab.image()
    lab.weights()
    (lab.cache / "ngc/hub/other.safetensors").write_text("more")
    time.sleep(0.2)
    end = time.monotonic()
    time.sleep(0.2)
    change(lab)
    lab.unit(STAGE, {**EXITED, "ExecMainExitTimestampMonotonic": str(int(end * 10**6))}, there=DOWNLOADING)
    lab.unit(STAGE, EXITED)
    assert call()["phase"] == "done"
    assert lab.started() == started
    assert lab.staged()["key"] == STAGE_KEY


@pytest.mark.parametrize("where", ["cache", "host"])
def test_a_marker_is_not_believed_where_the_weights_were_removed(lab, call, where):
    lab.image()
    lab.weights()
    lab.unit(STAGE, EXITED)
    call(marker=where)
    shutil.rmtree(lab.cache / "ngc")
    lab.unit(STAGE, EXITED)
    (lab.root / "log").unlink()
    assert (call(marker=where)["changed"], lab.started()) == (True, [STAGE])


@pytest.mark.parametrize("end", ["0", ""])
def test_a_download_whose_end_is_not_known_is_not_believed(lab, call, end):
    lab.image()
    lab.weights()
    lab.unit(STAGE, {**EXITED, "ExecMainExitTimestampMonotonic": end}, there=DOWNLOADING)
    lab.unit(STAGE, EXITED)
    assert call()["phase"] == "done"
    assert lab.started() == [STAGE]


def test_what_ends_between_two_slices_of_one_wait_is_believed(lab, call):
    """It would never end otherwise, where the file system is slower to say so than the unit is to end."""
    lab.image()
    lab.weights()
    lab.unit(STAGE, LONG_AGO, there=DOWNLOADING)
    assert call(resume={"elapsed": 5.0, "bytes": 0, "time": time.time()})["phase"] == "done"
    assert lab.started() == []


def test_variables_that_are_secrets_are_in_no_argument_list(lab, call):
    lab.image()
    lab.unit(STAGE, EXITED)
    hidden = 'hf_a"b\\c$d`e of 24 letters'
    result = call(secret_env={"HF_TOKEN": hidden})
    (command,) = (command for command in lab.commands() if command[0] == "systemd-run")
    assert f"--property=EnvironmentFile={lab.keys}/{STAGE}.env" in command
    assert command[command.index("HF_TOKEN") - 1] == "--env"
    assert hidden not in (lab.root / "log").read_text() + json.dumps(result)
    # Nothing of it is left behind.
    assert [path.name for path in lab.keys.iterdir()] == []


def test_a_pull_under_way_is_waited_for(lab, call):
    lab.image(there=False)
    lab.unit(PULL, RUNNING, EXITED, there=PULLING)
    lab.unit(STAGE, EXITED)
    assert call()["phase"] == "done"
    assert lab.started() == [STAGE]


@pytest.mark.parametrize(
    ("states", "there"),
    [
        pytest.param([RUNNING], DOWNLOADING.replace(STAGE_KEY[:16], "another-key"), id="of-an-earlier-wish"),
        pytest.param([FAILED], DOWNLOADING, id="failed-before"),
        pytest.param([FAILED], "nim-stage-llama.service", id="failed-and-of-somebody-else"),
    ],
)
def test_any_other_unit_of_the_name_makes_way(lab, call, states, there):
    lab.image()
    lab.unit(STAGE, *states, there=there)
    lab.unit(STAGE, EXITED)
    assert call()["phase"] == "done"
    steps = [tuple(command[:2]) for command in lab.commands() if command[0] in ("systemctl", "systemd-run")]
    assert [step for step in steps if step[1] != "show"][:3] == [
        ("systemctl", "stop"),
        ("systemctl", "reset-failed"),
        ("systemd-run", "--quiet"),
    ]


# -- slices ------------------------------------------------------------------------------------------------------------


def test_slice_of_a_pull(lab, call):
    lab.image(there=False)
    journal = ["1.8.6: Pulling from nim/meta/llama-3.1-8b-instruct"]
    journal += [f"{layer}: Pulling fs layer" for layer in ("d5fd17ec1767", "4f4fb700ef54", "0b1c2d3e4f50")]
    lab.unit(PULL, RUNNING, journal=[*journal, "d5fd17ec1767: Pull complete"])
    result = call(max_wait=0.01)
    assert result["changed"] is True
    assert (result["waiting"], result["phase"], result["resume"]["elapsed"]) == (True, "image", 0.0)
    assert result["history"] == [{"phase": "image", "detail": "1 of 3 layers"}]


def test_a_slice_is_a_sign_of_life_of_the_run_that_has_the_host(lab, call, tmp_path, monkeypatch):
    monkeypatch.setattr(_lease, "FOLDER", str(tmp_path / "lock.d"))
    leases = _lease.Leases()
    seen = leases.take({"run": "a" * 16, "name": "gpu01"}, 60, [], (), ())[0]["seen"]
    lab.image(there=False)
    lab.unit(PULL, RUNNING)
    assert call(max_wait=0.01, resume={"elapsed": 2.0, "run": "a" * 16})["waiting"]
    assert leases.state()["holder"]["seen"] > seen


def test_slices_of_a_download(lab, call):
    lab.image()
    lab.unit(STAGE, RUNNING, journal=["INFO download begins", "INFO 3 of 17 files: model-00003.safetensors"])
    before = time.monotonic()
    result = call(max_wait=0.01)
    assert (result["waiting"], result["phase"]) == (True, "weights")
    assert result["history"] == [{"phase": "weights", "detail": "16.1 GB"}]
    assert result["last_log"] == "INFO 3 of 17 files: model-00003.safetensors"
    assert result["image_id"] == IMAGE_ID
    assert not (lab.cache / _staged.MARKER).exists()
    # By a clock that nobody sets: the rate is a host's that has just got the true time as well.
    assert result["resume"]["bytes"] == SIZE and before <= result["resume"]["time"] <= time.monotonic()
    result = call(max_wait=0.01, resume={"elapsed": 2.0, "bytes": SIZE - 10**9, "time": time.monotonic() - 1000})
    assert result["waiting"] is True
    assert re.fullmatch(r"16\.1 GB, (1\.0 MB|(1000|9\d\d)\.\d kB)/s", result["history"][0]["detail"])
    assert lab.started() == [STAGE]


@pytest.mark.parametrize(("timeout", "elapsed"), [(0.01, 0.0), (3600, 3600.0)], ids=["in-one-go", "in-slices"])
def test_timeout_leaves_the_download_going(lab, fail, timeout, elapsed):
    lab.image()
    lab.unit(STAGE, RUNNING, journal=["INFO 3 of 17 files"])
    result = fail(timeout=timeout, resume={"elapsed": elapsed})
    assert result["failure_class"] == "staging_failed"
    assert f"is not done after {timeout:.0f} s and goes on; run the play again to wait for it." in result["msg"]
    assert (result["evidence"], result["next_command"]) == (["INFO 3 of 17 files"], f"journalctl -fu {STAGE}")
    assert ["systemctl", "stop", STAGE] not in lab.commands()


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("journal", "failure_class"),
    [
        pytest.param(
            ["Error response from daemon: unauthorized: <html><h1>401 Authorization Required</h1></html>"],
            "auth",
            id="auth",
        ),
        pytest.param(
            [
                "Error response from daemon: pull access denied for nvcr.io/nim/x, repository does not exist or may require 'docker login'"
            ],
            "auth",
            id="denied",
        ),
        pytest.param(
            [f"Error response from daemon: manifest for {IMAGE} not found: manifest unknown"],
            "image_missing",
            id="image_missing",
        ),
        pytest.param(
            ["d5fd17ec1767: Downloading", "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"],
            "disk_full",
            id="disk_full",
        ),
        pytest.param(
            ["Error response from daemon: Get https://nvcr.io/v2/: dial tcp: lookup nvcr.io: no such host"],
            "staging_failed",
            id="network",
        ),
        pytest.param([], "staging_failed", id="silent"),
    ],
)
def test_pull_that_fails(lab, fail, journal, failure_class):
    lab.unit(PULL, RUNNING, FAILED, journal=journal)
    result = fail()
    assert (result["failure_class"], result["phase"]) == (failure_class, "image")
    assert f"pull of {IMAGE} failed (exit status 1): {journal[-1] if journal else ''}" in result["msg"]
    assert result["evidence"] == journal
    assert result["next_command"] == f"journalctl _SYSTEMD_INVOCATION_ID=id-of-{PULL}"
    assert [
        "journalctl",
        f"_SYSTEMD_INVOCATION_ID=id-of-{PULL}",
        "-n",
        "200",
        "-o",
        "cat",
        "--no-pager",
    ] in lab.commands()
    # The next run begins anew.
    assert lab.commands()[-2:] == [["systemctl", "stop", PULL], ["systemctl", "reset-failed", PULL]]
    assert lab.started() == [PULL]


@pytest.mark.parametrize(
    ("journal", "failure_class", "culprit"),
    [
        pytest.param(
            [
                "Traceback (most recent call last):",
                "Exception: Authentication Error: invalid API key. Access denied.",
                "",
                "nim exited",
            ],
            "auth",
            "Authentication Error: invalid API key. Access denied.",
            id="auth",
        ),
        pytest.param(
            ["ERROR Detected 0 compatible profile(s).", "Traceback", "RuntimeError: exit 1"],
            "no_profile",
            "Detected 0 compatible",
            id="no_profile",
        ),
        pytest.param(
            ["OSError: [Errno 28] No space left on device: '/opt/nim/.cache/x'"],
            "disk_full",
            "No space left",
            id="disk_full",
        ),
        pytest.param(
            ["OSError: [Errno 13] Permission denied: '/opt/nim/.cache/ngc'"],
            "cache_permission",
            "Permission denied",
            id="cache_permission",
        ),
        pytest.param(
            ['docker: Error response from daemon: could not select device driver "cdi" with capabilities: [].'],
            "gpu_unavailable",
            "could not select device driver",
            id="gpu_unavailable",
        ),
        pytest.param(
            ["torch.OutOfMemoryError: CUDA out of memory."], "out_of_memory", "out of memory", id="out_of_memory"
        ),
        pytest.param(["something else", "went wrong.", "  "], "staging_failed", "went wrong", id="unknown"),
    ],
)
def test_download_that_fails(lab, fail, journal, failure_class, culprit):
    lab.image()
    lab.unit(STAGE, RUNNING, FAILED, journal=journal)
    result = fail()
    assert (result["failure_class"], result["phase"]) == (failure_class, "weights")
    assert "download of the weights of llama failed (exit status 1): " in result["msg"]
    assert culprit in result["msg"].splitlines()[0]
    assert result["evidence"] == [line for line in journal if line.strip() and "Traceback (most" not in line]
    assert not (lab.cache / _staged.MARKER).exists()


def test_evidence_is_the_end_of_the_journal_without_the_key(lab, fail):
    """An image that prints its key must not bring it into the output of a play."""
    lab.image()
    lab.unit(STAGE, FAILED, journal=[f"line {number}" for number in range(50)] + [f"NGC_API_KEY={KEY}", "gave up"])
    evidence = fail()["evidence"]
    assert len(evidence) == 20
    assert evidence[-3:] == ["line 49", "NGC_API_KEY=********", "gave up"]


def test_systemd_that_refuses(lab, fail):
    lab.image()
    (lab.root / "systemd-run.err").write_text(
        "Failed to start transient service unit: Unit nim-stage-llama.service already exists\n"
    )
    result = fail()
    assert result["failure_class"] == "unit_unreadable"
    assert f"systemd-run did not start {STAGE}: Failed to start transient service unit" in result["msg"]
    assert result["changed"] is True  # The directory was made.


def test_docker_that_does_not_answer(lab, fail):
    (lab.root / "docker.err").write_text("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\n")
    result = fail()
    assert (result["failure_class"], result["next_command"]) == ("unit_stopped", "systemctl status docker")
    assert "docker does not answer: Cannot connect" in result["msg"]
    assert lab.started() == []


def test_image_that_is_not_there_after_its_pull(lab, fail):
    lab.unit(PULL, EXITED)
    result = fail()
    assert (result["failure_class"], result["next_command"]) == ("image_missing", f"docker pull {IMAGE}")


# -- directory ---------------------------------------------------------------------------------------------------------


def test_too_little_space(lab, fail):
    result = fail(cache_bytes=10**18)
    assert (result["failure_class"], result["phase"]) == ("disk_full", "directory")
    assert " free, wanted 1000000.0 TB." in result["msg"]
    assert result["next_command"] == f"df -h {lab.cache}"
    assert {tuple(command[:2]) for command in lab.commands()} <= {("du", "-sb"), ("systemctl", "show")}


@pytest.mark.parametrize(
    ("size", "marker", "enough"),
    [
        pytest.param(10**18, False, True, id="left-by-an-interrupted-download"),
        pytest.param(10**18, True, False, id="of-another-image"),
        pytest.param(10**9, False, False, id="little-left"),
    ],
)
def test_what_is_there_already_needs_no_space_again(lab, call, size, marker, enough):
    (lab.root / "size").write_text(str(size))
    if marker:
        lab.done(key="of-another-image")
    lab.image()
    lab.unit(STAGE, EXITED)
    assert bool(call(cache_bytes=10**18).get("failed")) is not enough


def test_a_download_under_way_is_not_refused_for_the_space_it_has_taken(lab, call):
    lab.image()
    lab.done(key="of-another-image")
    lab.unit(STAGE, RUNNING, there=DOWNLOADING)
    assert call(cache_bytes=10**18, max_wait=0.01)["waiting"] is True


def test_staged_weights_need_no_space(lab, call):
    lab.done()
    lab.image()
    assert call(cache_bytes=10**18)["changed"] is False


def test_a_cache_that_cannot_be_a_directory(lab, fail):
    (lab.root / "cache").write_text("")
    result = fail()
    assert result["failure_class"] == "cache_permission"
    assert (
        f"cache {lab.cache} cannot be prepared: Not a directory, wanted a directory of {os.getuid()}:{os.getgid()}."
        in result["msg"]
    )
    assert result["next_command"] == f"findmnt -T {lab.cache}; ls -ldn {lab.cache}"
    assert lab.commands() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a directory away")
def test_cache_is_given_to_the_images_user(lab, call):
    lab.done()
    lab.image()
    result = call(uid=4321, gid=4322)
    assert result["changed"] is True
    assert (lab.cache.stat().st_uid, lab.cache.stat().st_gid) == (4321, 4322)
    assert call(uid=4321, gid=4322)["changed"] is False


@pytest.mark.skipif(os.getuid() != 0, reason="only root can write as somebody else")
def test_write_test_is_made_as_the_images_user(lab, fail):
    """The directory is given to that user, but one above it lets nobody but root in."""
    lab.root.chmod(0o700)
    result = fail(uid=4321, gid=4321)
    assert result["failure_class"] == "cache_permission"
    assert f"uid 4321 cannot write to cache {lab.cache}: Permission denied." in result["msg"]
    assert result["next_command"].startswith(f"findmnt -T {lab.cache}; df -h ")
    assert lab.started() == []


@pytest.mark.not_root
def test_write_test_finds_a_directory_that_refuses(lab, fail):
    lab.cache.mkdir(parents=True, mode=0o555)
    result = fail()
    assert result["failure_class"] == "cache_permission"
    assert f"cannot write to cache {lab.cache}: Permission denied." in result["msg"]


@pytest.mark.not_root
def test_user_cannot_give_the_cache_away(lab, fail):
    result = fail(uid=0, gid=0)
    assert result["failure_class"] == "cache_permission"
    assert "cannot be prepared: Operation not permitted, wanted a directory of 0:0." in result["msg"]


# -- without a network, and other families -----------------------------------------------------------------------------

OFFLINE = {"offline": True, "api_key": None}
PASSWORD = "p4ssw0rd-of-one-play"


def test_offline_cache_that_was_copied_there(lab, call):
    lab.image()
    (lab.cache / "ngc").mkdir(parents=True)
    (lab.cache / "ngc/blob").write_text("weights")
    result = call(**OFFLINE)
    assert (result["changed"], result["phase"]) == (True, "done")
    assert (lab.started(), lab.staged()["key"]) == ([], STAGE_KEY)
    assert call(**OFFLINE)["changed"] is False


@pytest.mark.parametrize("left", [None, {"key": "of-another-image"}], ids=["empty", "only-a-marker"])
def test_offline_cache_without_weights(lab, fail, left):
    if left:
        lab.done(**left)
        shutil.rmtree(lab.cache / "ngc")
    lab.image()
    result = fail(**OFFLINE)
    assert result["failure_class"] == "cache_missing"
    assert f"cache {lab.cache} is empty, and the service is offline" in result["msg"]
    assert lab.started() == []


def test_offline_image_that_is_not_there(lab, fail):
    lab.image(there=False)
    result = fail(**OFFLINE)
    assert result["failure_class"] == "image_missing"
    assert f"{IMAGE} is not on the host, and the service is offline" in result["msg"]
    assert result["next_command"] == "docker load --input ARCHIVE"
    assert lab.started() == []


def test_weights_come_from_a_seed(lab, call):
    lab.image()
    lab.unit(STAGE, RUNNING, EXITED)
    seed = lab.root / "llama.tar"
    seed.write_text("")
    result = call(seed=str(seed), **OFFLINE)
    assert (result["changed"], result["phase"]) == (True, "done")
    (command,) = (command for command in lab.commands() if command[0] == "systemd-run")
    copying = description("copy of the weights of llama")
    argv = _staging.seed_command(str(seed), str(lab.cache), os.getuid(), os.getgid(), ["cat"])
    assert command == _staging.transient_unit(STAGE, copying, argv)
    assert lab.staged()["key"] == STAGE_KEY


def test_weights_come_from_another_host(lab, call):
    lab.image()
    lab.unit(STAGE, RUNNING, EXITED)
    source = {"address": "gpu02", "password": PASSWORD, "bytes": 2 * SIZE}
    result = call(source=source, share_key="abc", max_wait=0.01)
    assert result["history"] == [{"phase": "weights", "detail": "16.1 GB of 32.1 GB"}]
    (command,) = (command for command in lab.commands() if command[0] == "systemd-run")
    copying = description("copy of the weights of llama from gpu02")
    argv = _share.copy_command("gpu02", 8730, str(lab.cache), os.getuid(), os.getgid())
    assert command == _staging.transient_unit(STAGE, copying, argv, f"{lab.keys}/{STAGE}.key")
    assert (lab.root / f"{STAGE}.stdin").read_text() == f"{PASSWORD}\n"
    assert PASSWORD not in (lab.root / "log").read_text() + json.dumps(result)
    lab.weights()
    call(source=source, share_key="abc")
    assert lab.staged()["share_key"] == "abc"


def test_a_seed_that_is_not_there(lab, fail):
    lab.image()
    result = fail(seed=str(lab.root / "llama.tar"))
    assert result["failure_class"] == "cache_missing"
    assert f"cache_seed {lab.root}/llama.tar does not exist, wanted a tarball or a directory" in result["msg"]


def test_an_image_without_weights_to_stage(lab, call):
    lab.image()
    result = call(prefetch=[])
    assert (result["changed"], result["phase"], lab.started()) == (True, "done", [])
    assert lab.staged()["key"] == STAGE_KEY


def test_directories_of_the_cache(lab, call):
    lab.image()
    lab.unit(STAGE, EXITED)
    mounts = {"model": "/model", "kernels": "/opt/cache"}
    call(mounts=mounts, prefetch=[], prefetch_env={"NIM_ENGINE_MODEL_DOWNLOAD_ONLY": "1"})
    assert sorted(path.name for path in lab.cache.iterdir() if path.is_dir()) == ["kernels", "model", "ngc"]
    (command,) = (command for command in lab.commands() if command[0] == "systemd-run")
    assert f"{lab.cache}/model:/model" in command and "NIM_ENGINE_MODEL_DOWNLOAD_ONLY=1" in command
    assert call(mounts=mounts, prefetch=[], prefetch_env={"NIM_ENGINE_MODEL_DOWNLOAD_ONLY": "1"})["changed"] is False


def test_an_image_that_says_another_contract(lab, fail):
    lab.image([{**INSPECTED[0], "Config": {"Labels": {"com.nvidia.nim.model_download_protocol": "native-v1"}}}])
    result = fail(contract="llm")
    assert result["failure_class"] == "wrong_contract"
    assert "contract is llm" in result["msg"] and "wanted contract: native" in result["msg"]
    assert lab.started() == []


# -- caches of others --------------------------------------------------------------------------------------------------
# A file system that squashes root is mounted in molecule/faults; here the calls that it refuses are.


@pytest.fixture
def filled(lab):
    """A cache that somebody else filled, with links as hubs lay them."""
    (lab.cache / "blobs").mkdir(parents=True)
    (lab.cache / "blobs/1").write_text("weights")
    (lab.cache / "model").symlink_to("blobs/1")
    (lab.cache / "nowhere").symlink_to("blobs/2")
    lab.image()
    return lab


def test_read_only_cache_is_read_and_never_written(filled, call):
    before = sorted((path, path.lstat().st_mtime_ns) for path in filled.cache.rglob("*"))
    first, again = call(read_only=True, uid=os.getuid()), call(read_only=True)
    assert (first["changed"], first["phase"], first["bytes"], first["image_reference"]) == (True, "done", 7, REFERENCE)
    assert (again["changed"], filled.started()) == (False, [])
    assert sorted((path, path.lstat().st_mtime_ns) for path in filled.cache.rglob("*")) == before
    told = filled.staged()
    assert (told["path"], told["read_only"], told["bytes"]) == (str(filled.cache), True, 7)
    assert (told["key"], told["image_reference"]) == (STAGE_KEY, REFERENCE)


def test_read_only_cache_still_needs_its_image(filled, call):
    (filled.root / "image.json").unlink()
    filled.image(there=False)
    filled.unit(PULL, EXITED)
    assert call(read_only=True)["phase"] == "done"
    assert filled.started() == [PULL]


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (None, "is not there, wanted the cache that is read. Mount it."),
        ("file", "is not there, wanted the cache that is read. Mount it."),
        ("empty", "is empty, wanted one that somebody else filled."),
    ],
    ids=["missing", "no-directory", "empty"],
)
def test_read_only_cache_with_nothing_to_read(lab, fail, left, told):
    lab.cache.parent.mkdir()
    if left == "empty":
        lab.cache.mkdir()
    elif left:
        lab.cache.write_text("")
    result = fail(read_only=True)
    assert f"{lab.cache} {told}" in result["msg"]
    assert (result["failure_class"], lab.commands()) == ("staging_failed", [])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can read as somebody else")
def test_read_only_cache_is_read_as_the_images_user(filled, fail):
    filled.root.chmod(0o700)
    result = fail(read_only=True, uid=4321, gid=4321)
    assert f"uid 4321 cannot read {filled.cache} in cache {filled.cache}: Permission denied" in result["msg"]


def test_read_only_cache_in_check_mode(filled, call):
    assert call(check_mode=True, read_only=True)["changed"] is True
    assert not (filled.root / "nim").exists()


@pytest.fixture
def squashed(lab, monkeypatch):
    """Root may not give anything away."""

    def refuse(path, *_args):
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(nim_cache.os, "fchown", refuse)
    lab.image()
    return lab


@pytest.mark.skipif(os.getuid() != 0, reason="a user cannot give directories away anywhere")
def test_cache_that_root_may_not_give_away(squashed, fail):
    squashed.cache.mkdir(parents=True)
    message = fail(uid=4321, gid=4321)["msg"]
    assert (
        "cannot be prepared: Operation not permitted, wanted a directory of 4321:4321. The file system refuses root"
        in message
    )
    assert "root_squash: create the directory on the file server, owned by 4321:4321" in message


@pytest.mark.skipif(os.getuid() != 0, reason="a user cannot give directories away anywhere")
def test_group_that_root_may_not_change_is_left(squashed, call):
    squashed.done()
    assert call(gid=4321)["changed"] is False


@pytest.mark.parametrize("read_only", [False, True])
def test_cache_that_root_may_not_look_at(lab, fail, monkeypatch, read_only):
    look = os.stat

    def refuse(path, *args, **options):
        if path == str(lab.cache):
            raise PermissionError(13, "Permission denied", path)
        return look(path, *args, **options)

    monkeypatch.setattr(nim_cache.os, "stat", refuse)
    message = fail(read_only=read_only)["msg"]
    assert f"root may not look at cache {lab.cache}, so Docker cannot give it to a container." in message
    assert lab.commands() == []


def test_a_cache_that_root_may_not_write_is_remembered_by_the_host(lab, call, monkeypatch):
    def refuse(_descriptor, name, *_args):
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(_tree, "write_file", refuse)
    lab.image()
    lab.unit(STAGE, EXITED)
    assert call()["changed"] is True
    assert call()["changed"] is False
    told = lab.staged()
    assert (told["key"], told["path"], told["read_only"], told["marked"]) == (STAGE_KEY, str(lab.cache), False, False)
    assert not (lab.cache / _staged.MARKER).exists()


def test_a_shared_cache_is_not_marked(lab, call):
    lab.image()
    lab.unit(STAGE, EXITED)
    call(marker="host")
    assert (lab.staged()["path"], lab.staged()["marked"]) == (str(lab.cache), False)
    assert [path.name for path in lab.cache.iterdir()] == ["ngc"]


def test_another_cache_of_the_service_is_staged_anew(lab, call):
    """A service that comes back from a shared cache to its own: what lies there says that it is complete, and nobody else does."""
    lab.done(path="/mnt/shared/llama", marked=False)
    lab.image()
    lab.unit(STAGE, EXITED)
    assert call()["changed"] is True
    assert (lab.started(), lab.staged()["path"]) == ([STAGE], str(lab.cache))
    assert call()["changed"] is False


def test_repositories_are_noted_once(lab, call):
    lab.done()
    lab.image()
    for repository in (REPOSITORY, REPOSITORY, "nvcr.io/nim/another"):
        call(repository=repository)
    assert (lab.root / "nim/repositories").read_text() == f"nvcr.io/nim/another\n{REPOSITORY}\n"


@pytest.mark.parametrize("unit", [PULL, STAGE])
def test_a_service_of_that_name_is_left_alone(lab, fail, unit):
    """One that was called pull-llama or stage-llama before such names were refused."""
    lab.image(there=unit == STAGE)
    own = {"Transient": "no", "FragmentPath": f"/etc/systemd/system/{unit}"}
    lab.unit(unit, {**RUNNING, **own}, there="NVIDIA NIM stage-llama")
    result = fail()
    assert (
        f"{unit} is a unit of this host (/etc/systemd/system/{unit}) and none of a staging; it was left alone"
        in result["msg"]
    )
    assert lab.started() == [] and not any(command[:2] == ["systemctl", "stop"] for command in lab.commands())


def test_words_of_a_container_are_made_fit_for_a_terminal():
    stage = object.__new__(nim_cache.Stage)
    stage.run = lambda *_argv, **_more: (0, "10%\r\x1b[31mred\x1b[0m\x1b]0;title\x07 \u202e\x9b2J\n" + "x" * 50000, "")
    lines = stage.journal({})
    assert lines[0] == "red 2J" and len(lines[1]) < 5000 and all(line.isprintable() for line in lines)


# -- whom to believe ---------------------------------------------------------------------------------------------------


def test_a_container_cannot_have_itself_kept(lab, call):
    """It knows the key of the next version, which is made of public words, and may write all it likes into its cache."""
    lab.done(key="of-the-version-that-runs")
    forged = {"key": STAGE_KEY, "image": IMAGE, "image_reference": f"{REPOSITORY}@sha256:{'6' * 64}", "bytes": 10**20}
    (lab.cache / _staged.MARKER).write_text(json.dumps(forged))
    lab.image(there=False)
    lab.unit(PULL, EXITED)
    lab.unit(STAGE, EXITED)
    assert call()["image_reference"] == REFERENCE
    assert (lab.started(), lab.staged()["image_reference"]) == ([PULL, STAGE], REFERENCE)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"key": "x", "bytes": 1' + "0" * 400 + "}", '{"key": []}', "\0" * 100],
    ids=["deep", "endless-number", "list-for-a-word", "zeros"],
)
def test_what_a_container_writes_into_its_cache_costs_nothing_but_a_staging(lab, call, text):
    lab.done()
    (lab.cache / _staged.MARKER).write_text(text)
    (lab.cache / _staged.LIST).write_text(text)
    lab.image()
    lab.unit(STAGE, EXITED)
    assert call()["changed"] is True
    assert call()["changed"] is False


@pytest.mark.parametrize("name", [_staged.MARKER, _staged.LIST])
def test_a_directory_in_place_of_the_marker(lab, call, name):
    (lab.cache / name).mkdir(parents=True)
    lab.image()
    lab.unit(STAGE, EXITED)
    assert call()["phase"] == "done"
    assert lab.staged()["marked"] is False
    assert call()["changed"] is False


@pytest.mark.parametrize("place", ["model", "model/deep"])
def test_a_directory_that_became_a_link_is_not_given_away(lab, fail, place):
    """A root directory of mode 0700 became the image user's own by a link that he had laid in his cache."""
    precious = lab.root / "precious"
    precious.mkdir(mode=0o700)
    before = precious.stat()
    (lab.cache / place).parent.mkdir(parents=True)
    (lab.cache / place).symlink_to(precious)
    result = fail(mounts={"model/deep/x": "/x"}, uid=os.getuid())
    assert result["failure_class"] == "cache_permission"
    assert f"{lab.cache}/{place} is a link to '{precious}'" in result["msg"] and "it was not followed" in result["msg"]
    after = precious.stat()
    assert (after.st_uid, after.st_mode, list(precious.iterdir())) == (before.st_uid, before.st_mode, [])
    assert lab.started() == []


def test_an_ended_unit_proves_nothing_of_an_empty_cache(lab, call, fail):
    """The controller was killed while it ran, the cache was removed, and the unit of old had ended well."""
    lab.image()
    (lab.root / "nothing").touch()
    lab.unit(STAGE, EXITED, there=DOWNLOADING)
    lab.unit(STAGE, EXITED)
    result = fail()
    assert lab.started() == [STAGE], "the download is run again"
    assert "download of the weights of llama ended well, and there is no file in" in result["msg"]
    assert result["failure_class"] == "cache_missing" and "prefetch: []" in result["msg"]
    assert not lab.note.exists() and not (lab.cache / _staged.MARKER).exists()
    (lab.root / "nothing").unlink()
    lab.unit(STAGE, EXITED)
    assert call()["phase"] == "done" and lab.note.exists()


def test_weights_that_were_lost_are_staged_again(lab, call):
    lab.image()
    lab.weights("weights" * 1000)
    lab.done()
    (lab.cache / "ngc/hub/model.safetensors").write_text("weights" * 1000)
    files = _weights.taken(_weights.take(str(lab.cache), {}, 0))
    lab.note.with_suffix(".sums").write_text(_weights.list_text(files))
    assert call()["changed"] is False
    lab.weights("weights" * 10)
    lab.unit(STAGE, EXITED)
    assert (call()["changed"], lab.started()) == (True, [STAGE])


# -- what was copied ---------------------------------------------------------------------------------------------------


def brought(lab, **files):
    """The list of files as they were where they were staged."""
    entries = {
        name: _weights.Entry(len(text), hashlib.sha256(text.encode()).hexdigest(), 1, 1) for name, text in files.items()
    }
    (lab.root / "brought").write_text(_weights.list_text(entries))


WHOLE = {"ngc/hub/model.safetensors": "weights"}
SEED = {"seed": "/etc/hostname", **OFFLINE}
SOURCE = {"source": {"address": "gpu02", "password": "p" * 20}}


@pytest.mark.parametrize("options", [SEED, SOURCE], ids=["seed", "another-host"])
def test_a_whole_copy_is_compared_and_taken(lab, call, options):
    brought(lab, **WHOLE)
    lab.image()
    lab.unit(STAGE, EXITED)
    assert call(**options)["phase"] == "done"
    assert call(**options)["changed"] is False


@pytest.mark.parametrize("options", [SEED, SOURCE], ids=["seed", "another-host"])
@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({**WHOLE, "ngc/hub/model-2.safetensors": "more"}, "ngc/hub/model-2.safetensors is missing"),
        ({"ngc/hub/model.safetensors": "weights and more"}, "model.safetensors has 7 B, wanted 16 B"),
        ({"ngc/hub/model.safetensors": "stheiwg"}, "model.safetensors has another content"),
    ],
    ids=["missing", "cut-off", "bent"],
)
def test_half_a_copy_does_not_pass_for_whole(lab, fail, options, files, told):
    brought(lab, **files)
    # The marker of a staging before must not vouch for what replaces its weights.
    lab.done(key="of-the-version-before")
    lab.image()
    lab.unit(STAGE, EXITED)
    result = fail(**options)
    assert told in result["msg"] and "are not whole" in result["msg"] and result["failure_class"] == "cache_missing"
    assert not (lab.cache / _staged.MARKER).exists() and lab.staged()["key"] == "of-the-version-before"


def test_a_seed_without_a_list_is_taken_with_a_warning(lab, call, monkeypatch):
    told = []
    monkeypatch.setattr(nim_cache.AnsibleModule, "warn", lambda _self, text: told.append(text))
    lab.image()
    lab.unit(STAGE, EXITED)
    assert call(**SEED)["phase"] == "done"
    assert len(told) == 1 and "has no list of its files" in told[0]


def test_a_seed_that_brings_what_is_no_weights(lab, fail):
    lab.image()
    lab.cache.mkdir(parents=True)
    os.mkfifo(lab.cache / "pipe")
    lab.unit(STAGE, EXITED)
    result = fail(**SEED)
    assert "has brought what is no weights: pipe is a pipe" in result["msg"]


def test_a_seed_whose_program_is_missing(lab, fail):
    (lab.root / "s.tar.zst").write_bytes(b"(\xb5/\xfd" + b"x" * 20)
    lab.image()
    result = fail(**{**SEED, "seed": str(lab.root / "s.tar.zst")})
    assert "zstd is not installed, wanted it to unpack cache_seed" in result["msg"] and lab.started() == []


def test_sums_are_made_in_slices(lab, call, monkeypatch):
    """None of which starts the download again."""
    monkeypatch.setattr(nim_cache, "SUM_SECONDS", 0)
    lab.image()
    lab.unit(STAGE, EXITED)
    for number in range(3):
        lab.weights()
        (lab.cache / f"ngc/hub/{number}").write_text("more")
    result = call(max_wait=0.0001)
    while not result["resume"]["fetched"]:
        result = call(max_wait=0.0001, resume=result["resume"])
    assert (result["phase"], result["waiting"]) == ("sums", True)
    assert result["history"][0]["detail"].endswith(" summed")
    slices = 1
    while result["waiting"]:
        result, slices = call(max_wait=0.0001, resume=result["resume"]), slices + 1
    assert (slices > 2, lab.started(), lab.staged()["files"]) == (True, [STAGE], 4)
    assert sorted(path.name for path in lab.note.parent.iterdir()) == ["llama.json", "llama.sums"]


# -- removal -----------------------------------------------------------------------------------------------------------


def test_a_service_that_is_removed_leaves_no_staging(lab, call):
    lab.done()
    lab.image()
    lab.unit(STAGE, LONG_AGO, there=DOWNLOADING)
    assert call(state="absent")["changed"] is True
    assert ["systemctl", "stop", STAGE] in lab.commands() and lab.note.exists() and lab.cache.exists()
    assert call(state="absent")["changed"] is False
    assert call(state="absent", remove=True, check_mode=True)["changed"] is True and lab.cache.exists()
    assert call(state="absent", remove=True)["changed"] is True
    assert not lab.cache.exists() and list(lab.note.parent.iterdir()) == []
    assert call(state="absent", remove=True)["changed"] is False


def test_a_removal_follows_no_link(lab, call):
    (lab.root / "precious").mkdir()
    (lab.root / "precious/file").touch()
    lab.cache.parent.mkdir()
    lab.cache.symlink_to(lab.root / "precious")
    assert call(state="absent", remove=True)["changed"] is True
    assert not lab.cache.is_symlink() and (lab.root / "precious/file").exists()


def test_a_removal_leaves_a_service_of_that_name_alone(lab, call):
    lab.unit(STAGE, {**RUNNING, "Transient": "no", "FragmentPath": "/etc/systemd/system/x"}, there="NVIDIA NIM")
    assert call(state="absent")["changed"] is False
    assert not any(command[:2] == ["systemctl", "stop"] for command in lab.commands())
