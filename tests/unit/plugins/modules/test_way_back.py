# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every way from one deployment to another, cut off before each of its steps, or with each of them refused.

On real files. A step is whatever changes the file system or the unit. Where a call is cut off, no later step of it is done either, whatever
its handlers try: that is what a killed process leaves. What comes next finds one of two whole deployments, or makes it so, and the way
back after that works.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib.machinery
import importlib.util
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import types

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.baremetal.nim.plugins.module_utils import _command
from ansible_collections.baremetal.nim.plugins.modules import nim_deployment, nim_files

ROLE = pathlib.Path(__file__).parents[4] / "roles/nim_service"
#: What changes a file system.
STEPS = ("rename", "unlink", "link", "mkdir", "rmdir", "open", "fsync", "fchmod")
#: How a call ends: it worked, or the module failed. A cut one has no end.
WORKED, FAILED, CUT = 0, 1, None
NAMES = {"docker": "nim-llama.service", "podman": "nim-llama.container"}


class Cut(BaseException):
    """The process is no more."""


def settler():
    """The program that units run before they start, as a module."""
    loader = importlib.machinery.SourceFileLoader("nim_settle", str(ROLE / "files/nim-settle"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("nim_settle", loader))
    loader.exec_module(module)
    # Containers are not what is looked at here, and this machine's own are nobody's business.
    module.clear = lambda _name: None
    return module


class Steps:
    """Counts the steps of a call. At number STOP it is cut off, or that one step is refused with the error CODE; END is when it is cut off then."""

    def __init__(self, monkeypatch, stop=None, code=None, end=None):
        self.count, self.code = 0, code
        self.stop, self.end = (None, stop) if code is None else (stop, end)
        self.log = []
        for name in STEPS:
            monkeypatch.setattr(os, name, self.counted(name, getattr(os, name)))

    @staticmethod
    def over():
        """Ends the call."""
        raise Cut

    def counted(self, name, real):
        def step(*args, **options):
            # Opening to read is no step.
            if "/state/" not in str(args[0]) and (name != "open" or args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                self.next(name, args)
            # The power does not fail here.
            return None if name == "fsync" else real(*args, **options)

        return step

    def next(self, name, args=("",)):
        number, self.count = self.count, self.count + 1
        self.log.append((name, str(args[0])))
        if self.end is not None and number >= self.end:
            self.over()
        if number == self.stop and name != "systemctl":
            raise OSError(self.code, os.strerror(self.code), args[0] if isinstance(args[0], str) else None)


class Host:
    """A service as it lies on a host, and a systemd that knows whether it runs."""

    def __init__(self, root, output):
        self.root, self.output = root, output
        self.units = {"docker": root / "units" / NAMES["docker"], "podman": root / "quadlets" / NAMES["podman"]}
        self.env, self.record, self.key = (
            root / "etc/nim/llama.env",
            root / "services/llama.json",
            root / "etc/nim/llama.key",
        )
        self.copy = root / "previous/llama"
        self.journal = root / "etc/nim/.llama.switch"
        self.calls = root / "state/calls"
        self.engines = {}
        #: What systemctl fails to do.
        self.broken = ""

    def make(self):
        """Makes the directories that every host has."""
        for folder in ("etc/nim", "units/multi-user.target.wants", "quadlets", "services", "state"):
            (self.root / folder).mkdir(parents=True)

    # -- systemd -------------------------------------------------------------------------------------------------------

    def systemctl(self, steps=None):
        """In place of _command.Runner: `active` is a file, which has what was started."""
        active = self.root / "state/active"

        def run(_runner, _program, *argv, **_options):
            if steps:
                steps.next("systemctl", argv)
            self.calls.write_text((self.calls.read_text() if self.calls.exists() else "") + " ".join(argv) + "\n")
            if argv[0] == self.broken:
                return 1, "", "Job failed."
            if argv[0] == "is-active":
                return (0 if active.exists() else 3), "", ""
            if argv[0] == "stop":
                active.unlink(missing_ok=True)
            if argv[0] == "start":
                active.write_text(self.runs())
            return 0, "", ""

        return run

    # -- deployments ---------------------------------------------------------------------------------------------------

    def texts(self, version, engine=None):
        engine = engine or self.engines.get(version, "docker")
        return engine, f"ExecStart={version} --label config-hash=<{version}>\n", f"VERSION={version}\n"

    def told(self, version):
        engine, unit, env = self.texts(version)
        sums = {self.units[engine]: unit, self.env: env}
        files = {str(path): hashlib.sha256(text.encode()).hexdigest() for path, text in sums.items()}
        return json.dumps({"image": f"nim:{version}", "config_hash": version, "files": files, "verified": True})

    def deploy(self, version, verified=True):
        """Lets VERSION lie in place and run."""
        engine, unit, env = self.texts(version)
        for path in self.units.values():
            path.unlink(missing_ok=True)
        self.units[engine].write_text(unit)
        self.env.write_text(env)
        if verified:
            self.record.write_text(self.told(version))
        (self.root / "state/active").write_text(self.runs())

    def runs(self):
        """What a start would run: unit and environment."""
        return " ".join(map(str, self.lies()[:2]))

    def lies(self):
        """What lies in place: versions of unit, environment and record, and the engines that have a unit file."""
        engines = [engine for engine, path in self.units.items() if path.exists()]
        unit = self.units[engines[0]].read_text().split()[0][10:] if engines else None
        env = self.env.read_text()[8:].strip() if self.env.exists() else None
        record = json.loads(self.record.read_text())["config_hash"] if self.record.exists() else None
        return unit, env, record, engines

    def whole(self):
        """The version that lies in place, whole."""
        unit, env, record, engines = self.lies()
        assert unit == env == record, self.lies()
        assert engines == ([self.engines.get(unit, "docker")] if unit else []), self.lies()
        return unit

    def state(self):
        """All that lies on the host, to be compared."""
        files = [path for path in sorted(self.root.rglob("*")) if path != self.calls]
        return str([(str(path), path.is_file() and path.read_text(), path.stat().st_nlink) for path in files])

    def tidy(self):
        """Nothing lies about that nobody looks for; a copy belongs to one deployment."""
        left = list(self.root.rglob(".*")) + list(self.root.glob("previous/*.new"))
        assert left == []
        for copy in self.root.glob("previous/*"):
            version = json.loads((copy / "record").read_text())["config_hash"]
            assert (copy / "env").read_text() == self.texts(version)[2]
            assert (copy / "unit").read_text() == self.texts(version)[1]

    # -- calls ---------------------------------------------------------------------------------------------------------

    def options(self, **more):
        return {
            "name": "llama",
            "copy_dir": str(self.copy.parent),
            "unit_path": str(self.units["docker"]),
            "quadlet_path": str(self.units["podman"]),
            "env_path": str(self.env),
            "key_path": str(self.key),
            "record_path": str(self.record),
            "_ansible_tmpdir": str(self.root / "state"),
            **more,
        }

    def files(self, version):
        """What the role has nim_files write when it deploys VERSION."""
        engine, unit, env = self.texts(version)
        files = [(self.env, env, "0600"), (self.units[engine], unit, "0644"), (self.key, "key\n", "0600")]
        others = [str(path) for name, path in self.units.items() if name != engine]
        return {
            "files": [
                {"path": str(path), "content": base64.b64encode(text.encode()).decode(), "mode": mode}
                for path, text, mode in files
            ],
            "absent": others,
            "journal": str(self.journal),
        }

    def call(self, module, args, **steps):
        """Calls a module; returns how it ended, its result, and the steps it took."""
        self.output.readouterr()
        status = CUT
        with pytest.MonkeyPatch.context() as monkeypatch:
            taken = Steps(monkeypatch, **steps)
            monkeypatch.setattr(_command.Runner, "__call__", self.systemctl(taken))
            try:
                with patch_module_args(args):
                    module.main()
            except SystemExit as ended:
                status = ended.code or WORKED
            except Cut:
                # Nothing is told by who is no more.
                pass
        text = self.output.readouterr().out
        return status, json.loads(text) if status is not CUT else {}, taken.log

    def deployment(self, state, options=(), **steps):
        return self.call(nim_deployment, self.options(state=state, **dict(options)), **steps)

    def write(self, version, **steps):
        return self.call(nim_files, self.files(version), **steps)

    def ok(self, state, **more):
        """A call that must work."""
        status, result, _log = self.deployment(state, more)
        assert status == WORKED, result
        return result


# -- what is cut off ---------------------------------------------------------------------------------------------------


def history(host, *versions):
    """Deploys versions one after another, each kept before the next one."""
    for version in versions:
        if host.record.exists():
            host.ok("kept", successor=version)
        host.deploy(version)


class Case:
    """A way: what lies there before, the call, and the versions that may lie there after a cut."""

    def __init__(self, prepare, act, before, after, engines=None):
        self.prepare, self.act, self.before, self.after, self.engines = prepare, act, before, after, engines or {}
        #: Those that there were.
        self.versions = "1" if before == after == "1" else "12"


def failing(host):
    """Version 2, and a 3 that did not prove itself."""
    history(host, "1", "2")
    host.ok("kept", successor="3")
    assert host.write("3")[0] == WORKED


def act(state, **options):
    """The call of a way."""
    return lambda host, **steps: host.deployment(state, options, **steps)


CASES = {
    "keep the first": Case(lambda host: host.deploy("1"), act("kept", successor="2"), "1", "1"),
    "keep the next": Case(lambda host: history(host, "1", "2"), act("kept", successor="3"), "2", "2"),
    "failed upgrade": Case(failing, act("restored", failed_image="nim:3", failed_reason="x"), None, "2"),
    "rollback": Case(lambda host: history(host, "1", "2"), act("restored", swap=True), "2", "1"),
    "rollback before anything was replaced": Case(
        lambda host: (history(host, "1", "2"), host.ok("kept", successor="3")), act("restored", swap=True), "2", "1"
    ),
    "removal": Case(lambda host: (history(host, "1", "2"), host.key.write_text("k")), act("removed"), "2", None),
    "upgrade": Case(
        lambda host: (history(host, "1", "2"), host.ok("kept", successor="3")),
        lambda host, **steps: host.write("3", **steps),
        "2",
        "3",
    ),
}
#: The engine of each deployment where it is not Docker.
MOVES = {"from Podman": {"2": "podman"}, "to Podman": {"1": "podman", "3": "podman"}}
for name, way in (
    ("failed upgrade", "from Podman"),
    ("rollback", "to Podman"),
    ("rollback", "from Podman"),
    ("removal", "from Podman"),
    ("upgrade", "to Podman"),
):
    case = CASES[name]
    CASES[f"{name} {way}"] = Case(case.prepare, case.act, case.before, case.after, MOVES[way])


@pytest.fixture
def fresh(tmp_path, capsys):
    """Makes a host for a case, always at the same place."""

    root, prepared = tmp_path / "host", tmp_path / "prepared"

    def make(case):
        host = Host(root, capsys)
        host.engines = case.engines
        if not prepared.exists():
            host.make()
            case.prepare(host)
            host.calls.unlink(missing_ok=True)
            root.rename(prepared)
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared, root, symlinks=True)
        return host

    return make


def upgrade_that_fails(host):
    """What a play does next that wants version 9, which does not prove itself."""
    kept = host.ok("kept", successor="9")
    assert host.write("9")[0] == WORKED
    if kept["kept"]:
        host.ok("restored", failed_image="nim:9")
        assert kept["record"]["config_hash"] == host.whole()
    else:
        # Of a removal that has begun nothing comes back.
        assert host.lies() == ("9", "9", "2", ["docker"])
        host.ok("removed")


def boot(host):
    """The host boots: the unit that lies there is read, and its start looks first."""
    program = settler()
    program.JOURNAL = str(host.root / "etc/nim/.{}.switch")
    program.UNITS = [str(host.root / "units/nim-{}.service"), str(host.root / "quadlets/nim-{}.container")]
    # The name in that program alone: the module of that name is everybody's.
    program.subprocess = types.SimpleNamespace(
        run=lambda *_args, **_options: None, SubprocessError=subprocess.SubprocessError
    )
    for _start in range(2):
        unit = host.lies()[0]
        if unit is None:
            return
        if program.main("llama", f"<{unit}>") == 0:
            break
    unit, env, record, engines = host.lies()
    assert unit == env and len(engines) == 1, host.lies()
    # What did not prove itself has no record yet.
    assert record == unit or unit == "3", host.lies()


def cuts(fresh, case, **refusal):
    """Numbers of the steps before which a cut, or whose refusal, leaves something new."""
    seen = set()
    for stop in itertools.count():
        host = fresh(case)
        status, result, log = case.act(host, stop=stop, **refusal)
        state = (host.state(), status, str(result.get("msg")))
        if state not in seen:
            seen.add(state)
            yield stop, status, result
        if len(log) <= stop:
            assert status == WORKED and stop > 3, result
            return


FOLLOWING = ["again", "boot", "upgrade", "rollback", "removal"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_cut_before_every_step(fresh, name):
    case = CASES[name]
    for stop, status, _result in cuts(fresh, case):
        if status is not CUT:
            continue
        # Where the engine changes too, the state that a cut leaves is what matters, not who comes next.
        for following in FOLLOWING if not case.engines else FOLLOWING[:3]:
            if following == "rollback" and (case.versions == "1" or case.after is None):
                # There is nothing to go back to, or no promise of it.
                continue
            host = fresh(case)
            _status, _result, log = case.act(host, stop=stop)
            try:
                came_next(host, case, following)
            except AssertionError as error:
                raise AssertionError(f"{following} after a cut before {log[-1]}, {stop} ({status}): {error}") from error


def came_next(host, case, following):
    """What comes next makes it whole, and the way back after that works."""
    if following == "boot":
        boot(host)
    if following in ("again", "boot"):
        assert case.act(host)[0] == WORKED
        if case.after == "3":
            # A run that did not prove it.
            assert host.lies()[:2] == ("3", "3") and len(host.lies()[3]) == 1
            host.ok("restored", failed_image="nim:3")
        else:
            assert host.whole() == case.after
    elif following == "upgrade" and host.record.exists():
        upgrade_that_fails(host)
    elif following == "rollback":
        # The first may have to leave what did not prove itself, or to finish what was cut off.
        host.ok("restored", swap=True)
        host.whole()
    if following == "removal" or case.after is None:
        # Of a removal that had begun, the copy may have come back, and nothing else.
        host.ok("removed")
        assert host.lies() == (None, None, None, []) and not list(host.root.glob("previous/*"))
    elif "2" in case.versions:
        there_and_back(host)
    host.tidy()


def there_and_back(host):
    """Ways back on demand lead to the other deployment, and home."""
    begin = host.whole()
    assert begin in ("1", "2")
    for version in "12" if begin == "2" else "21":
        host.ok("restored", swap=True)
        assert host.whole() == version
        assert (host.root / "state/active").read_text() == host.runs()
        host.tidy()


def test_a_cut_leaves_what_a_killed_process_leaves(fresh):
    """The same by a process that ends in the middle of it, without any of its handlers."""
    case = CASES["rollback"]
    for stop in range(1, len(case.act(fresh(case))[2]), 7):
        host = fresh(case)
        case.act(host, stop=stop)
        cut = host.state()
        host = fresh(case)
        child = os.fork()
        if child == 0:
            # Whatever becomes of it, this child returns to no test.
            Steps.over = staticmethod(lambda: os._exit(9))
            case.act(host, stop=stop)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert host.state() == cut, stop


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_every_step_refused(fresh, name):
    """The service was not stopped, or it was started again; what lies there is whole, the message tells what was refused."""
    case = CASES[name]
    for stop, status, result in cuts(fresh, case, code=errno.ENOSPC):
        host = fresh(case)
        _status, _result, log = case.act(host, stop=stop, code=errno.ENOSPC)
        calls = host.calls.read_text() if host.calls.exists() else ""
        where = f"refused {log[min(stop, len(log) - 1)]}: {result.get('msg')}; {host.lies()}; {calls}"
        unit, env, record, engines = host.lies()
        assert unit == env and len(engines) == bool(unit), where
        assert record == unit or unit == "3" or (case.after is None and unit is None), where
        assert (host.root / "state/active").exists() == bool(unit), where
        if "stop " in calls and unit:
            assert (host.root / "state/active").read_text() == host.runs(), where
        if status == FAILED:
            assert "No space left on device" in result["msg"] and "Next: df -h" in result["msg"], where
            if "upgrade" not in name or "failed" in name:
                assert ("was not stopped" in result["msg"]) == ("stop " not in calls), where
            came_next(host, case, "again")


def test_a_refused_step_and_then_a_cut(fresh):
    """Whoever takes a refused exchange back may be cut off in that, too."""
    case = CASES["rollback"]
    log = case.act(fresh(case))[2]
    seen = set()
    for refused in [number for number, (step, _path) in enumerate(log) if step == "rename"][-6:]:
        for later in range(1, 25):
            host = fresh(case)
            status, _result, _log = case.act(host, stop=refused, code=errno.EIO, end=refused + later)
            if status is not WORKED and host.state() not in seen:
                seen.add(host.state())
                came_next(host, case, "again")


# -- what is in the way ------------------------------------------------------------------------------------------------


def step_of(log, name):
    """Number of the step that brings the file NAME into its place."""
    return next(number for number, (step, path) in enumerate(log) if step == "rename" and path.endswith(name))


def a_directory(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def a_file_for_a_directory(path):
    shutil.rmtree(path.parent)
    path.parent.write_text("")


@pytest.mark.parametrize("name", ["rollback", "rollback to Podman", "failed upgrade"])
@pytest.mark.parametrize("spoil", [a_directory, a_file_for_a_directory])
@pytest.mark.parametrize("what", ["env", "record", "unit"])
def test_what_is_in_the_way_is_noticed_while_the_service_runs(fresh, name, spoil, what):
    case = CASES[name]
    host = fresh(case)
    engine = host.engines.get(case.after, "docker")
    path = {"env": host.env, "record": host.record, "unit": host.units[engine]}[what]
    spoil(path)
    status, result, _log = case.act(host)
    assert status == FAILED and "Next: " in result["msg"], result
    assert str(path) in result["msg"] or str(path.parent) in result["msg"]
    assert "was not stopped" in result["msg"]
    assert not host.calls.exists() or "stop" not in host.calls.read_text()
    assert (host.root / "state/active").exists()
    # Nothing of the attempt is left.
    assert not list(host.root.rglob(".*")) and not list(host.root.glob("previous/*.new"))


def test_a_removal_whose_copies_cannot_go_stops_nothing(fresh):
    host = fresh(CASES["removal"])
    (host.root / "previous/.llama.new").mkdir()
    status, result, _log = CASES["removal"].act(host)
    assert status == FAILED and "previous/llama: Is a directory" in result["msg"] and "was not stopped" in result["msg"]
    assert host.whole() == "2" and (host.root / "state/active").exists()


def test_a_start_that_fails_after_a_refused_exchange_is_told_with_it(fresh):
    case = CASES["rollback"]
    stop = step_of(case.act(fresh(case))[2], ".llama.env.new")
    host = fresh(case)
    host.broken = "start"
    _status, result, _log = case.act(host, stop=stop, code=errno.EIO)
    assert "Input/output error" in result["msg"] and "systemctl start failed: Job failed." in result["msg"]
    assert host.whole() == "2"


def test_a_lost_directory_is_no_reason_to_keep_a_service(fresh):
    host = fresh(CASES["removal"])
    shutil.rmtree(host.env.parent)
    host.ok("removed")
    assert host.lies() == (None, None, None, []) and not list(host.root.glob("previous/*"))


def test_a_copy_of_two_deployments_is_not_brought_back(fresh):
    """As an older version of this collection may have left it."""
    host = fresh(CASES["rollback"])
    (host.copy / "env").write_text("VERSION=2\n")
    status, result, _log = CASES["rollback"].act(host)
    assert status == FAILED and "is of two deployments" in result["msg"] and "Nothing was changed" in result["msg"]
    assert not host.calls.exists() and host.whole() == "2"


def test_an_upgrade_that_failed_before_it_wrote_anything_leaves_the_way_back(fresh):
    host = fresh(CASES["rollback before anything was replaced"])
    host.ok("restored", failed_image="nim:3")
    assert host.whole() == "2"
    there_and_back(host)


def test_an_exchange_that_is_pending_is_left_alone_by_a_check(fresh):
    case = CASES["rollback"]
    stop = step_of(case.act(fresh(case))[2], ".llama.env.new")
    host = fresh(case)
    case.act(host, stop=stop)
    before = host.state()
    host.ok("restored", swap=True, _ansible_check_mode=True)
    host.ok("kept", successor="3", _ansible_check_mode=True)
    assert host.state() == before and host.journal.exists()


def test_a_journal_of_somebody_else_is_not_believed(fresh):
    host = fresh(CASES["rollback"])
    host.journal.write_text("{}")
    status, result, _log = CASES["rollback"].act(host)
    assert status == FAILED and "it is no journal of this collection" in result["msg"]
    assert "can be neither finished nor taken back" in result["msg"] and host.whole() == "2"


def test_a_file_system_without_second_names(fresh, monkeypatch):
    def none(path, *_args, **_options):
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(os, "link", none)
    case = CASES["rollback"]
    stop = step_of(case.act(fresh(case))[2], ".llama.env.new")
    host = fresh(case)
    assert case.act(host, stop=stop, code=errno.EIO)[0] == FAILED
    assert host.whole() == "2"
    came_next(host, case, "again")
