# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any text in any option either is refused by the name of the option, or arrives unchanged in the container."""

from __future__ import annotations

import os
import pathlib
import re

import jinja2
import pytest
import yaml
from ansible_collections.baremetal.nim.plugins.module_utils import _gate, _resolve, _staging, _toolkit_plan, _written
from ansible_collections.baremetal.nim.tests.unit import as_read
from hypothesis import example, given
from hypothesis import strategies as st

ROLE = pathlib.Path(__file__).parents[2] / "roles/nim_service"
IMAGE = "nvcr.io/nim/meta/llama-3.1-8b-instruct"
LLAMA = {"name": "llama", "image": IMAGE, "tag": "1.8.6"}
DEFAULTS = {
    "cache_root": "/var/lib/nim/cache",
    "config_dir": "/etc/nim",
    "state_dir": "/var/lib/nim/services",
    "bind_address": "127.0.0.1",
    "cache_size_gb": 0,
}
#: What means something to systemd, a shell, a container engine, YAML, Jinja or a terminal.
TOKENS = [
    "$",
    "$$",
    "${HOME}",
    "$X",
    "%",
    "%n",
    "%%",
    '"',
    "'",
    "\\",
    "\\n",
    "\n",
    "\r",
    "\t",
    " ",
    "\0",
    "\x1b[2J",
    "#",
    ";",
    "=",
    ":",
    "/",
]
TOKENS += [
    "\u2028",
    "\x85",
    "\ufeff",
    "\ufffe",
    "\ud800",
    "\u202e",
    "--privileged",
    "${",
    "}",
    "..",
    "a",
    "1",
    "GPU-1",
    "/srv",
    "é",
    "٣",
]
TEXT = st.one_of(
    st.lists(st.sampled_from(TOKENS), max_size=8).map("".join),
    st.text(max_size=30),
    st.text(st.characters(), min_size=1, max_size=3).map(lambda text: text * 30000),
)
#: What is in each of these options is one text; where it arrives in the container or in the argument of its engine.
ARRIVES = {
    "tag": lambda seen, text: seen["image"] == f"{IMAGE}:{text}",
    "image": lambda seen, text: seen["image"] == f"{text}:1.8.6",
    "digest": lambda seen, text: seen["image"] == f"{IMAGE}@{text}",
    "name": lambda seen, text: seen["env-file"] == f"/etc/nim/{text}.env" and seen["name"] == f"nim-{text}",
    "bind_address": lambda seen, text: seen["publish"] == [f"{f'[{text}]' if ':' in text else text}:8000:8000"],
    "cache_path": lambda seen, text: seen["volume"] == [f"{text}:/opt/nim/.cache"],
    "shm_size": lambda seen, text: seen["shm-size"] == text,
    "profile": lambda seen, text: seen["variables"]["NIM_MODEL_PROFILE"] == text,
    "otel_endpoint": lambda seen, text: text in seen["variables"]["OTEL_EXPORTER_OTLP_ENDPOINT"],
}
EMPTY_IS_UNSET = {"digest", "bind_address", "cache_path", "shm_size", "profile", "otel_endpoint", "cache_seed"}


def resolved(spec, **defaults):
    """The resolved service, or the reasons that it is refused for."""
    try:
        (service,) = _resolve.resolve_services([{**LLAMA, **spec}], {"gpus": []}, {**DEFAULTS, **defaults})
    except _resolve.ResolveError as error:
        text = str(error)
        assert text.isprintable() or all(line.isprintable() for line in text.split("\n")), text
        assert len(text) < 3000
        return text
    return service


def rendered(service, template):
    """A file as the role writes it."""
    environment = jinja2.Environment(
        trim_blocks=True, autoescape=jinja2.select_autoescape(), loader=jinja2.FileSystemLoader(ROLE / "templates")
    )
    values = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    return environment.get_template(template).render(
        {**values, "__nim_service_item": service, "__nim_service_image": service["image"]}
    )


def served(service):
    """What `docker run` of the unit is told."""
    argv = as_read.command_of(rendered(service, "nim.service.j2"))
    seen = {"name": argv[1], "image": argv[-1], "variables": as_read.env_file(rendered(service, "nim.env.j2"))}
    options = argv[3:-1]
    assert all(word.startswith("--") for word in options[::2]), options
    for word, value in zip(options[::2], options[1::2]):
        option = word[2:]
        if option in ("device", "publish", "volume", "ulimit", "cap-drop", "cap-add", "label"):
            seen.setdefault(option, []).append(value)
        else:
            assert option not in seen and option in ("shm-size", "env-file"), option
            seen[option] = value
    return seen


def quadlet(service):
    """What Podman's file has, besides what no option changes."""
    text = rendered(service, "nim.container.j2")
    return {
        key: [as_read.specified(value) for value in as_read.values_of(text, key)]
        for key in (
            "Image",
            "AddDevice",
            "Ulimit",
            "Volume",
            "PublishPort",
            "ShmSize",
            "EnvironmentFile",
            "AddCapability",
        )
    }


def staged(service, **given):
    """What the container engine is told that stages, by the manager that starts its unit."""
    options = {**service, "path": service["cache"], "secret_env": {}, "env": service["env"], **given}
    image = {"Id": "sha256:1", "Config": {"Entrypoint": ["/entry"]}}
    argv = _staging.stage_command("/usr/bin/docker", options, image, False)
    unit = _staging.transient_unit("nim-stage-x", "d", argv)
    done = as_read.transient(unit)
    assert done == argv
    return done


@pytest.mark.parametrize("option", sorted(ARRIVES))
@given(text=TEXT)
@example(text="::1%eth0\n--privileged")
@example(text="::1%eth0")
@example(text="a\nNGC_API_KEY=b")
@example(text="16g\n")
@example(text="１６g")
@example(text="1" * 5000)
def test_an_option_is_refused_by_name_or_arrives(option, text):
    service = resolved({option: text})
    if isinstance(service, str):
        assert option in service
        return
    if not text and option in EMPTY_IS_UNSET:
        return
    assert ARRIVES[option](served(service), text)
    assert len(quadlet(service)["Image"]) == 1
    staged(service)


@given(text=TEXT)
@example(text="${HOME} $$ $X %n")
@example(text="$X")
@example(text="x" * 65530)
@example(text="trailing \r")
def test_a_variable_is_refused_or_arrives(text):
    service = resolved({"env": {"NIM_X": text}})
    if isinstance(service, str):
        assert "NIM_X" in service
        return
    assert served(service)["variables"]["NIM_X"] == text
    argv = staged(service)
    assert f"NIM_X={text}" in argv
    secret = as_read.systemd_env_file(_staging.environment_file({"NIM_X": text}))
    assert secret == {"NIM_X": text}


@given(text=TEXT)
def test_a_value_that_is_refused_is_not_shown(text):
    service = resolved({"env": {"NIM_X": f"hunter2{text}"}})
    assert not isinstance(service, str) or "hunter2" not in service


@given(text=TEXT)
def test_the_name_of_a_variable_is_refused_or_arrives(text):
    service = resolved({"env": {text: "v"}})
    if isinstance(service, str):
        assert "env has" in service or "env variable" in service
        return
    assert served(service)["variables"][text] == "v"


@given(text=TEXT)
@example(text="0 --privileged")
@example(text="GPU-1\n")
@example(text="-1")
def test_a_gpu_is_refused_or_arrives_while_the_driver_is_silent(text):
    service = resolved({"gpus": [text]})
    if isinstance(service, str):
        assert "gpus" in service
        return
    # 007 is the number 7.
    wanted = str(int(text)) if text.isdigit() else text
    assert served(service)["device"] == [f"nvidia.com/gpu={wanted}"] == quadlet(service)["AddDevice"]


@pytest.mark.parametrize("option", ["ulimits", "capabilities"])
@given(text=TEXT)
@example(text="nofile=1\n")
@example(text="nofile=٣")
def test_an_item_is_refused_or_arrives(option, text):
    service = resolved({option: [text]})
    if isinstance(service, str):
        assert option in service
        return
    given_words = {"ulimits": "ulimit", "capabilities": "cap-add"}[option]
    assert served(service)[given_words] == [text]


@given(words=st.lists(TEXT, min_size=1, max_size=3))
@example(words=["sh", "-c", 'echo ${HOME} $$ $1 "$@"\n%n'])
def test_words_of_a_download_are_refused_or_arrive(words):
    service = resolved({"prefetch": words})
    if isinstance(service, str):
        assert "prefetch" in service
        return
    assert staged(service)[-len(words) :] == words


@given(text=TEXT)
@example(text="/data/$HOME/x")
def test_a_seed_is_refused_or_arrives(text):
    service = resolved({"cache_seed": text})
    if isinstance(service, str):
        assert "cache_seed" in service
        return
    # What Ansible makes of an option that is a path.
    assert os.path.expanduser(os.path.expandvars(service["cache_seed"])) == text
    argv = _staging.seed_command(text, "/cache", 1, 1, [])
    assert as_read.transient(_staging.transient_unit("u", "d", argv)) == argv


@given(text=TEXT)
@example(text="/srv/nim\n")
@example(text="/srv/n im")
@example(text="relative")
@example(text="/")
@example(text="/srv/../etc")
def test_the_root_of_caches_is_refused_or_arrives(text):
    service = resolved({}, cache_root=text)
    if isinstance(service, str):
        assert "nim_cache_root" in service
        return
    assert served(service)["volume"] == [f"{text}/llama:/opt/nim/.cache"] == quadlet(service)["Volume"]


@pytest.mark.parametrize("root", ["/srv", "/srv/nim/", "/mnt/a-b_c.d@1+2=3,4"])
def test_roots_that_were_good_stay_as_they_are(root):
    assert resolved({}, cache_root=root)["cache"] == f"{root}/llama"


def test_the_root_of_caches_counts_for_what_is_removed_too():
    assert "nim_cache_root" in resolved({"state": "absent", "remove_cache": True}, cache_root="/srv/$HOME")


@given(text=TEXT)
def test_an_address_of_all_services_is_refused_or_arrives(text):
    service = resolved({}, bind_address=text)
    if isinstance(service, str):
        assert "bind_address" in service
        return
    assert served(service)["publish"] == [f"{f'[{text}]' if ':' in text else text}:8000:8000"]


@pytest.mark.parametrize(
    "option", ["port", "grpc_port", "uid", "gid", "stop_timeout", "start_timeout", "log_rate", "cache_size_gb"]
)
@pytest.mark.parametrize(
    "number",
    ["9" * 5000, 10**5000, -(10**5000), float("inf"), float("nan"), "1\n--privileged", [1], "8000 --x", "²"],
    ids=["digits", "huge", "tiny", "inf", "nan", "lines", "list", "words", "square"],
)
def test_a_number_that_is_none_is_refused(option, number):
    told = resolved({option: number, "contract": "speech"})
    assert isinstance(told, str) and f"{option} is" in told


@pytest.mark.parametrize("option", sorted(_resolve.KEYS))
@pytest.mark.parametrize(
    "value",
    [10**5000, "9" * 5000, "\x1b[2J" * 9, {"a": 10**5000}, [10**5000], [[]], {"\x1b": 1}, "\ud800", "\n"],
    ids=[
        "huge",
        "digits",
        "escapes",
        "in a dictionary",
        "in a list",
        "lists",
        "escape as a key",
        "half a pair",
        "line",
    ],
)
def test_no_value_of_any_option_breaks_the_check(option, value):
    told = resolved({option: value})
    assert isinstance(told, str) or told["name"] == "llama"


@pytest.mark.parametrize("option", ["prompt", "language", "expect_regex", "voice"])
def test_what_is_asked_may_have_lines_but_no_control_characters(option):
    assert "verify" in resolved({"verify": {option: "a\x1b[2Jb"}})


def test_keys_that_nobody_has_are_told_in_a_line():
    told = resolved({"\x1b[31m" * 1000: 1})
    assert "unknown key" in told and len(told) < 1000


@pytest.mark.parametrize("key", ["a b", "a\n", "a\0b", "schlüssel", "\x1b", "k" * 70000])
def test_a_key_is_refused_and_not_shown(key):
    told = resolved({"key_at_runtime": True}, api_key=key)
    assert "ngc_api_key" in told and key not in told


@pytest.mark.parametrize("address", ["10.0.0.1", "gpu01", "gpu-01.example.com", "fe80::1%eth0", "::1", "gpu_01"])
def test_addresses_of_hosts(address):
    assert _gate.is_host(address)


@pytest.mark.parametrize(
    "address", ["", "-x", "a b", "a\n", "a/b", "$(x)", "user@host", "fe80::1%", "a" * 300, None, 7, "%n"]
)
def test_what_is_no_address_of_a_host(address):
    assert not _gate.is_host(address)


def test_what_systemd_is_told_of_a_dollar():
    assert _gate.systemd_words(["a", "$X", "${X}", "$$", "a$b"]) == ["a", "$$X", "$${X}", "$$$$", "a$$b"]
    assert not re.search(r"(?<!\$)\$(?!\$)", "".join(_gate.systemd_words(["$X"])))


@pytest.mark.parametrize(
    "name",
    ["nvidia_driver_mirror_url", "container_engine_repository_suite", "ngc_registry_url", "x_version", "x_kernel"],
)
@pytest.mark.parametrize("text", ["https://a b", "a\nb", "--privileged", "a\x1b[2J", "a\t", "\ud800"])
def test_a_variable_of_a_role_is_one_word_or_refused(name, text):
    (problem,) = _written.option_problems({"a": text}, {"a": name})
    assert problem.startswith(f"{name} is ") and problem.isprintable()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nvidia_driver_mirror_url", "https://mirror.example.com/nvidia/$releasever"),
        ("nvidia_driver_mirror_suite", "/"),
        ("nvidia_driver_mirror_key_fingerprint", "9DC8 5822 9FC7"),
        ("container_engine_version", "5:27.5.1-1~debian.12~bookworm"),
        ("ngc_registry_username", "$oauthtoken"),
        ("preflight_supported_systems", "Debian 12"),
        ("container_engine_repository_key_url", ""),
    ],
)
def test_a_variable_of_a_role_that_was_good_stays_good(name, text):
    assert _written.option_problems({"a": text}, {"a": name}) == []


@pytest.mark.parametrize("flag", ["a b", "a\nExecStart=/bin/sh", "", 7, None, "a,b", "%n", "x" * 200])
def test_a_flag_that_is_no_name_reaches_no_unit(flag):
    wanted = {"version": "1.20.0-1", "key_fingerprint": "A" * 40, "feature_flags": [flag], "engine": "docker"}
    told = " ".join(_toolkit_plan._input_problems(wanted, {}))
    assert "nvidia_container_toolkit_cdi_feature_flags" in told and told.isprintable()


def test_the_name_of_a_service_to_bring_back_is_one():
    task = yaml.safe_load((ROLE / "tasks/rollback.yml").read_text())[0]
    form = re.search(r"match\('(.*)'\)", task["ansible.builtin.assert"]["that"])[1].replace("\\\\", "\\")
    assert re.match(form, "llama-8b") and not any(re.match(form, name) for name in ("llama\n", "../x", "a b", "", "A"))
