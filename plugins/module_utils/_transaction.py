# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a package manager would do, and what of it must not be done. Private to the collection; pure.

A transaction is a dictionary: ``installed``, ``upgraded``, ``downgraded`` and ``removed``, each name to the version that comes (or
goes), ``causes``, name to what takes a removed package's place where the package manager tells, and ``error``, its refusal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Transaction = dict[str, Any]

#: Headings of dnf's and dnf5's tables. Names under "Skipping" do not come.
_DNF_SECTIONS = {
    "installing": "installed",
    "installing group/module packages": "installed",
    "installing dependencies": "installed",
    "installing weak dependencies": "installed",
    "installing dependencies for": "installed",
    "reinstalling": "installed",
    "upgrading": "upgraded",
    "downgrading": "downgraded",
    "removing": "removed",
    "removing dependent packages": "removed",
    "removing unused dependencies": "removed",
}
#: A line of apt-get --simulate: verb, name without its architecture, the version that is there, the one that comes.
_APT_VERSION = re.compile(r"(Inst|Remv) ([^\s:]+)(?::\S+)?(?: \[([^\]]+)\])?(?: \((\S+) )?")


def _empty(error: str | None = None) -> Transaction:
    return {"installed": {}, "upgraded": {}, "downgraded": {}, "removed": {}, "causes": {}, "error": error}


def _word(text: str) -> list[tuple[int, str]]:
    # By character: a tilde is before the end, the end before letters, letters before the rest.
    return [(0, char) if char == "~" else (2, char) if char.isalpha() else (3, char) for char in text] + [(1, "")]


def version_key(version: str) -> tuple[Any, ...]:
    """Sort key of a package version as dpkg and rpm order them: epoch, then words and numbers in turn."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    if not dash:
        upstream, revision = rest, ""
    parts = []
    for text in (upstream, revision):
        tokens: list[Any] = []
        for word, number in re.findall(r"(\D*)(\d*)", text):
            tokens += [_word(word), int(number or 0)]
        parts.append(tokens)
    return (int(epoch) if epoch.isdigit() else 0, *parts)


def parse_apt(text: str, code: int = 0, error: str = "") -> Transaction:
    """``apt-get --simulate`` (its Inst and Remv lines, which no language changes), exit status and standard error."""
    if code:
        said = [line for line in (text + "\n" + error).splitlines() if re.match(r"E: | \S+ : ", line)]
        # apt 3 tells in many lines how its other solver thinks.
        told = [line.strip().replace("E: ", "", 1) for line in said if "--solver 3.0" not in line]
        return _empty("; ".join(told) or " ".join((error or text).split()) or f"exit status {code}")
    found = _empty()
    for line in text.splitlines():
        match = _APT_VERSION.match(line)
        if not match:
            continue
        verb, name, old, new = match.groups()
        if verb == "Remv":
            found["removed"][name] = old or ""
        elif old is None:
            found["installed"][name] = new or ""
        elif version_key(new or "") < version_key(old):
            found["downgraded"][name] = f"{old} to {new}"
        elif new != old:
            found["upgraded"][name] = f"{old} to {new}"
    # A package that goes for a moment comes back in the same transaction.
    for name in set(found["removed"]) & set(found["installed"]):
        del found["removed"][name]
    return found


def parse_dnf(text: str, code: int = 0, error: str = "") -> Transaction:
    """``dnf --assumeno`` of dnf 4 and 5: its table. It leaves with 1 when it stops before the transaction, as it was told to."""
    found = _empty()
    section = last = ""
    table = False
    for line in text.splitlines():
        heading = line.strip().rstrip(":").lower()
        if heading == "transaction summary":
            break
        if line and not line[0].isspace() and line.rstrip().endswith(":"):
            section, last = _DNF_SECTIONS.get(heading, ""), ""
            table = table or bool(section)
            continue
        words = line.split()
        if not words or not section or not line[0].isspace():
            continue
        if words[0] == "replacing" and len(words) > 2:
            # dnf 4 writes NAME.ARCHITECTURE VERSION, dnf 5 NAME ARCHITECTURE VERSION and also what an upgrade replaces.
            four = words[1].rpartition(".")[0] if len(words) == 3 else words[1]
            if four != last:
                found["removed"][four] = words[2] if len(words) == 3 else words[3]
                found["causes"][four] = last
            continue
        last = words[0]
        found[section][last] = words[2] if len(words) > 2 else ""
    if code and not table:
        return _empty(_dnf_error(f"{text}\n{error}") or f"exit status {code}")
    return found


def _dnf_error(text: str) -> str:
    """The reason in what dnf said: what follows "Error:" or dnf 5's "Failed to resolve", and which words it did not know."""
    unknown = re.findall(r"^No match for argument: .*$", text, re.MULTILINE)
    problem = r"^(?:Error|Failed to resolve the transaction):\s*(.*?)(?:^\(try to |^You can try|\Z)"
    match = re.search(problem, text, re.MULTILINE | re.DOTALL)
    reason = " ".join((match.group(1) if match else "").split())
    return reason or "; ".join(unknown) or " ".join(text.split())[-300:]


def relations(text: str) -> dict[str, dict[str, list[str]]]:
    """Paragraphs of package data (``apt-cache show``, ``dpkg-query -s``) to the names in the fields that part packages."""
    found = {}
    for block in re.split(r"\n\s*\n", text.strip()):
        fields = dict(re.findall(r"^([A-Za-z-]+): *(.*)$", block, re.MULTILINE))
        if fields.get("Package"):
            found[fields["Package"]] = {
                key: [re.split(r"[\s(:]", name.strip())[0] for name in re.split(r"[,|]", fields.get(key, "")) if name.strip()]
                for key in ("Provides", "Conflicts", "Breaks", "Depends", "Pre-Depends")
            }  # fmt: skip
    return found


def causes(
    removed: Iterable[str], data: Mapping[str, Mapping[str, list[str]]], coming: Iterable[str]
) -> dict[str, str]:
    """Why each of REMOVED goes: what of COMING it cannot be beside, or what of REMOVED it needs. DATA is of relations()."""
    removed, coming = list(removed), list(coming)
    found = {}
    for name in removed:
        mine = data.get(name, {})
        against = {*mine.get("Conflicts", []), *mine.get("Breaks", [])}
        named = {name, *mine.get("Provides", [])}
        for other in coming:
            theirs = data.get(other, {})
            refuses = {*theirs.get("Conflicts", []), *theirs.get("Breaks", [])}
            if against & {other, *theirs.get("Provides", [])} or refuses & named:
                found[name] = other
                break
        else:
            needs = {*mine.get("Depends", []), *mine.get("Pre-Depends", [])}
            gone = next((other for other in removed if other != name and other in needs), None)
            if gone:
                found[name] = gone
    return found


def unresolved(transaction: Mapping[str, Any]) -> str | None:
    """Why packages that are all known cannot be had together; None when they can, or when the source does not know them."""
    error = transaction["error"] or ""
    # A host whose last installation was cut off is another matter.
    if "--fix-broken" in error or "dpkg was interrupted" in error:
        return None
    words = "held (broken )?packages|pkgProblemResolver|Unable to (correct|satisfy)|Unsatisfied|conflicts? with|conflicting requests"
    return error if re.search(words, error) else None


def _listed(names: Iterable[str], versions: Mapping[str, str], why: Mapping[str, str]) -> str:
    told = []
    for name in names:
        detail = [versions.get(name, ""), f"because of {why[name]}" if name in why else ""]
        inside = ", ".join(part for part in detail if part)
        told.append(f"{name} ({inside})" if inside else name)
    return ", ".join(told)


def problems(
    transaction: Mapping[str, Any],
    packages: Iterable[str],
    replaces: str = "",
    downgrades: str = "",
    held: Iterable[str] = (),
) -> list[str]:
    """Why a transaction must not run, each with its cure. What cannot be resolved runs by itself into an error and harms nothing.

    PACKAGES are the names, or names with versions, that are asked for; REPLACES is a pattern of names that may go, DOWNGRADES one of
    names that may become older, HELD the names that the operator has set on hold.
    """
    packages = list(packages)
    asked = {re.split(r"[=*]", spec)[0] for spec in packages}
    found = []
    what = ", ".join(packages)
    gone = [name for name in sorted(transaction["removed"]) if not (replaces and re.fullmatch(replaces, name))]
    if gone:
        found.append(
            f"installing {what} would remove {_listed(gone, transaction['removed'], transaction['causes'])}, wanted nothing removed"
            " that is not this role's; remove it yourself if it may go, or keep it and leave out what takes its place."
        )
    older = [name for name in sorted(transaction["downgraded"]) if not (downgrades and re.fullmatch(downgrades, name))]
    if older:
        found.append(
            f"installing {what} would downgrade {_listed(older, transaction['downgraded'], {})}, wanted no package older than it"
            " is; ask for a version that goes with it."
        )
    moved = {**transaction["upgraded"], **transaction["downgraded"], **transaction["removed"]}
    stuck = [name for name in sorted(set(held) & set(moved) - asked) if name not in gone and name not in older]
    stuck = [name for name in stuck if not (replaces and re.fullmatch(replaces, name))]
    if stuck:
        found.append(
            f"installing {what} would change {_listed(stuck, moved, {})}, which is on hold, wanted it left alone;"
            f" release it if it may change: apt-mark unhold {' '.join(stuck)}."
        )
    return found
