# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can be wrong with an endpoint, in the words an operator needs.

This module util is private to the collection and may change at any time.
"""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.baremetal.nim.plugins.module_utils._foreign import printable

#: Most characters of what was seen or wanted, and of a line of evidence.
_MOST_SEEN = 2000

# Failure class -> what cures it. The keys are documented in the return values of chat_completion.
CURES = {
    "auth": "Give a valid key: api_key for the endpoint, NGC_API_KEY for images and weights.",
    "bad_response": "See whether something other than a NIM answers at this address, or its engine runs without what was asked for.",
    "buffered_stream": "Let what stands before the endpoint neither buffer nor compress streams (nginx: proxy_buffering, gzip), or ask it directly.",
    "cache_missing": "Fill the cache: cache_seed names a tarball or directory, or copy the cache of another host there.",
    "cache_permission": "Give the cache directory to the user of the image (uid 1000).",
    "client_limit": "Raise the limit of open files for the user who runs this (ulimit -n), or lower concurrency or max_in_flight.",
    "crash_loop": "Read the journal, cure the cause, then start the unit again.",
    "dead_engine": "Restart the service: a dead engine does not come back while its health still looks green.",
    "disk_full": "Free or add disk space for the cache and the images.",
    "downloading": "Wait longer (timeout) if bytes still come; otherwise check the way to the source. model_cache stages weights beforehand.",
    "driver_mismatch": "Install a driver as new as the CUDA of the image wants, and reboot when library and kernel module differ.",
    "gpu_unavailable": "Make the driver, fabric manager and CDI specification of the host agree, then start the unit again.",
    "image_missing": "Correct the image reference, or load the image on this host.",
    "incomplete": "Read the journal of the service: answers were begun and given up, by its engine or by what stands before it.",
    "no_profile": "Choose a model that fits these GPUs, free their memory, or pin a profile.",
    "not_comparable": "Compare with a whole result of the same workload, model and sweep, or measure a new baseline.",
    "out_of_memory": "Free memory on the GPU or the host, choose a smaller profile, or shorten the context.",
    "overloaded": "Wait, send fewer at a time, add instances, or raise the queue and rate limits of what refuses.",
    "port_in_use": "Stop what listens on the port, or give the service another one.",
    "refused_by_policy": "Read what refused (guardrails, content filter): change its policy, or the prompt.",
    "slow": "Send less at a time, add instances or GPUs, choose a faster profile; or correct what is wanted.",
    "starting": "Wait longer (timeout) if the log still moves; otherwise read the journal.",
    "tls": "Set ca_path to the CA of the endpoint, and check the certificates and the http or https of the URL.",
    "unit_not_found": "Deploy the service first, or correct the name of the unit.",
    "unit_stopped": "Start the unit.",
    "unit_unreadable": "Run this where systemd runs the service, as a user who may ask it.",
    "unreachable": "Start the service, or correct host, port and firewall.",
    "wrong_answer": "Read the answer; correct what is expected, the prompt or the model.",
    "wrong_contract": "Say the contract in the entry of nim_services.",
    "wrong_model": "Ask for a listed model, or deploy the image and profile of the wanted one.",
}


#: What is raised where an answer is of a shape that nobody thought of. One endpoint's must not hide what the others said.
UNFORESEEN = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


class Fault(Exception):
    """A definite failure.

    failure_class: str, a key of CURES. seen and wanted: str, complete the sentence "<seen>, wanted <wanted>".
    evidence: list of str, lines that show it. culprit: str, the one line of the journal that matters most, or empty.
    of_unit: bool, whether the unit behind the endpoint showed it, not the endpoint. remedy: str, takes the place of the cure of the class.
    patience: seconds for which asking again may help, from the first time. retry_after: seconds that the server wants to be left alone.
    """

    def __init__(
        self,
        failure_class: str,
        seen: str,
        wanted: str,
        evidence: Iterable[str] = (),
        culprit: str = "",
        of_unit: bool = False,
        remedy: str = "",
        patience: float = 0.0,
        retry_after: float | None = None,
    ) -> None:
        # Whatever strangers say of an endpoint becomes one of these, so here it is made fit for a terminal.
        super().__init__(f"{printable(seen, _MOST_SEEN)}, wanted {printable(wanted, _MOST_SEEN)}")
        self.failure_class = failure_class
        self.evidence = [printable(line) for line in evidence]
        self.culprit = printable(culprit)
        self.of_unit = of_unit
        self.remedy = remedy
        self.patience = patience
        self.retry_after = retry_after

    @property
    def cure(self) -> str:
        """What the operator can do about it (one sentence)."""
        return self.remedy or CURES[self.failure_class]


def shorten(text: str, limit: int = 200) -> str:
    """One printable line of at most limit characters."""
    # What is far behind the limit is not looked at; white space may fill much of what is before it.
    cut = text[: 20 * limit + 1000]
    line = " ".join(("".join(char if char.isprintable() else " " for char in cut)).split())
    if len(cut) < len(text) and len(line) <= limit:
        line += "..."
    return line if len(line) <= limit else line[: limit - 3] + "..."


def unstopped(text: str) -> str:
    """A text without its full stop; dots that tell that it was shortened stay."""
    text = text.rstrip()
    return text if text.endswith("...") else text.rstrip(".")


def sentence(text: str) -> str:
    """A text as a sentence: with one full stop, or the dots that tell that it was shortened."""
    text = unstopped(text)
    return text if text.endswith("...") else f"{text}."
