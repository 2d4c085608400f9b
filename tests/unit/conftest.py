# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What unit tests of all kinds share."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from unittest import mock

import pytest
from ansible.module_utils.common import warnings
from ansible_collections.baremetal.nim.tests.unit.serving import reserved
from hypothesis import settings

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import worlds

STRANGE = (
    *("ANSIBLE_FORCE_", "ANSIBLE_STDOUT_", "ANSIBLE_CALLBACKS_", "ANSIBLE_INVENTORY", "ANSIBLE_VAULT_", "ANSIBLE_VERBOSITY"),
    *("COLUMNS", "CURL_", "DOCKER_", "FORCE_COLOR", "HF_", "LAB_", "NGC_", "NIM_", "NO_COLOR", "OPENAI_", "REQUESTS_", "SSL_"),
)  # fmt: skip

# What users have in their environment, and tests have no business with: proxies, keys, certificates, colours, settings of Ansible.
for name in list(os.environ):
    if name.lower().endswith("_proxy") or name.startswith(STRANGE):
        del os.environ[name]
OURS = dict(os.environ)
# The same cases in every run, however slow the machine.
EXAMPLES = int(os.environ.get("TEST_EXAMPLES") or settings().max_examples)
settings.register_profile("unit", database=None, deadline=None, derandomize=True, max_examples=EXAMPLES)
settings.load_profile("unit")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Have nobody run what is not for root."""
    if pyfuncitem.get_closest_marker("not_root") is None or os.geteuid() != 0:
        return None
    # The test's own fixtures may have changed it.
    with mock.patch.dict(os.environ, OURS, clear=True):
        if reason := worlds.impossible("nobody"):
            pytest.skip(f"root may do that, and nobody cannot run tests here: {reason}")
        done = worlds.enter("nobody", [sys.executable, "-m", "pytest", "-q", pyfuncitem.nodeid], subprocess.PIPE)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
    return True


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
