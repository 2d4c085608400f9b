#!/usr/bin/env bash
# Runs the unit tests of what runs on hosts by their oldest Python: tests/hosts.sh TOOLBOX [OPTION OF PYTEST...]
# As on a host, all that is there of Ansible are the module_utils, which the ansible-core of TOOLBOX (.venv, .venv-2.21) sends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
sent=$("$1/bin/python" -c 'import ansible.module_utils, pathlib; print(pathlib.Path(ansible.module_utils.__path__[0]))')
core=$("$1/bin/python" -c 'import ansible.release; print(ansible.release.__version__)')
shift
payload=$(mktemp -d)
trap 'rm -rf "$payload"' EXIT
# Some tests are run by nobody.
chmod 0755 "$payload"
mkdir "$payload/ansible"
: > "$payload/ansible/__init__.py"
ln -s "$sent" "$payload/ansible/module_utils"
echo "hosts: $(.venv-hosts/bin/python -V) with the module_utils of ansible-core $core"
unset ANSIBLE_CONFIG
export PATH="$PWD/.venv-hosts/bin:$PATH" PYTHONPATH="$payload:$PWD/.venv/collections" PYTHONPYCACHEPREFIX="$PWD/.venv-hosts/pycache"
# What a host compiles, then what it does.
.venv-hosts/bin/python - plugins/modules plugins/module_utils roles/*/files <<'PY'
import pathlib
import sys

programs = [path for folder in sys.argv[1:] for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()]
texts = {path: path.read_text(encoding="utf-8") for path in programs}
python = {path: text for path, text in texts.items() if path.suffix == ".py" or "python" in text.partition("\n")[0]}
for path, text in python.items():
    compile(text, str(path), "exec")
print(f"hosts: {len(python)} files compile")
PY
.venv-hosts/bin/python -m pytest -q -rs tests/unit/plugins/modules tests/unit/plugins/module_utils \
  tests/unit/test_watchdog.py tests/unit/test_gpu_wait.py tests/unit/test_settle.py tests/unit/test_nim_run.py tests/unit/test_nim_run_ends.py "$@"
