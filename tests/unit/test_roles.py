# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written in more than one place says the same in all of them."""

from __future__ import annotations

import importlib
import pathlib
import re

import pytest
import yaml
from ansible_collections.baremetal.nim.plugins.module_utils import _resolve
from ansible_collections.baremetal.nim.plugins.module_utils._contracts import CONTRACTS

ROOT = pathlib.Path(__file__).parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
#: Every YAML file and template that runs on behalf of an operator.
SOURCES = sorted(
    path
    for folder in ("roles", "playbooks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".yml", ".yaml", ".j2")
)
#: Names that Ansible itself defines; every other ansible_* is a fact, and facts are not injected.
MAGIC = {
    "ansible_become_password",
    "ansible_check_mode",
    "ansible_collection_name",
    "ansible_config_file",
    "ansible_connection",
    "ansible_diff_mode",
    "ansible_facts",
    "ansible_failed_result",
    "ansible_failed_task",
    "ansible_forks",
    "ansible_host",
    "ansible_index_var",
    "ansible_inventory_sources",
    "ansible_limit",
    "ansible_loop",
    "ansible_loop_var",
    "ansible_managed",
    "ansible_parent_role_names",
    "ansible_parent_role_paths",
    "ansible_pipelining",
    "ansible_play_batch",
    "ansible_play_hosts",
    "ansible_play_hosts_all",
    "ansible_play_name",
    "ansible_play_role_names",
    "ansible_playbook_python",
    "ansible_port",
    "ansible_python_interpreter",
    "ansible_role_name",
    "ansible_role_names",
    "ansible_run_tags",
    "ansible_search_path",
    "ansible_skip_tags",
    "ansible_user",
    "ansible_verbosity",
    "ansible_version",
}


def load(*parts):
    """A YAML file of the collection."""
    return yaml.safe_load(ROOT.joinpath(*parts).read_text())


def arguments(role):
    """Options by entry point."""
    return {
        name: entry["options"]
        for name, entry in load("roles", role, "meta", "argument_specs.yml")["argument_specs"].items()
    }


def walk(options, prefix=""):
    """Every option and suboption with its full name."""
    for name, option in options.items():
        yield f"{prefix}{name}", option
        yield from walk(option.get("options", {}), f"{prefix}{name}.")


def documentation(kind, name):
    """The documentation of a plugin, with the options of the fragments that it names."""
    plugins = "ansible_collections.baremetal.nim.plugins"
    words = yaml.safe_load(importlib.import_module(f"{plugins}.{kind}.{name}").DOCUMENTATION)
    for fragment in words.get("extends_documentation_fragment", []):
        _namespace, _collection, module, *part = fragment.split(".")
        texts = importlib.import_module(f"{plugins}.doc_fragments.{module}").ModuleDocFragment
        text = getattr(texts, part[0].upper() if part else "DOCUMENTATION")
        words["options"] = {**yaml.safe_load(text)["options"], **words["options"]}
    return words


# -- roles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("path", ["defaults/main.yml", "meta/argument_specs.yml", "meta/main.yml", "tasks/main.yml"])
def test_every_role_has_the_same_files(role, path):
    assert load("roles", role, path)
    # Galaxy refuses a role without one.
    assert (ROOT / "roles" / role / "README.md").is_file()


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_name_the_same_variables(role):
    assert arguments(role)["main"].keys() == load("roles", role, "defaults/main.yml").keys()


@pytest.mark.parametrize(
    ("role", "name"),
    [(role, name) for role in ROLES for name in load("roles", role, "defaults/main.yml")],
    ids=lambda value: value,
)
def test_defaults_and_argument_specs_agree(role, name):
    """A list that is taken from another variable has no default in the specification, which then tells of it."""
    default, option = load("roles", role, "defaults/main.yml")[name], arguments(role)["main"][name]
    if "default" in option:
        assert option["default"] == default
    else:
        assert default == "{{ nim_services | default([]) }}"
        assert "By default C(nim_services), or none." in option["description"]
    assert not option.get("required")


@pytest.mark.parametrize("role", ROLES)
def test_other_entry_points_take_the_options_of_main(role):
    main, *others = arguments(role).values()
    for options in others:
        assert options.items() <= main.items()


@pytest.mark.parametrize("role", ROLES)
def test_every_entry_point_has_its_tasks_and_its_words(role):
    for name, entry in load("roles", role, "meta/argument_specs.yml")["argument_specs"].items():
        assert (ROOT / "roles" / role / "tasks" / f"{name}.yml").is_file()
        assert entry["short_description"]
        assert entry["description"]


@pytest.mark.parametrize("role", ROLES)
def test_every_option_is_described(role):
    for options in arguments(role).values():
        for name, option in walk(options):
            assert option.get("description"), name
            assert option.get("type"), name
            assert option["type"] != "list" or option.get("elements"), name


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_name_of_their_role(role):
    """What is public begins with the role's name, what is internal with two underscores before it."""
    assert not [name for name in load("roles", role, "defaults/main.yml") if not name.startswith(f"{role}_")]
    for path in (ROOT / "roles" / role / "vars").glob("*.yml"):
        assert not [name for name in load(path) if not name.startswith(f"__{role}_")]


@pytest.mark.parametrize("role", ROLES)
def test_every_public_variable_is_used(role):
    texts = "".join(
        path.read_text()
        for path in SOURCES
        if path.is_relative_to(ROOT / "roles" / role) and path.parts[-2] not in ("defaults", "meta")
    )
    assert not [name for name in load("roles", role, "defaults/main.yml") if not re.search(rf"\b{name}\b", texts)]


def tasks(entries):
    """Every task of a file, those in blocks too."""
    for task in entries:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part, []))


def test_templates_of_variables_double_no_backslash():
    """Ansible leaves a backslash in a template of a variable as it is: doubled, the pattern is another one, and matches nothing."""
    for path in SOURCES:
        if path.name == "main.yml" and path.parent.name in ("vars", "defaults"):
            assert "\\\\" not in path.read_text(), path


@pytest.mark.parametrize("role", ROLES)
def test_no_task_takes_the_name_of_a_variable_of_its_role(role):
    """What is registered, or set as a fact, wins over the variable from then on, and whoever reads it gets the other thing."""
    own = {
        name
        for part in ("vars", "defaults")
        if (ROOT / "roles" / role / part / "main.yml").exists()
        for name in load("roles", role, part, "main.yml") or ()
    }
    for path in (ROOT / "roles" / role / "tasks").glob("*.yml"):
        for task in tasks(load(path)):
            taken = {task.get("register"), *(task.get("ansible.builtin.set_fact") or ())}
            assert not taken & own, f"{path.name}: {task.get('name')}"


@pytest.mark.parametrize("role", [role for role in ROLES if f"{role}_api_key" in arguments(role)["main"]])
def test_tasks_with_the_key_hide_it_unless_told_otherwise(role):
    """A module that takes the key as a secret hides it by itself, and its task may tell what went wrong."""
    assert arguments(role)["main"][f"{role}_api_key"]["no_log"] is True
    holders = {f"{role}_api_key"} | {
        name
        for name, value in load("roles", role, "vars/main.yml").items()
        if re.search(rf"\b{role}_api_key }}}}", str(value))
    }
    hidden, shown = [], []
    for path in (ROOT / "roles" / role / "tasks").glob("*.yml"):
        for task in tasks(load(path)):
            if "__model_cache_password" in str(task.get("ansible.builtin.set_fact")):
                # A secret of one copy, of no use to who looks for a fault.
                assert task["no_log"] is True
            elif "no_log" in task:
                hidden.append(task["no_log"])
            elif "block" not in task and any(re.search(rf"\b{name}\b", str(task)) for name in holders):
                shown.append(task)
    assert set(hidden) <= {f"{{{{ {role}_secure_logging }}}}"}
    given = {
        module: task[module]["api_key"] for task in shown for module in task if module.startswith("baremetal.nim.")
    }
    assert given == {
        "model_cache": {
            "baremetal.nim.nim_cache": "{{ omit if __model_cache_service.offline else model_cache_api_key }}"
        },
        "preflight": {"baremetal.nim.nim_image_info": "{{ preflight_api_key }}"},
    }.get(role, {})
    for module in given:
        assert documentation("modules", module.rpartition(".")[2])["options"]["api_key"], module
    assert hidden or shown


FACT = re.compile(r"(?<!\w)ansible_\w+")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_injected_facts(path):
    assert set(FACT.findall(path.read_text())) - MAGIC == set()


def test_injected_facts_would_be_found():
    text = "{{ ansible_distribution }} {{ ansible_facts['kernel'] }} {{ hostvars[x].ansible_eth0 }} min_ansible_version ansible_host"
    assert set(FACT.findall(text)) - MAGIC == {"ansible_distribution", "ansible_eth0"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_roles_and_playbooks_use_roles_that_exist(path):
    assert set(re.findall(r"(?:role|name): baremetal\.nim\.(\w+)", path.read_text())) <= set(ROLES)


# -- services ----------------------------------------------------------------------------------------------------------

SERVICE = arguments("nim_service")["main"]["nim_service_services"]["options"]


def test_keys_of_a_service_are_documented():
    assert set(SERVICE) == _resolve.KEYS


def test_keys_of_verify_are_documented():
    named = SERVICE["verify"]["description"].split(" - ")[1].rstrip(".").split(", ")
    assert set(named) == _resolve.VERIFY_KEYS


def test_keys_of_verify_are_options_of_chat_completion():
    assert documentation("modules", "chat_completion")["options"].keys() >= _resolve.VERIFY_KEYS


def test_options_of_the_watchdog_are_documented():
    named = dict(re.findall(r"(\w+) \([^()]*?V\((\w+)\)\)", SERVICE["watchdog"]["description"]))
    numbers = {key: str(default) for key, (default, *_) in _resolve.WATCHDOG_NUMBERS.items()}
    assert {key: named[key] for key in ("enabled", *numbers)} == {"enabled": "true", **numbers}
    for word in (*_resolve.WATCHDOG_KEYS, *_resolve.WATCHDOG_PROBES):
        assert re.search(rf"\b{word}\b", SERVICE["watchdog"]["description"]), word


def test_files_of_the_watchdog_are_installed():
    shared = load("roles/nim_service/vars/main.yml")["__nim_service_shared"]
    assert {path for path in shared if "nim-watchdog" in path} == set(_resolve.WATCHDOG_FILES)
    for path in shared:
        assert (ROOT / "roles/nim_service/files" / pathlib.Path(path).name).is_file()


def test_no_run_of_the_watchdog_is_cut_short():
    """The longest probe, and the requests around it, fit into the time that the unit may take."""
    unit = (ROOT / "roles/nim_service/files/nim-watchdog@.service").read_text()
    longest = _resolve.WATCHDOG_NUMBERS["timeout"][2]
    assert int(re.search(r"TimeoutStartSec=(\d+)min", unit)[1]) * 60 >= longest + 6 * 10


def test_contracts_are_documented():
    assert SERVICE["contract"]["choices"] == ["auto", *CONTRACTS]


def test_defaults_of_a_service_are_documented():
    host, defaults = (
        {"gpus": []},
        {"cache_root": "/c", "config_dir": "", "state_dir": "", "bind_address": "::1", "cache_size_gb": 0},
    )
    minimal = {"name": "llama", "image": "nvcr.io/nim/meta/llama", "tag": "1.8.6"}
    documented = {name: option["default"] for name, option in SERVICE.items() if "default" in option}
    assert _resolve.resolve_services([minimal], host, defaults) == _resolve.resolve_services(
        [{**documented, **minimal}], host, defaults
    )
    told = {
        name: re.search(r"By default the contract's, V\((\w+)\)", option["description"])
        for name, option in SERVICE.items()
    }
    for contract, facts in CONTRACTS.items():
        own = {
            name: re.search(rf"V\((\w+)\) of V\({contract}\)", SERVICE[name]["description"]) or match
            for name, match in told.items()
            if match
        }
        assert {name: match.group(1) for name, match in own.items()} == {
            name: str(facts[name]) for name in ("shm_size", "start_timeout", "stop_timeout", "uid", "gid")
        }


def test_staging_gets_everything_it_takes():
    """What resolve_services computes for nim_cache, the role passes on."""
    task = load("roles/model_cache/tasks/stage.yml")[0]["baremetal.nim.nim_cache"]
    controllers_own, of_removals = {"progress", "max_wait", "resume"}, {"state", "remove"}
    assert set(task) == set(documentation("modules", "nim_cache")["options"]) - controllers_own - of_removals


def test_files_of_a_service_go_to_the_host_together():
    """One by one they would take a remote call or two each, and a cut between two would leave a new unit with an old environment."""
    one_by_one = {"ansible.builtin.copy", "ansible.builtin.template", "ansible.builtin.file"}
    for path in (ROOT / "roles/nim_service/tasks").glob("*.yml"):
        for task in tasks(load(path)):
            assert not one_by_one & set(task), f"{path.name}: {task.get('name')}"
            assert "baremetal.nim.nim_files" not in task or "loop" not in task, task["name"]


# -- plugins -----------------------------------------------------------------------------------------------------------


def test_every_module_is_in_the_action_group():
    assert load("meta/runtime.yml")["action_groups"]["nim"] == [f"baremetal.nim.{name}" for name in MODULES]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_documented(name):
    words = documentation("modules", name)
    assert words["module"] == name
    assert re.fullmatch(r"\d+\.\d+\.\d+", str(words["version_added"]))
    # The first fragment that says something wins, so the general one comes last.
    assert words["extends_documentation_fragment"][-1] == "baremetal.nim._attributes"
    for option, text in walk(
        {key: {**value, "options": value.get("suboptions", {})} for key, value in words["options"].items()}
    ):
        assert text.get("description"), option


def spec_of(documented):
    """The argument_spec that documented options describe."""
    keys = ("type", "elements", "default", "choices", "required")
    spec = {name: {key: option[key] for key in keys if key in option} for name, option in documented.items()}
    for name, option in documented.items():
        if "suboptions" in option:
            spec[name]["options"] = spec_of(option["suboptions"])
    return spec


@pytest.mark.parametrize("name", MODULES)
def test_arguments_of_every_module_are_the_documented_ones(name, monkeypatch):
    module = importlib.import_module(f"ansible_collections.baremetal.nim.plugins.modules.{name}")
    seen = {}

    def stop(argument_spec, **_options):
        seen.update(argument_spec)
        raise SystemExit

    monkeypatch.setattr(module, "AnsibleModule", stop)
    with pytest.raises(SystemExit):
        module.main()

    def plain(spec):
        return {
            option: {
                key: plain(value) if key == "options" else value
                for key, value in facts.items()
                # What documentation has no place for.
                if key not in ("no_log", "mutually_exclusive", "required_one_of")
            }
            for option, facts in spec.items()
        }

    assert plain(seen) == spec_of(documentation("modules", name)["options"])


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_of_the_module(name):
    module = importlib.import_module(f"ansible_collections.baremetal.nim.plugins.modules.{name}")
    tasks = yaml.safe_load(module.EXAMPLES)
    used = [task[f"baremetal.nim.{name}"] for task in tasks if f"baremetal.nim.{name}" in task]
    assert used
    options = documentation("modules", name)["options"]
    for given in used:
        assert set(given or {}) <= set(options)
        assert {key for key, option in options.items() if option.get("required")} <= set(given or {})
    assert yaml.safe_load(module.RETURN)
