# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that services of operators and units of this collection must not share. Private to the collection; pure.

The unit and the container of a service are called nim-NAME. What else of ours begins with nim- stands here, whichever role has it.
"""

from __future__ import annotations

from collections.abc import Mapping

#: What has the name nim-NAME already.
TAKEN = {
    "share": "nim-share.service, which serves weights to other hosts",
    "watchdog": "nim-watchdog, by which the watchdogs of all services are known in the journal",
}
#: The same for whole families of names, by how they begin.
FAMILIES = {
    "pull-": "nim-pull-{0}.service, which pulls the image of a service {0}",
    "stage-": "nim-stage-{0}.service, which stages the weights of a service {0}",
}


def owner(name: str) -> str:
    """What of this collection is called as a service of that name would be, empty for nothing."""
    families = (text.format(name[len(head) :]) for head, text in FAMILIES.items() if name.startswith(head))
    return TAKEN.get(name) or next(families, "")


def refusal(name: str) -> str:
    """Why a service cannot have a name, with the cure for one that has it already; empty when it can."""
    other = owner(name)
    if not other:
        return ""
    return (
        f"its name is also that of {other}; give it another one. Where it is deployed already, it runs on until the old name is listed"
        f" beside the new one: {{name: {name}, state: absent}}; its cache stays."
    )


def foreign_unit(state: Mapping[str, str]) -> str:
    """Where the file of a unit is that we did not start, empty for a transient unit, which is ours, or for none.

    STATE are properties as ``systemctl show`` tells them, among them LoadState, Transient and FragmentPath.
    """
    if state.get("LoadState") in (None, "", "not-found") or state.get("Transient") != "no":
        return ""
    return state.get("FragmentPath") or "no file"
