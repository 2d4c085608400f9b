# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What unit tests of all kinds share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ansible.module_utils.common import warnings
from ansible_collections.baremetal.nim.tests.unit.serving import reserved
from hypothesis import settings

STRANGE = (
    *("ANSIBLE_FORCE_", "ANSIBLE_STDOUT_", "ANSIBLE_CALLBACKS_", "ANSIBLE_INVENTORY", "ANSIBLE_VAULT_", "ANSIBLE_VERBOSITY"),
    *("COLUMNS", "CURL_", "DOCKER_", "FORCE_COLOR", "HF_", "LAB_", "NGC_", "NIM_", "NO_COLOR", "OPENAI_", "REQUESTS_", "SSL_"),
)  # fmt: skip

# What users have in their environment, and tests have no business with: proxies, keys, certificates, colours, settings of Ansible.
for name in list(os.environ):
    if name.lower().endswith("_proxy") or name.startswith(STRANGE):
        del os.environ[name]
# The same cases in every run, however slow the machine.
settings.register_profile("unit", database=None, deadline=None, derandomize=True)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _own_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning of one module is in the result of the next one that runs in this process."""
    monkeypatch.setattr(warnings, "_global_warnings", {})


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which nobody listens, until the test has a server listen there."""
    with reserved() as number:
        yield number


@pytest.fixture
def strict_umask() -> Iterator[None]:
    """The strictest umask that hardened hosts have."""
    before = os.umask(0o077)
    yield
    os.umask(before)
