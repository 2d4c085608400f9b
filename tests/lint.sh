#!/usr/bin/env bash
# Style, types, documentation: tests/lint.sh [CHECK...]. Every check, or every CHECK, runs, whatever the others say; the last line
# names those that failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export PATH="$PWD/.venv${CORE:+-$CORE}/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg" PYTHONPATH="$PWD/.venv/collections"
export PYTHONPYCACHEPREFIX="$PWD/.venv${CORE:+-$CORE}/pycache" NO_COLOR=1 LC_ALL=C.UTF-8
# Where Ansible imports the collection from; mypy must know the plugins by the same names.
plugins=.venv/collections/ansible_collections/baremetal/nim/plugins
failed=() chosen=("$@") ran=0

check() { # check NAME COMMAND...
  local name=$1 started=$SECONDS output
  shift
  [[ ${#chosen[@]} = 0 || " ${chosen[*]/%/,} " = *" $name, "* ]] || return 0
  ran=$((ran + 1))
  if output=$("$@" 2>&1); then
    printf 'ok      %-22s %3s s\n' "$name" "$((SECONDS - started))"
  else
    printf 'FAILED  %-22s %3s s: %s\n%s\n' "$name" "$((SECONDS - started))" "$*" "$output"
    failed+=("$name")
  fi
}

shell_scripts() { # by their first line; others may quote one
  git ls-files -co --exclude-standard -z | while IFS= read -r -d '' file; do
    if [ -f "$file" ] && head -n 1 "$file" | grep -qaE '^#!.*\b(ba)?sh$'; then echo "$file"; fi
  done
}

# A list of everything that may be skipped must not exist, and no line may ask for an exception.
no_exceptions() {
  [ ! -e .ansible-lint-ignore ] && [ ! -e .config/ansible-lint-ignore.txt ] && [ ! -e tests/sanity ] \
    && ! grep -rnE '#\s*noqa' --include='*.yml' --include='*.yaml' playbooks roles inventories molecule .config
}

mapfile -t scripts < <(shell_scripts)
check 'ruff check' ruff check .
check 'ruff format' ruff format --check .
check mypy env MYPYPATH="$PWD/.venv/collections:$PWD/tests/lab:$PWD/tests" \
  mypy --cache-dir=".ansible/mypy${CORE:+-$CORE}" "$plugins" tests/lab/lab.py tests/lab/demo.py tests/generate_docs.py tests/matrix.py \
  roles/nim_service/files/nim-watchdog
check 'mypy nim-gpu-wait' mypy roles/nim_service/files/nim-gpu-wait
check 'mypy nim-settle' mypy roles/nim_service/files/nim-settle
check yamllint yamllint --strict .
check shellcheck shellcheck --external-sources --severity=warning "${scripts[@]}"
check 'no exceptions' no_exceptions
check syntax ansible-playbook --syntax-check -i inventories/lab playbooks/*.yml
check ansible-lint ansible-lint --offline --nocolor -q
check 'generated docs' python tests/generate_docs.py --check
check 'plugin docs' antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs self .
check changelog antsibull-changelog lint

if [ ${#failed[@]} -gt 0 ]; then
  printf 'lint: failed: %s\n' "$(IFS=,; echo "${failed[*]}")"
  exit 1
fi
if [ ${#chosen[@]} -gt 0 ] && [ "$ran" != ${#chosen[@]} ]; then
  echo "lint: $ran of the ${#chosen[@]} checks that were asked for are known: ${chosen[*]}"
  exit 2
fi
echo "lint: all ${chosen:+chosen }checks passed"
