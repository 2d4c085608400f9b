#!/usr/bin/env bash
# Runs molecule scenarios one after another: tests/molecule.sh SCENARIO...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export NO_COLOR=1 PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg" MOLECULE_GLOB="molecule/*/molecule.yml"
for scenario in "$@"; do
  printf '\n=== molecule %s ===\n' "$scenario"
  started=$SECONDS
  # lifecycle is written for either engine: lifecycle-podman is the same with Podman.
  export NIM_ENGINE=docker
  [ "${scenario%-podman}" = "$scenario" ] || NIM_ENGINE=podman
  case ${scenario%-podman} in
    vllm) export LAB_HOSTS=gpu01 LAB_ENGINE=vllm ;;
    reboot) export LAB_HOSTS=vm01 LAB_ENGINE=reference ;;
    dkms | driver | faults | interrupted | lifecycle) export LAB_HOSTS=gpu01 LAB_ENGINE=reference ;;
    *) export LAB_HOSTS=gpu01,gpu02 LAB_ENGINE=reference ;;
  esac
  # The longest takes a third of that; what hangs longer than a test may is stopped here.
  timeout --foreground --kill-after=60 45m molecule test -s "${scenario%-podman}"
  printf '=== molecule %s passed in %s s ===\n' "$scenario" "$((SECONDS - started))"
done
