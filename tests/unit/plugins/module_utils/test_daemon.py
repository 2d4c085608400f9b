# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options merged into daemon.json."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.baremetal.nim.plugins.module_utils import _daemon
from hypothesis import given
from hypothesis import strategies as st

OURS = {"live-restore": True, "features": {"cdi": True}}


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("", {}),
        ("\n  \n", {}),
        ("{}", {}),
        (
            '{"log-driver": "journald", "features": {"buildkit": true}}\n',
            {"log-driver": "journald", "features": {"buildkit": True}},
        ),
    ],
    ids=["empty", "white-space", "empty-object", "object"],
)
def test_parse(text, config):
    assert _daemon.parse(text) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"live-restore": true,}', "double quotes|trailing comma"),
        ("live-restore: true\n", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "holds a list, wanted an object"),
        ("null", "holds a NoneType, wanted an object"),
        ('"x"', "holds a str, wanted an object"),
    ],
    ids=["trailing-comma", "yaml", "cut-off", "list", "null", "string"],
)
def test_parse_refuses(text, said):
    with pytest.raises(ValueError, match=said):
        _daemon.parse(text)


@pytest.mark.parametrize(
    ("current", "wanted", "merged"),
    [
        pytest.param({}, OURS, OURS, id="new"),
        pytest.param(OURS, OURS, OURS, id="same"),
        pytest.param(OURS, {}, OURS, id="nothing-wanted"),
        pytest.param({"dns": ["10.0.0.2"]}, OURS, {"dns": ["10.0.0.2"], **OURS}, id="other-keys-stay"),
        pytest.param(
            {"features": {"buildkit": True, "cdi": False}},
            OURS,
            {"features": {"buildkit": True, "cdi": True}, "live-restore": True},
            id="dictionaries-merge",
        ),
        pytest.param(
            {"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}}},
            {"runtimes": {"nvidia": {"args": ["--debug"]}}},
            {"runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": ["--debug"]}}},
            id="deep",
        ),
        pytest.param({"dns": ["10.0.0.2"]}, {"dns": ["10.0.0.3"]}, {"dns": ["10.0.0.3"]}, id="lists-are-replaced"),
        pytest.param({"features": "none"}, OURS, OURS, id="a-word-gives-way-to-a-dictionary"),
        pytest.param(
            {"features": {"cdi": True}}, {"features": False}, {"features": False}, id="a-dictionary-gives-way-to-a-word"
        ),
    ],
)
def test_merge(current, wanted, merged):
    before = copy.deepcopy((current, wanted))
    assert _daemon.merge(current, wanted) == merged
    assert (current, wanted) == before


def test_render_keeps_the_order_of_keys():
    text = _daemon.render(
        _daemon.merge({"storage-driver": "overlay2", "dns": []}, {"dns": ["10.0.0.2"], "bip": "172.17.0.1/16"})
    )
    assert text == '{\n  "storage-driver": "overlay2",\n  "dns": [\n    "10.0.0.2"\n  ],\n  "bip": "172.17.0.1/16"\n}\n'


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dockerd", {}),
        (
            "dockerd -H fd:// --containerd=/run/containerd/containerd.sock",
            {"hosts": ["fd://"], "containerd": "/run/containerd/containerd.sock"},
        ),
        (
            "dockerd -Hfd:// -D -s overlay2 -g /data",
            {"hosts": ["fd://"], "debug": True, "storage-driver": "overlay2", "data-root": "/data"},
        ),
        ("dockerd --live-restore --log-level warn", {"live-restore": True, "log-level": "warn"}),
        ("dockerd --live-restore=false --iptables=true", {"live-restore": False, "iptables": True}),
        (
            "dockerd --feature cdi --feature=containerd-snapshotter=false",
            {"features": {"cdi": True, "containerd-snapshotter": False}},
        ),
        ("dockerd --log-opt max-size=10m --log-opt tag=x=y", {"log-opts": {"max-size": "10m", "tag": "x=y"}}),
        (
            "dockerd --dns 10.0.0.2 --dns=10.0.0.3 --insecure-registry r:5000",
            {"dns": ["10.0.0.2", "10.0.0.3"], "insecure-registries": ["r:5000"]},
        ),
        ("dockerd --config-file /srv/daemon.json stray", {"config-file": "/srv/daemon.json"}),
    ],
)
def test_flags(line, expected):
    assert _daemon.flags(line.split()) == expected


@pytest.mark.parametrize(
    ("options", "given", "left", "clashes"),
    [
        (OURS, {}, OURS, []),
        (OURS, {"live-restore": True}, {"features": {"cdi": True}}, []),
        (OURS, {"live-restore": False}, {"features": {"cdi": True}}, ["live-restore"]),
        (OURS, {"features": {"cdi": True, "buildkit": False}}, {"live-restore": True}, []),
        (OURS, {"features": {"buildkit": True}}, {"live-restore": True}, ["features"]),
        ({"log-driver": "journald", "mtu": 1400}, {"log-driver": "local", "mtu": "1400"}, {}, ["log-driver"]),
        ({"dns": ["a", "b"]}, {"dns": ["b", "a"]}, {}, []),
        ({"max-concurrent-downloads": 3}, {"max-concurrent-downloads": ["3"]}, {}, []),
    ],
)
def test_options_beside_flags(options, given, left, clashes):
    assert _daemon.beside_flags(options, given) == (left, clashes)


SHOWN = {
    "ExecStart": "{ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd -H fd:// --data-root=${ROOT}/x $DOCKER_OPTS $NONE ; ignore_errors=no ; pid=0 }",
    "Environment": 'ROOT=/srv "OTHER=a b"',
    "EnvironmentFiles": "/etc/default/docker (ignore_errors=yes)\n/etc/sysconfig/docker (ignore_errors=yes)",
}
FILES = {
    "/etc/default/docker": "# DOCKER_OPTS=--debug\nDOCKER_OPTS=\"--live-restore --log-opt 'tag=a b'\"\n",
    "/etc/sysconfig/docker": "ROOT=/data\nNONE=\n",
}


def test_command_line_of_the_unit():
    words = _daemon.unit_command(SHOWN, lambda path: FILES.get(path, ""))
    assert words == [
        "/usr/sbin/dockerd",
        "-H",
        "fd://",
        "--data-root=/data/x",
        "--live-restore",
        "--log-opt",
        "tag=a b",
    ]
    assert (
        _daemon.is_dockerd(words)
        and not _daemon.is_dockerd(["/usr/local/bin/wrap", "dockerd"])
        and not _daemon.is_dockerd([])
    )
    assert _daemon.unit_command({}, lambda _path: "") == []
    unquoted = {"/etc/default/docker": "DOCKER_OPTS=--live-restore=false --debug\n"}
    assert _daemon.unit_command(SHOWN, lambda path: unquoted.get(path, ""))[-2:] == ["--live-restore=false", "--debug"]


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("live-restore", "/etc/default/docker"),
        ("hosts", "/lib/docker.service"),
        ("debug", "/etc/override.conf"),
        ("features", "/etc/override.conf"),
        ("log-level", None),
    ],
)
def test_file_that_has_a_flag(name, home):
    files = {
        "/etc/default/docker": "#DOCKER_OPTS=--log-level warn\nDOCKER_OPTS=--live-restore\n",
        "/etc/override.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/dockerd -D --feature cdi\n",
        "/lib/docker.service": "ExecStart=/usr/bin/dockerd -H fd:// --debug-x\n",
    }
    assert _daemon.flag_home(name, files) == home


# -- desired and running -----------------------------------------------------------------------------------------------

NEITHER = {"live_restore": False, "cdi_spec_dirs": []}
BOTH = {"live_restore": True, "cdi_spec_dirs": ["/etc/cdi"]}


@pytest.mark.parametrize(
    ("options", "running", "left"),
    [
        (OURS, NEITHER, OURS),
        (OURS, BOTH, {}),
        (OURS, {**BOTH, "live_restore": False}, {"live-restore": True}),
        (OURS, {}, OURS),
        ({"features": {"cdi": True, "buildkit": True}}, BOTH, {"features": {"buildkit": True}}),
        ({"features": {"cdi": False}}, BOTH, {"features": {"cdi": False}}),
        ({"live-restore": False}, NEITHER, {}),
        ({**OURS, "log-driver": "journald"}, BOTH, {"log-driver": "journald"}),
    ],
)
def test_what_only_a_restart_makes_sure_of(options, running, left):
    assert _daemon.outstanding(options, running) == left


@pytest.mark.parametrize(
    ("current", "given", "running", "expected"),
    [
        pytest.param({}, {}, {}, OURS, id="nothing runs"),
        pytest.param({}, {}, NEITHER, OURS, id="it has neither"),
        pytest.param(
            {"dns": ["a"]},
            {"live-restore": True},
            NEITHER,
            {"dns": ["a"], "features": {"cdi": True}},
            id="a flag gives one",
        ),
        pytest.param(
            {**OURS, "bip": "x"},
            {"live-restore": True},
            BOTH,
            {"features": {"cdi": True}, "bip": "x"},
            id="an earlier run wrote it beside a flag",
        ),
        pytest.param(
            {},
            {},
            {**NEITHER, "cdi_spec_dirs": ["/etc/cdi"]},
            {"live-restore": True},
            id="newer ones take CDI by themselves",
        ),
        pytest.param(
            {"features": {"buildkit": True}},
            {},
            BOTH,
            {"features": {"buildkit": True}, "live-restore": True},
            id="and beside other features",
        ),
        pytest.param(OURS, {}, BOTH, OURS, id="what is written stays"),
        pytest.param(
            {"features": {"cdi": False}},
            {},
            NEITHER,
            {"features": {"cdi": True}, "live-restore": True},
            id="switched off in the file",
        ),
        pytest.param({}, {}, {**BOTH, "cdi_spec_dirs": []}, OURS, id="live-restore is not had by itself"),
    ],
)
def test_what_the_file_is_to_hold(current, given, running, expected):
    assert _daemon.wanted_file(current, OURS, given, running) == expected


def test_changed_keys():
    assert _daemon.changed_keys({"a": 1, "b": {"c": 1}}, {"b": {"c": 2}, "d": 1, "a": 1}) == ["b", "d"]


# -- whatever a site has written (pain 11) -------------------------------------------------------------------------------

#: Few keys, so that the two sides meet.
TEXTS = st.text('aZ-. "\\\n\u00e9\U0001f680', max_size=4)
KEYS = st.sampled_from(["features", "cdi", "runtimes", "dns", "live-restore", "log-opts", ""]) | TEXTS
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
CONFIGS = st.dictionaries(KEYS, VALUES, max_size=5)


def leaves(config, path=()):
    """Every value of a configuration that is no dictionary, or an empty one, by its path."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def same(one, other):
    """Equal as JSON: 1, 1.0 and true are not the same there."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def look(config, path):
    """The value at a path; KeyError when there is none."""
    for key in path:
        if not isinstance(config, dict):
            raise KeyError(key)
        config = config[key]
    return config


@given(CONFIGS, CONFIGS)
def test_merge_has_everything_that_is_wanted(current, wanted):
    merged = _daemon.merge(current, wanted)
    for path, value in leaves(wanted):
        found = look(merged, path)
        assert same(found, value) or (value == {} and isinstance(found, dict))


@given(CONFIGS, CONFIGS)
def test_merge_keeps_everything_else(current, wanted):
    """A value goes only where WANTED names it, something above it or something below it."""
    merged = _daemon.merge(current, wanted)
    named = [path for path, _value in leaves(wanted)]
    for path, value in leaves(current):
        if not any(path[: len(other)] == other or other[: len(path)] == path for other in named):
            assert same(look(merged, path), value)


@given(CONFIGS, CONFIGS)
def test_merge_adds_nothing_of_its_own(current, wanted):
    known = dict([*leaves(current), *leaves(wanted)])
    assert all(path in known for path, _value in leaves(_daemon.merge(current, wanted)))


@given(CONFIGS, CONFIGS)
def test_merge_twice_is_merge_once(current, wanted):
    merged = _daemon.merge(current, wanted)
    assert same(_daemon.merge(merged, wanted), merged)


@given(CONFIGS, CONFIGS)
def test_merge_changes_neither_side(current, wanted):
    before = copy.deepcopy((current, wanted))
    _daemon.merge(current, wanted)
    assert same((current, wanted), before)


@given(CONFIGS)
def test_merge_of_nothing(config):
    assert same(_daemon.merge(config, {}), config)
    assert same(_daemon.merge({}, config), config)
    assert same(_daemon.merge(config, config), config)


@given(CONFIGS, CONFIGS)
def test_merge_keeps_the_order_of_keys(current, wanted):
    merged = list(_daemon.merge(current, wanted))
    assert merged[: len(current)] == list(current)


@given(CONFIGS)
def test_what_is_rendered_is_read_again(config):
    assert same(_daemon.parse(_daemon.render(config)), config)
