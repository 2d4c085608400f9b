# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container, a seed or an endpoint can write is a stranger's word, on a real host with a real systemd."""

from __future__ import annotations

import base64
import json
import pathlib
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from conftest import ENGINE, Running, ask, lab, play, service

HOST = "gpu01"
CACHE = "/var/lib/nim/cache/llama"
MARKER = f"{CACHE}/.baremetal-nim.json"
#: What a shell, systemd or an env file would take for theirs.
HOSTILE = "a $$ b ${PATH} $HOME %n %% \\ 'c' \"d\" $(id) `id` ; # e"
#: A directory that is nobody's but root's.
THEIRS = "/root/theirs"


def python(host, code, uid=0):
    """Runs a program on the host, by default as root."""
    data = base64.b64encode(code.encode()).decode()
    user = f"setpriv --reuid={uid} --regid={uid} --clear-groups " if uid else ""
    return host.check_output(f"{user}python3 -c \"import base64; exec(base64.b64decode('{data}'))\"")


def specs(**changes):
    return {"nim_services": [service(HOST, **changes)]}


def deploy(**changes):
    return play("services", limit=HOST, extra=specs(**changes))


def running_image(host):
    return host.check_output(f"{ENGINE} inspect --format '{{{{.Image}}}}' nim-llama")


@pytest.fixture
def theirs(host):
    """What nobody may touch by a link that a stranger has laid."""
    host.check_output(f"mkdir -m 0700 {THEIRS} && echo secret > {THEIRS}/file && chmod 0600 {THEIRS}/file")
    look = f"stat -c '%n %u:%g %a %s' {THEIRS} {THEIRS}/*"
    before = host.check_output(look)
    yield lambda: host.check_output(look) == before
    host.check_output(f"rm -rf {THEIRS} {CACHE}/theirs {CACHE}/more")


def test_what_a_container_writes_decides_nothing(host, theirs):
    """It claims to be the next version, with all of its weights, and lays links where root will work."""
    old = host.check_output(f"{ENGINE} inspect --format '{{{{index .RepoDigests 0}}}}' {running_image(host)}")
    claim = {"key": "1", "image": "any", "image_reference": old, "bytes": 10**20, "files": 1, "finished": 1}
    python(
        host,
        f"import os\nos.chdir('{CACHE}')\nos.symlink('{THEIRS}', 'theirs')\nos.symlink('{THEIRS}/file', 'more')\n"
        "for name in ('.baremetal-nim.sums', '.baremetal-nim.json'):\n    os.path.lexists(name) and os.unlink(name)\n"
        f"open('{MARKER}', 'w').write({json.dumps(claim)!r})\nopen('.baremetal-nim.sums', 'w').truncate(1 << 30)",
        uid=1000,
    )
    before = running_image(host)
    host.check_output("rm -f /var/lib/nim/staged/llama.*")
    run = Running("services", specs(tag="2.0.5", env={"LAB_TEXT": HOSTILE}), HOST)
    staged, code = "", None
    while code is None and not staged:
        time.sleep(0.2)
        code = run.process.poll()
        staged = host.run(f"{ENGINE} inspect nim-stage-llama").stdout.strip().removeprefix("[]")
    code, told = run.finish()
    assert code == 0, told
    wanted = host.check_output(f"{ENGINE} image inspect --format '{{{{.Id}}}}' nvcr.lab:5000/{lab.NIM}:2.0.5")
    assert running_image(host) == wanted != before
    assert theirs(), "a link was followed"
    # The same by both ways into a container: the unit of the service, and the one that staged its weights.
    for text in (host.check_output(f"{ENGINE} inspect nim-llama"), staged):
        assert f"LAB_TEXT={HOSTILE}" in json.loads(text)[0]["Config"]["Env"], text


@pytest.mark.parametrize(
    "code",
    [
        "open(marker, 'w').write('[' * 10**6)",
        "open(marker, 'w').write('{\"key\": 1' + '0' * 10**6 + '}')",
        "open(marker, 'w').truncate(1 << 30)",
        "os.symlink('/dev/zero', marker)",
        "os.mkfifo(marker)",
    ],
    ids=["deep", "long number", "sparse", "link to a device", "pipe"],
)
def test_no_marker_locks_a_host_out(host, code):
    python(host, f"import os; marker = '{MARKER}'; os.path.lexists(marker) and os.unlink(marker); {code}", uid=1000)
    run = play("status", limit=HOST)
    assert run.returncode == 0 and "Traceback" not in run.stdout, run.stdout


def test_weights_that_changed_are_told_and_brought_again(host):
    extra = {"nim_check_weights": True}
    assert (run := deploy(tag="2.0.5")).returncode == 0, run.stdout
    assert (run := play("status", limit=HOST, extra={**extra, **specs(tag="2.0.5")})).returncode == 0, run.stdout
    weights = host.check_output(f"find {CACHE} -type f -size +100k -not -name '.*' | sort | head -n 1")
    # One byte in the middle; the size stays.
    python(host, f"file = open('{weights}', 'r+b'); file.seek(70000); byte = file.read(1); file.seek(70000);"
                 "file.write(bytes([byte[0] ^ 1]))")  # fmt: skip
    run = play("status", limit=HOST, extra={**extra, **specs(tag="2.0.5")})
    assert run.returncode == 2 and "has another content (SHA-256 " in run.stdout, run.stdout
    assert weights.removeprefix(f"{CACHE}/").split("/")[0] in run.stdout, run.stdout
    host.check_output(f"rm -f '{weights}' /var/lib/nim/staged/llama.json")
    assert (run := deploy(tag="2.0.5")).returncode == 0, run.stdout
    run = play("verify", limit=HOST, extra={**extra, **specs(tag="2.0.5")})
    assert run.returncode == 0 and ask(HOST), run.stdout


def test_a_seed_is_whole_or_refused_and_gives_nobody_rights(host, theirs):
    """Half a copy; and a tarball with set-uid files, devices, and a link with something to be written through it."""
    seeded = {"tag": "2.0.5", "cache_path": "/var/lib/nim/cache/seeded", "offline": True}
    host.check_output(f"rm -rf /srv/half && cp -a {CACHE} /srv/half && chmod -R go+rX /srv/half")
    lost = host.check_output("find /srv/half -type f -size +100k -not -name '.*' | sort | head -n 1")
    host.check_output(f"truncate -s -1 '{lost}'")
    try:
        run = deploy(**seeded, cache_seed="/srv/half")
        assert run.returncode != 0 and lost.rpartition("/")[2] in run.stdout, run.stdout
        assert ask(HOST), "the old version serves on"
        python(
            host,
            "import io, tarfile\n"
            "with tarfile.open('/srv/seed.tar', 'w') as tar:\n"
            f"    tar.add('{CACHE}', '.')\n"
            "    def put(name, **more):\n"
            "        entry = tarfile.TarInfo(name)\n"
            "        for key, value in more.items(): setattr(entry, key, value)\n"
            "        tar.addfile(entry, io.BytesIO(b'x' * entry.size))\n"
            "    put('./root', mode=0o6755, size=1)\n"
            "    put('./disk', type=tarfile.BLKTYPE, mode=0o666, devmajor=8, devminor=0)\n"
            f"    put('./way', type=tarfile.SYMTYPE, linkname='{THEIRS}')\n"
            "    put('./way/planted', mode=0o666, size=1)\n",
        )
        host.check_output("chmod 0644 /srv/seed.tar; rm -rf /var/lib/nim/cache/seeded")
        run = deploy(**seeded, cache_seed="/srv/seed.tar")
        strange = host.run("find /var/lib/nim/cache/seeded -perm /6000 -o -type b -o -type c -o -not -user 1000").stdout
        assert strange == "" and theirs(), strange + run.stdout
        assert ask(HOST)
        # The same tarball without them.
        host.check_output(f"tar -C {CACHE} -cf /srv/seed.tar . && rm -rf /var/lib/nim/cache/seeded")
        run = deploy(**seeded, cache_seed="/srv/seed.tar")
        assert run.returncode == 0 and ask(HOST), run.stdout
    finally:
        run = deploy()
        host.run("rm -rf /srv/half /srv/seed.tar /var/lib/nim/cache/seeded")
    assert run.returncode == 0 and ask(HOST), run.stdout
