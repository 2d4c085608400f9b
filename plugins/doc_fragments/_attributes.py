# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Attributes every module of the collection declares.

    A module says where it differs, itself or by a fragment named before the general one: the first that says something wins.
    """

    DOCUMENTATION = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/baremetal.nim.nim) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - baremetal.nim.nim
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
    support: full
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: none
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
  platform:
    description: Target OS/families that can be operated against.
    platforms: linux
    support: full
"""

    # For modules that only look.
    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    details:
      - This action does not modify state.
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
  idempotent:
    details:
      - This action does not modify state.
"""

    # For modules that send requests to endpoints.
    VERIFICATION = r"""
options: {}
attributes:
  check_mode:
    support: partial
    details:
      - In check mode the endpoints may not exist yet. No request is made and the task is skipped.
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
"""

    # For modules that an action plugin calls slice by slice.
    SLICED = r"""
options:
  progress:
    description: Whether the controller prints what is going on, at most one line per host every 10 seconds.
    type: bool
    default: true
  max_wait:
    description:
      - Most seconds that this call takes before it returns with RV(waiting=true). The action plugin sets it and calls
        the module again until it is done.
    type: float
"""
