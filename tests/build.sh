#!/usr/bin/env bash
# Builds the collection, checks it as Galaxy's importer does, installs it where nothing else is, and reads it there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
export PATH="$root/.venv${CORE:+-$CORE}/bin:$PATH" NO_COLOR=1 LC_ALL=C.UTF-8
# Only what is installed below counts: neither the checkout nor its settings.
unset ANSIBLE_CONFIG PYTHONPATH
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { printf 'build   %s\n' "$*"; }
fail() { printf 'build   FAILED: %s\n' "$*" >&2; exit 1; }

# A clone under an odd name is as good as any; what git does not know does not ship.
clone="$scratch/an odd (name)"
mkdir "$clone"
git ls-files -co --exclude-standard -z | while IFS= read -r -d '' file; do
  [ ! -e "$file" ] || printf '%s\0' "$file"
done | tar --null -cf - -T - | tar -xf - -C "$clone"
(cd "$clone" && ansible-galaxy collection build --output-path "$scratch" >/dev/null)
# As make arranges it: the checkout is the collection, by a link.
mkdir -p "$clone/.venv/collections/ansible_collections/baremetal"
ln -s ../../../.. "$clone/.venv/collections/ansible_collections/baremetal/nim"
for inventory in lab single_host fleet; do
  (cd "$clone" && ANSIBLE_CONFIG="$clone/ansible.cfg" \
    ansible-playbook -i "inventories/$inventory" baremetal.nim.site --syntax-check >/dev/null) \
    || fail "site does not parse with inventories/$inventory in a clone called '$(basename "$clone")'"
done
say "a clone called '$(basename "$clone")' builds and parses"
tarball=$(ls "$scratch"/baremetal-nim-*.tar.gz)
strays=$(tar -tzf "$tarball" | grep -E '^(tests|molecule|inventories|\.|Makefile|ansible\.cfg|pyproject)' || true)
[ -z "$strays" ] || fail "the collection ships what belongs to the checkout: $strays"
say "$(basename "$tarball"): $(tar -tzf "$tarball" | wc -l) files"

# tests/lint.sh runs ansible-lint, by its strictest profile.
cat > "$scratch/importer.cfg" <<'CFG'
[galaxy-importer]
RUN_ANSIBLE_TEST = False
RUN_ANSIBLE_LINT = False
CHECK_REQUIRED_TAGS = True
CHECK_CHANGELOG = True
CHECK_RUNTIME = True
CFG
(cd "$scratch" && GALAXY_IMPORTER_CONFIG="$scratch/importer.cfg" python -m galaxy_importer.main "$tarball" > importer.log 2>&1) \
  || { cat "$scratch/importer.log"; fail 'galaxy-importer refuses it'; }
complaints=$(grep -E 'ERROR|WARNING' "$scratch/importer.log" || true)
[ -z "$complaints" ] || fail "galaxy-importer complains: $complaints"
say 'galaxy-importer: no error, no warning'

# From elsewhere: the ansible.cfg of the checkout would say that it is installed already.
cd "$scratch"
ansible-galaxy collection install --offline --no-deps -p "$scratch/installed" "$tarball" >/dev/null 2>&1 \
  || fail 'it does not install'
export ANSIBLE_COLLECTIONS_PATH="$scratch/installed"
printf '[nim_servers]\ngpu01\n' > inventory
cd "$scratch/installed"
# One call for all: most of each is the start of Ansible.
names=()
for playbook in "$root"/playbooks/*.yml; do names+=("baremetal.nim.$(basename "$playbook" .yml)"); done
ansible-playbook -i "$scratch/inventory" "${names[@]}" --syntax-check >/dev/null \
  || fail 'a playbook does not parse where only the tarball is'
names=()
for module in "$root"/plugins/modules/*.py; do names+=("baremetal.nim.$(basename "$module" .py)"); done
ansible-doc -t module --json "${names[@]}" > "$scratch/modules.json" 2> /dev/null
unread=$(python -c '
import json, sys
told = json.load(open(sys.argv[1]))
print(*[name for name in sys.argv[2:] if not told.get(name, {}).get("doc", {}).get("options")])
' "$scratch/modules.json" "${names[@]}")
[ -z "$unread" ] || fail "without readable documentation: $unread"
say 'installed elsewhere: playbooks parse, documentation reads'
