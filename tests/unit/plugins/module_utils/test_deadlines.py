# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs and file systems that do not answer, with real processes."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _command


def shell(text, seconds=20.0, **options):
    """What came of a shell script, and how long it took."""
    began = time.monotonic()
    answer = _command.run(["/bin/sh", "-c", text], seconds, **options)
    return answer, time.monotonic() - began


def alive(pid):
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as handle:
            return handle.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid):
    """Whether a process goes within some seconds: who ends it does not wait for it."""
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize(
    ("text", "code", "out", "err"),
    [
        ("echo said; echo warned >&2", 0, "said\n", "warned\n"),
        ("echo failed >&2; exit 9", 9, "", "failed\n"),
        ("exec >&- 2>&-; sleep 0.2; exit 3", 3, "", ""),
        ("kill -SEGV $$", -signal.SIGSEGV, "", ""),
        ("cat; echo end", 0, "end\n", ""),
        ("echo $LC_ALL $LANGUAGE $TZ", 0, "C C UTC\n", ""),
        ("printf 'mod\\350le'", 0, "mod\ufffdle", ""),
    ],
    ids=["answer", "failure", "closes its pipes early", "crash", "no standard input", "locale", "no UTF-8"],
)
def test_programs_that_end(text, code, out, err, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    answer, seconds = shell(text)
    assert (answer.code, answer.out, answer.err, answer.silent) == (code, out, err, False)
    assert seconds < 10


def test_what_is_asked_reaches_the_program():
    assert shell("cat", data="nvcr.io\n" * 100000)[0].out == "nvcr.io\n" * 100000
    assert shell("cat; echo none", data="")[0].out == "none\n"


def test_program_that_ends_before_it_has_read():
    answer, _seconds = shell("exec <&-; echo answer; exit 1", data="x" * 2**20)
    assert (answer.code, answer.out, answer.err) == (1, "answer\n", "")


def test_what_cannot_be_run(tmp_path):
    (tmp_path / "text").write_text("#!/bin/sh\n")
    for name, code, said in (
        ("none", _command.MISSING, "No such file or directory"),
        ("text", _command.NOT_RUN, "Permission denied"),
    ):
        answer = _command.run([f"{tmp_path}/{name}"], 5)
        assert (answer.code, answer.err) == (code, f"{tmp_path}/{name}: {said}")


@pytest.mark.parametrize(
    "text",
    ["echo $$; exec sleep 1234", "trap '' TERM; echo $$; while :; do sleep 1234 & wait; done"],
    ids=["sleeps", "ignores SIGTERM"],
)
def test_program_that_does_not_answer_is_ended(text):
    answer, seconds = shell(text, 0.5)
    assert (answer.code, answer.silent, answer.left) == (_command.SILENT, True, None)
    assert answer.err.startswith("sh did not answer within 0.5 s and was ended. Next: ")
    assert 0.5 <= seconds < 15
    assert gone(int(answer.out))


def test_what_a_silent_program_has_started_goes_with_it():
    answer, _seconds = shell("sh -c 'trap \"\" TERM; echo $$; exec sleep 1234' & wait", 0.5)
    assert answer.silent
    assert gone(int(answer.out))


def test_program_that_leaves_somebody_at_its_pipes():
    """As an agent that a credential helper starts: the answer is there, and nobody waits for the end of the pipe."""
    answer, seconds = shell("setsid sleep 1234 & echo $!")
    assert (answer.code, answer.silent) == (0, False) and seconds < 10
    assert alive(int(answer.out))
    os.kill(int(answer.out), signal.SIGKILL)


def test_silent_program_whose_descendant_left_its_session():
    answer, seconds = shell("setsid sh -c 'echo $$; exec sleep 1234' & wait", 0.5)
    assert answer.silent and seconds < 10
    os.kill(int(answer.out), signal.SIGKILL)


@pytest.mark.parametrize("where", ["1", "2"])
def test_program_that_writes_without_end(where):
    answer, seconds = shell(f"exec yes >&{where}", most=2**20)
    assert (answer.code, answer.out, answer.silent) == (_command.FLOOD, "", False)
    assert answer.err == "sh wrote more than 1 MiB and was ended." and seconds < 15


def test_program_that_the_kernel_does_not_let_go(monkeypatch):
    """A process in state D takes no signal; it is left where it is."""
    monkeypatch.setattr(_command.os, "killpg", lambda _group, _number: None)
    monkeypatch.setattr(_command, "_GRACE", 0.2)
    began = time.monotonic()
    answer = _command.run(["/bin/sleep", "1234"], 0.2)
    assert answer.silent and answer.left and time.monotonic() - began < 10
    assert f"cannot be ended, as it waits in the kernel (process {answer.left}). Next: " in answer.err
    os.kill(answer.left, signal.SIGKILL)


def test_next_command_is_that_of_the_program(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexec sleep 1234\n")
    smi.chmod(0o755)
    said = _command.run([str(smi), "-q", "-x"], 0.3).err
    assert said.startswith("nvidia-smi did not answer within 0.3 s and was ended. Next: dmesg | grep -i -e nvrm")
    assert _command.words(["/usr/bin/docker", "info", "--format", "x"]) == "docker info"


@pytest.mark.parametrize(("again", "asked"), [(False, 1), (True, 2)])
def test_who_was_silent_is_asked_once(tmp_path, again, asked):
    script = tmp_path / "docker"
    script.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/log\nexec sleep 1234\n")
    script.chmod(0o755)
    run = _command.Runner({"docker": str(script), "true": "/bin/true"}.get, again)
    answers = [run("docker", word, seconds=0.5) for word in ("info", "ps")]
    assert [code for code, _out, _err in answers] == [_command.SILENT] * 2
    assert (tmp_path / "log").read_text() == "asked\n" * asked
    assert answers[0][2].startswith("docker info did not answer within 0.5 s")
    assert [item["program"] for item in run.unanswered] == ["docker"] * asked
    assert run("true") == (0, "", "")
    assert run("podman", "info") == (_command.MISSING, "", "podman is not installed")


def test_apart_hands_over_what_is_found():
    assert _command.apart(lambda: {"big": "x" * 2**20, "none": None}, 20) == {"big": "x" * 2**20, "none": None}


def test_apart_hands_over_the_error():
    with pytest.raises(FileNotFoundError) as caught:
        _command.apart(lambda: os.stat("/nowhere"), 20)
    assert (caught.value.filename, caught.value.strerror) == ("/nowhere", "No such file or directory")


def test_apart_tells_when_the_work_ends_early():
    with pytest.raises(OSError, match="it ended early"):
        _command.apart(lambda: os.kill(os.getpid(), signal.SIGKILL), 20)
    with pytest.raises(OSError, match="it ended early"):
        _command.apart(lambda: sys.exit(3), 20)


def test_apart_does_not_wait_for_ever():
    began = time.monotonic()
    with pytest.raises(_command.Silence, match="no answer within 0.3 s"):
        _command.apart(lambda: time.sleep(1234), 0.3)
    assert time.monotonic() - began < 10


MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
10.0.0.5:/export/nim /mnt/nim nfs4 rw,hard 0 0
10.0.0.5:/export/old /mnt/nim\\040old nfs4 rw,hard 0 0
"""


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/mnt/nim/cache/llama", "10.0.0.5:/export/nim on /mnt/nim, nfs4"),
        ("/mnt/nim", "10.0.0.5:/export/nim on /mnt/nim, nfs4"),
        ("/mnt/nim old/llama", "10.0.0.5:/export/old on /mnt/nim old, nfs4"),
        ("/mnt/nimble", "/dev/sda1 on /, ext4"),
        ("/", "/dev/sda1 on /, ext4"),
    ],
)
def test_mount_of(path, mount):
    assert _command.mount_of(path, MOUNTS) == mount
    assert _command.mount_of(path, "") == ""
