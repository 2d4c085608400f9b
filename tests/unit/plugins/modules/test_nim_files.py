# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module on real directories, with the strictest umask and with the usual one."""

from __future__ import annotations

import base64
import errno
import json
import os
import pathlib
import stat

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _files
from ansible_collections.baremetal.nim.plugins.modules import nim_files

KEY = "nvapi-9J3k2LmNoPqRsTuVwXyZ"
TOKEN = "hf_abcdefghijklmnop"


def packed(text):
    return base64.b64encode(text.encode()).decode()


def file(path, text, **more):
    return {"path": str(path), "content": packed(text), **more}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o077, 0o022], ids=["umask-077", "umask-022"])
def call(request, capsys):
    """Calls the module; returns its result and its output as text."""
    before = os.umask(request.param)

    def run(check=False, diff=True, **options):
        with (
            patch_module_args({**options, "_ansible_check_mode": check, "_ansible_diff": diff}),
            pytest.raises(SystemExit),
        ):
            nim_files.main()
        text = capsys.readouterr().out
        return {**json.loads(text), "text": text}

    yield run
    os.umask(before)


@pytest.fixture
def service(tmp_path):
    """What a service has: directories to be made, and its files."""
    return {
        "directories": [{"path": str(tmp_path / "etc/nim"), "mode": "0700"}, {"path": str(tmp_path / "units")}],
        "files": [
            file(tmp_path / "etc/nim/llama.env", f"A=1\nHF_TOKEN={TOKEN}\n", mode="0600"),
            file(tmp_path / "units/nim-llama.service", "[Unit]\n"),
            file(tmp_path / "etc/nim/llama.key", f"{KEY}\n", mode="0600", secret=True),
        ],
        "hidden": [TOKEN],
    }


def test_from_nothing_and_once_more(call, service, tmp_path):
    places = [item["path"] for item in service["files"]]
    result = call(**service)
    assert (result["changed"], result["written"], result["removed"]) == (True, places, [])
    assert (tmp_path / "etc/nim/llama.key").read_text() == f"{KEY}\n"
    assert (tmp_path / "etc/nim/llama.env").read_text() == f"A=1\nHF_TOKEN={TOKEN}\n"
    modes = {path: mode(tmp_path / path) for path in ("etc", "etc/nim", "units")}
    assert modes == {"etc": 0o755, "etc/nim": 0o700, "units": 0o755}
    assert [mode(tmp_path / "etc/nim" / name) for name in ("llama.env", "llama.key")] == [0o600, 0o600]
    assert mode(tmp_path / "units/nim-llama.service") == 0o644
    # Nothing is left beside them.
    assert sorted(path.name for path in (tmp_path / "etc/nim").iterdir()) == ["llama.env", "llama.key"]
    inodes = [os.stat(path).st_ino for path in places]
    again = call(**service)
    assert (again["changed"], again["written"], again["diff"]) == (False, [], [])
    assert [os.stat(path).st_ino for path in places] == inodes


def test_only_what_differs_is_written(call, service, tmp_path):
    call(**service)
    before = os.stat(tmp_path / "etc/nim/llama.env").st_ino
    service["files"][1] = file(tmp_path / "units/nim-llama.service", "[Unit]\nA=b\n")
    result = call(**service)
    assert result["written"] == [str(tmp_path / "units/nim-llama.service")]
    assert os.stat(tmp_path / "etc/nim/llama.env").st_ino == before
    (change,) = result["diff"]
    assert (change["before"], change["after"]) == ("[Unit]\n", "[Unit]\nA=b\n")
    assert change["before_header"].endswith("nim-llama.service (0644 of 0:0)") or os.geteuid()


@pytest.mark.parametrize("wrong", [0o644, 0o666, 0o400])
def test_permissions_are_put_right(call, service, tmp_path, wrong):
    call(**service)
    env = tmp_path / "etc/nim/llama.env"
    env.chmod(wrong)
    result = call(**service)
    assert (result["written"], mode(env)) == ([str(env)], 0o600)
    (tmp_path / "etc/nim").chmod(0o755)
    result = call(**service)
    assert (result["changed"], result["written"], mode(tmp_path / "etc/nim")) == (True, [], 0o700)


def test_no_secret_is_shown(call, service, tmp_path):
    first = call(**service)
    service["files"][2] = file(tmp_path / "etc/nim/llama.key", f"{KEY}2\n", mode="0600", secret=True)
    service["files"][0] = file(tmp_path / "etc/nim/llama.env", f"A=2\nHF_TOKEN={TOKEN}\n", mode="0600")
    second = call(**service)
    assert len(second["diff"]) == 2
    for result in (first, second):
        for secret in (KEY, TOKEN, packed(f"{KEY}\n"), packed(f"A=1\nHF_TOKEN={TOKEN}\n")):
            assert secret not in result["text"]
        assert "HF_TOKEN=********" in result["text"]
    assert [change["after"] for change in second["diff"] if "llama.key" in change["after_header"]] == [
        "(another secret)\n"
    ]


def test_a_check_writes_nothing_and_tells_all_of_it(call, service, tmp_path):
    check = call(check=True, **service)
    assert list(tmp_path.iterdir()) == []
    done = call(**service)
    for key in ("changed", "written", "removed", "diff"):
        assert check[key] == done[key], key


def test_without_diff_mode_nothing_is_told(call, service):
    assert call(diff=False, **service)["diff"] == []


def test_what_is_to_go_goes_last(call, tmp_path):
    (tmp_path / "copy/deep").mkdir(parents=True)
    (tmp_path / "copy/deep/unit").write_text("x")
    (tmp_path / "old.key").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    absent = [str(tmp_path / name) for name in ("copy", "old.key", "link", "never")]
    check = call(check=True, absent=absent)
    result = call(absent=absent)
    assert result["removed"] == check["removed"] == absent[:3]
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert call(absent=absent)["changed"] is False


def test_a_full_disk_changes_no_file(call, service, tmp_path, monkeypatch):
    call(**service)
    texts = [pathlib.Path(item["path"]).read_text() for item in service["files"]]
    changed = [{**item, "content": packed("other\n")} for item in service["files"]]
    put, calls = _files.beside, []

    def full(path, data, mode):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return put(path, data, mode)

    monkeypatch.setattr(_files, "beside", full)
    result = call(files=changed)
    assert result["failed"] and result["written"] == []
    assert f"{changed[2]['path']}: No space left on device, wanted to write it; no file was changed." in result["msg"]
    assert "Next: df -h" in result["msg"]
    assert [pathlib.Path(item["path"]).read_text() for item in service["files"]] == texts
    assert sorted(path.name for path in (tmp_path / "etc/nim").iterdir()) == ["llama.env", "llama.key"]


def test_a_disk_that_is_full_while_a_file_is_written_leaves_nothing(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        _files.write([(str(tmp_path / "a"), b"x", 0o600)])
    assert caught.value.filename == str(tmp_path / "a") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"files": [{"path": "/tmp", "content": ""}]}, "/tmp is a directory, wanted a file"),
        (
            {"files": [{"path": "/nowhere/x", "content": ""}]},
            "/nowhere/x: No such file or directory, wanted to write it",
        ),
        (
            {"files": [{"path": "/nowhere/x", "content": "%"}]},
            "/nowhere/x: the content is no base64. Next: give it the filter",
        ),
        ({"files": [{"path": "/nowhere/x", "content": "", "mode": "rw"}]}, "mode is rw, wanted three octal digits"),
        ({"directories": [{"path": "/etc/passwd"}]}, "/etc/passwd is no directory but a file"),
    ],
)
def test_what_cannot_be_done(call, options, said):
    result = call(**options)
    assert result["failed"] and said in result["msg"]


def test_a_link_in_the_place_of_a_file_is_replaced_itself(call, tmp_path):
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / "unit").symlink_to(tmp_path / "elsewhere")
    assert call(files=[file(tmp_path / "unit", "ours")])["changed"]
    assert not (tmp_path / "unit").is_symlink() and (tmp_path / "elsewhere").read_text() == "theirs"


def test_a_directory_that_is_kept_elsewhere_is_left_there(call, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o750)
    (tmp_path / "nim").symlink_to(tmp_path / "elsewhere")
    result = call(
        directories=[{"path": str(tmp_path / "nim"), "mode": "0700"}], files=[file(tmp_path / "nim/env", "x")]
    )
    assert result["written"] == [str(tmp_path / "nim/env")] and (tmp_path / "nim").is_symlink()


def test_bytes_that_are_no_text(call, tmp_path):
    item = {"path": str(tmp_path / "x"), "content": base64.b64encode(b"\xff\x00\xfe").decode()}
    assert call(files=[item])["changed"] and not call(files=[item])["changed"]
    assert (tmp_path / "x").read_bytes() == b"\xff\x00\xfe"


def test_what_a_killed_run_left_beside_a_file_goes(call, service, tmp_path):
    """It may be a secret, and what is called by chance is found by nobody."""
    left = tmp_path / "etc/nim/.llama.key.new"
    call(**service)
    left.write_text(KEY)
    service["files"][2] = file(tmp_path / "etc/nim/llama.key", f"{KEY}2\n", mode="0600", secret=True)
    call(**service)
    assert not left.exists()
    left.symlink_to(tmp_path / "elsewhere")
    call(absent=[str(tmp_path / "etc/nim/llama.key"), str(tmp_path / "nowhere/at/all")])
    assert not os.path.lexists(left) and not (tmp_path / "elsewhere").exists()
    assert [path.name for path in (tmp_path / "etc/nim").iterdir()] == ["llama.env"]
