# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what the documentation says about variables and plugins from the code that defines them.

generate_docs.py            role pages, docs/plugins.md, the tables in README.md and docs/operations.md
generate_docs.py --check    say what is stale, change nothing
"""

from __future__ import annotations

import ast
import json
import pathlib
import re
import sys
from typing import Any

import jinja2
import versions
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
#: In the order of site.yml.
ROLES = (
    "preflight",
    "nim_lock",
    "nvidia_driver",
    "container_engine",
    "nvidia_container_toolkit",
    "ngc_registry",
    "model_cache",
    "nim_service",
)
NEVER = {
    "preflight": "changes anything",
    "nim_lock": "takes a host from a run that is there, or waits without end",
    "nvidia_driver": "touches a container that it does not start again, reboots without permission, or takes a GPU from a foreign process",
    "container_engine": "knows about GPUs",
    "nvidia_container_toolkit": "writes the engine's configuration, installs a driver or touches a running container",
    "ngc_registry": "puts a key into an argument list, a unit or a log",
    "model_cache": "starts or stops a service",
    "nim_service": "uses the NGC key unless a service says `key_at_runtime`, or knows of other hosts",
}
EXPORTS = {
    "preflight": {"preflight_host": "what M(baremetal.nim.gpu_host_info) returned for the host"},
    "nvidia_driver": {
        "nvidia_driver_reboot_needed": "why a reboot is needed, where one is, none is allowed and `nvidia_driver_reboot_needed_action` is `export`"
    },
    "model_cache": {
        "model_cache_pruned": "what M(baremetal.nim.nim_prune) returned (entry point `prune`)",
    },
    "nim_service": {
        "nim_service_endpoints": "the resolved services that were verified (entry point `verify`)",
        "nim_service_verification": "result of M(baremetal.nim.nim_verify) for the endpoints",
    },
}
ROLE_PAGE = """\
# baremetal.nim.{{ name }}

<!-- Made by `make docs` from meta/argument_specs.yml: change it there. -->

{{ main.short_description }}.

{% for line in main.description %}
{{ line }}

{% endfor %}
It never {{ never }}.

## Example

```yaml
- hosts: nim_servers
  gather_facts: false
  become: true
  roles:
    - role: baremetal.nim.{{ name }}
```

## Variables

{{ table }}
{% if nested %}

Keys of each service:

{{ nested }}
{% endif %}
{% if exports %}

## Variables exported by the role

{% for key, text in exports.items() %}
- `{{ key }}`: {{ text }}
{% endfor %}
{% endif %}
{% if others %}

## Other entry points

{% for key, entry in others.items() %}
- `tasks_from: {{ key }}`: {{ entry.short_description }}. {{ entry.description | join(' ') }}
{% endfor %}
{% endif %}
"""


def plain(text: str) -> str:
    """Ansible's semantic markup as Markdown."""
    text = re.sub(r"\b[OCVE]\(([^()]*(?:\([^()]*\))?[^()]*)\)", r"`\1`", text)
    return re.sub(r"\b[MP]\(([^)#]+)(?:#\w+)?\)", r"`\1`", text)


def cell(value: Any) -> str:
    """A default as a table cell."""
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def table(options: dict[str, Any]) -> str:
    """Options of an entry point as a Markdown table."""
    lines = ["| variable | type | default | what it is |", "| --- | --- | --- | --- |"]
    for name, option in options.items():
        kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        default = cell(option["default"]) if "default" in option else ("required" if option.get("required") else "none")
        words = option["description"]
        text = plain(words if isinstance(words, str) else " ".join(words))
        if "choices" in option:
            text += " One of " + ", ".join(f"`{choice}`" for choice in option["choices"]) + "."
        lines.append(
            f"| `{name}` | {kind} | {default.replace('|', chr(92) + '|')} | {text.replace('|', chr(92) + '|')} |"
        )
    return "\n".join(lines)


def role_page(name: str) -> str:
    """README.md of a role."""
    entries = yaml.safe_load((ROOT / f"roles/{name}/meta/argument_specs.yml").read_text())["argument_specs"]
    main = entries.pop("main")
    nested = next((option["options"] for option in main["options"].values() if "options" in option), None)
    for entry in (main, *entries.values()):
        entry["description"] = [plain(line) for line in entry["description"]]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # noqa: S701
    text = environment.from_string(ROLE_PAGE).render(
        name=name,
        main=main,
        never=NEVER[name],
        table=table(main["options"]),
        nested=table(nested) if nested else "",
        exports={key: plain(text) for key, text in EXPORTS.get(name, {}).items()},
        others=entries,
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def plugin_index() -> str:
    """docs/plugins.md."""
    lines = ["# Modules and filters", "", "<!-- Made by `make docs` from the plugins. -->", ""]
    lines += [
        "`ansible-doc -t module baremetal.nim.NAME` and `ansible-doc -t filter baremetal.nim.NAME` show them in full.",
        "",
    ]
    for folder, title in (("modules", "Modules"), ("filter", "Filters")):
        lines += [f"## {title}", "", "| name | what it does |", "| --- | --- |"]
        for path in sorted((ROOT / "plugins" / folder).glob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DOCUMENTATION":
                    words = yaml.safe_load(ast.literal_eval(node.value))["short_description"]
                    lines.append(f"| `baremetal.nim.{path.stem}` | {words} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def readme() -> str:
    """README.md with its generated part made anew."""
    parts = []
    for name in ROLES:
        spec = yaml.safe_load((ROOT / f"roles/{name}/meta/argument_specs.yml").read_text())["argument_specs"]["main"]
        parts.append(f"### {name}\n\n{spec['short_description']}.\n\n{table(spec['options'])}")
        for option in spec["options"].values():
            if "options" in option:
                parts.append(f"Keys of each entry of `nim_services`:\n\n{table(option['options'])}")
    text = with_versions((ROOT / "README.md").read_text())
    begin, end = "<!-- variables:begin (make docs) -->", "<!-- variables:end -->"
    if begin not in text:
        return text
    return text[: text.index(begin) + len(begin)] + "\n\n" + "\n\n".join(parts) + "\n\n" + text[text.index(end) :]


def with_versions(text: str) -> str:
    """README.md with the line of its requirements and the rows of its support matrix that tests/versions.txt knows."""
    known = versions.versions()
    cores = [item for item in known if item.name != versions.HOSTS]
    first = cores[0]
    spans: dict[str, list[str]] = {}
    ran: dict[str, list[str]] = {}
    rest: dict[str, list[str]] = {}
    for item in cores:
        spans.setdefault(item.span, []).append(item.name)
        for python in item.ran:
            ran.setdefault(python, []).append(item.name)
        done = [*map(versions.number, item.ran), *([item.oldest] if item is first else [])]
        newer = [
            (3, minor) for minor in range(item.oldest[1], item.newest[1] + 1) if (3, minor) > max(done, default=(0, 0))
        ]
        if newer:
            rest.setdefault(listed([versions.text(python) for python in newer], "and"), []).append(item.name)
    how = "`make matrix`: lint, unit tests, build, a molecule scenario"
    rows = [f"ansible-core {first.name} on Python {versions.text(first.oldest)} | yes | all of `make test`"]
    rows += [f"ansible-core {listed(names, 'and')} on Python {python} | yes | {how}" for python, names in ran.items()]
    how = "written for; `make matrix` has not passed there yet"
    rows += [f"ansible-core {listed(names, 'and')} on Python {python} | no | {how}" for python, names in rest.items()]
    how = (
        "their unit tests by it, with the `requests` of Enterprise Linux 9, and each module started as Ansible sends it"
    )
    for item in known[len(cores) :]:
        tried = "yes" if item.ran else "in part"
        rows.append(f"modules on hosts with Python {versions.text(item.oldest)} | {tried} | {how}")
    controller = ", ".join(f"{listed(names, 'and')} on Python {span}" for span, names in spans.items())
    text = re.sub(
        r"^- Controller: .*?;", f"- Controller: ansible-core {controller};", text, count=1, flags=re.MULTILINE
    )
    old = r"^(\| (ansible-core|modules on hosts with Python) .*\n)+"
    return re.sub(old, "".join(f"| {row} |\n" for row in rows), text, count=1, flags=re.MULTILINE)


def listed(words: list[str], last: str) -> str:
    """Words as a sentence lists them."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def operations() -> str:
    """docs/operations.md with the cure of each failure class as the code has it; a class without a row gets one."""
    for node in ast.parse((ROOT / "plugins/module_utils/_fault.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "CURES":
            cures: dict[str, str] = ast.literal_eval(node.value)
    text = (ROOT / "docs/operations.md").read_text()
    rows = {match[1]: match[2] for match in re.finditer(r"^\| `(\w+)` \| (.*?) \| .*? \|$", text, re.MULTILINE)}
    lines = [f"| `{name}` | {rows.get(name, '')} | {cure} |" for name, cure in sorted(cures.items())]
    head = "| class | what it means | what to do |\n| --- | --- | --- |\n"
    before, rest = text.split(head)
    return before + head + "\n".join(lines) + rest[rest.index("\n\n") :]


def main() -> int:
    """Writes or compares."""
    pages = {ROOT / f"roles/{name}/README.md": role_page(name) for name in ROLES}
    pages[ROOT / "docs/plugins.md"] = plugin_index()
    pages[ROOT / "docs/operations.md"] = operations()
    pages[ROOT / "README.md"] = readme()
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale; run: make docs")
        return int(bool(stale))
    for path in stale:
        path.write_text(pages[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
