# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installations that roles plan, as package_transaction is asked them, and what speaks against them. Private; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _driver_data, _engine, _toolkit_plan

#: What the toolkit's packages may take the place of: themselves, in another version.
TOOLKIT = "|".join(map(re.escape, _toolkit_plan.PACKAGES))
#: The same of the driver, whose parts come and go with its branches.
DRIVER = rf"{_driver_data.FAMILY}|nvidia-driver-pinning.*"

Plan = Mapping[str, Any]


def _source(repository: Plan, keys: Mapping[str, Plan]) -> dict[str, Any]:
    """A repository that is to be added, with its key: the one that is there, or the one that comes with it."""
    if repository["package_manager"] == "dnf":
        return {"baseurl": repository["baseurl"]}
    source = {name: repository[name] for name in ("uris", "suites", "components")}
    key = keys.get(repository["signed_by"])
    if key is None or key["current"]:
        return {**source, "signed_by": repository["signed_by"]}
    return {**source, "key_url": key["url"], "fingerprints": key["fingerprints"]}


def of_toolkit(plan: Plan) -> dict[str, Any] | None:
    """What nvidia_container_toolkit installs; None when that is nothing."""
    if plan["problems"] or not plan["packages"]:
        return None
    repository, key = plan["repository"], {**plan["key"], "fingerprints": [plan["key"]["fingerprint"]]}
    return {
        "name": "toolkit",
        "packages": plan["packages"],
        "sources": [] if repository["current"] else [_source(repository, {key["path"]: key})],
        "retired": plan["retired"],
        "replaces": TOOLKIT,
        "downgrade": True,
        "downgrades": TOOLKIT,
        "change_held": True,
    }


def of_driver(plan: Plan, manager: str) -> dict[str, Any] | None:
    """What nvidia_driver installs with apt; None when that is nothing. dnf's streams and locks have a simulation of their own."""
    packages = [*plan["prerequisites"], *plan["packages"]]
    if plan["problems"] or manager != "apt" or not packages:
        return None
    keys = {key["path"]: key for key in plan["keys"]}
    return {
        "name": "driver",
        "packages": packages,
        "pins": plan["pins"],
        "sources": [_source(item, keys) for item in plan["repositories"] if not item["current"]],
        "retired": plan["retired"]["files"],
        "replaces": DRIVER,
        "downgrade": True,
        "downgrades": DRIVER,
        "change_held": True,
    }


def package_transactions(
    host: Plan,
    engine: Plan | None = None,
    toolkit: Plan | None = None,
    driver: Plan | None = None,
    simulated: Mapping[str, Plan] | None = None,
) -> list[dict[str, Any]]:
    """What package_transaction is to be asked for these plans; empty when nothing is to be installed.

    SIMULATED are answers that this run has already: what was resolved for the same packages is not asked again.
    """
    known = simulated or {}
    manager = str(host["os"]["package_manager"])
    found = [
        None if driver is None else of_driver(driver, manager),
        engine["transaction"] if engine is not None and engine["transaction"]["packages"] and not engine["problems"] else None,
        None if toolkit is None else of_toolkit(toolkit),
    ]  # fmt: skip
    found = [item for item in found if item is not None and not _known(item, known.get(item["name"]))]
    return [item for item in found if item is not None] if manager in ("apt", "dnf") else []


def _known(wanted: Plan, answer: Plan | None) -> bool:
    return (
        answer is not None and answer["packages"] == wanted["packages"] and not (answer["error"] or answer["problems"])
    )


def _engine_problems(transaction: Plan) -> list[str]:
    """What speaks against a simulated installation of an engine besides what it would remove."""
    found = []
    if transaction["unresolved"]:
        found.append(
            f"the container engine cannot be installed beside what is there: {transaction['unresolved'].rstrip('.')}."
        )
    for source, names in _engine.PACKAGES.items():
        comes = transaction["installed"].get(names[0])
        if comes and _engine.version(comes)[:1] < _engine.DOCKER:
            other = "set container_engine_source: docker" if source == "distribution" else "ask for a newer one"
            found.append(
                f"Docker would be {names[0]} {comes}, wanted {_engine.DOCKER[0]} or newer, which knows CDI; {other}."
            )
    return found


def transaction_problems(simulated: Mapping[str, Plan]) -> list[str]:
    """Why simulated installations, by name, must not run. What their source does not know fails by itself and harms nothing."""
    found = []
    for name, transaction in simulated.items():
        found += transaction["problems"]
        if name == "engine":
            found += _engine_problems(transaction)
    return found
