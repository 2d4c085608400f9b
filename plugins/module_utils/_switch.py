# Copyright: Contributors to the baremetal.nim collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of one deployment that take the place of those of another, all of them or none. Private to the collection.

Everything that needs room, rights or a working disk is done first, while what serves is untouched: the new files are written beside
their places, and what lies there gets a second name. What is left are renames, and a journal tells which. It comes into its place by a
rename too, and that decides: whoever finds the journal finishes what it tells, whoever finds none knows that nothing was begun. When a
rename fails after all, the journal gets another name, by which everybody goes back. So a cut between any two steps ends in one of the
two deployments; ``nim-settle`` does the same before a unit starts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.baremetal.nim.plugins.module_utils import _files

#: What a journal is called once its renames are taken back.
BACK = ".back"
#: What a file system says that has no second names.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
#: The parts of a journal.
_PARTS = ("files", "gone", "folders")


def journal_place(env_path: str, name: str) -> str:
    """Where the journal of service NAME lies: beside its environment, in a directory of root's."""
    return os.path.join(os.path.dirname(env_path), f".{name}.switch")


def tidy(path: str) -> None:
    """Removes what a cut or finished switch left beside a place; it may be a secret."""
    _files.forget(path)
    _remove(_files.old_name(path))


class Switch:
    """One exchange of files on this host, by the place of its journal."""

    def __init__(self, journal: str) -> None:
        self.journal = journal
        self.back = journal + BACK

    # -- before anything stops -----------------------------------------------------------------------------------------

    def stage(
        self,
        files: Iterable[tuple[str, bytes, int]],
        gone: Iterable[str] = (),
        folders: Iterable[Mapping[str, str]] = (),
        label: Callable[[str, str], None] | None = None,
        purpose: str = "exchange",
    ) -> None:
        """Writes FILES (place, data, mode) beside their places, and the journal beside its own; nothing is decided yet.

        GONE are files that go. FOLDERS are directories that move: ``source`` to ``place``, and what is there to ``aside``, or away.
        LABEL gives a waiting file (name, place) what a security module wants of it. PURPOSE is for whoever finishes it. Raises OSError; then
        everything is as it was.
        """
        files, gone = list(files), [path for path in gone if os.path.lexists(path)]
        plan: dict[str, Any] = {
            "files": [{"path": path, "was": os.path.lexists(path)} for path, _data, _mode in files],
            "gone": gone,
            "folders": [dict(item) for item in folders],
            "purpose": purpose,
        }
        try:
            # Somebody may have removed it with all that was in it.
            os.makedirs(os.path.dirname(self.journal), mode=0o700, exist_ok=True)
            for path, data, mode in files:
                scratch = _files.beside(path, data, mode)
                if label:
                    label(scratch, path)
            for path in [item["path"] for item in plan["files"] if item["was"]] + gone:
                _second_name(path)
            _files.beside(self.journal, json.dumps(plan, indent=1).encode(), 0o600)
            _files.flush(self._directories(plan))
        except BaseException:
            self.drop(plan)
            raise

    def drop(self, plan: Mapping[str, Any] | None = None) -> None:
        """Gives up what was staged and not begun."""
        plan = plan or _parse(_files.waiting_name(self.journal))
        for path in (self.journal, *_paths(plan or {})):
            with contextlib.suppress(OSError):
                tidy(path)

    # -- the switch ----------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Decides, and brings what was staged into its places. Raises OSError; the files are those of before then, or all new.

        They are all new, and the journal stays, if no more than a folder could not be moved: the next one moves it. Until ``close``, whoever
        is cut off is known to have decided.
        """
        try:
            _files.switch([(_files.waiting_name(self.journal), self.journal)])
        except BaseException:
            self._undo()
            raise
        self._finish()

    def close(self) -> None:
        """Forgets an exchange that is through, and whatever had to follow it."""
        if os.path.lexists(self.journal):
            self._close(_plan(self.journal), self.journal)

    def pending(self) -> bool:
        """Whether one that was cut off waits to be finished."""
        return os.path.lexists(self.journal) or os.path.lexists(self.back)

    def settle(self, leftovers: Iterable[str] = ()) -> str | None:
        """Finishes what was cut off, or takes it back: the purpose of what was finished, "" when it was taken back, None when there was none.

        LEFTOVERS: places beside which one that was cut off before it was decided may have left something.
        """
        found = "" if self.pending() else None
        if os.path.lexists(self.back):
            self._return()
        elif found is not None:
            try:
                found = self._finish()
                self.close()
            except OSError:
                # It could not be finished, and is as it was: that is one of the two as well.
                if self.pending():
                    raise
        self.drop()
        for path in leftovers:
            with contextlib.suppress(OSError):
                tidy(path)
        return found

    def _finish(self) -> str:
        plan = _plan(self.journal)
        try:
            _forward(plan)
            _files.flush(self._directories(plan))
        except BaseException:
            self._undo()
            raise
        for item in plan["folders"]:
            _move(item)
        return str(plan.get("purpose"))

    def _undo(self) -> None:
        """Takes back what failed. What cannot even be taken back now, the next one takes back."""
        with contextlib.suppress(OSError):
            if os.path.lexists(self.journal):
                os.rename(self.journal, self.back)
            if os.path.lexists(self.back):
                self._return()
            else:
                self.drop()

    def _return(self) -> None:
        plan = _plan(self.back)
        _backward(plan)
        _files.flush(self._directories(plan))
        self._close(plan, self.back)

    def _close(self, plan: Mapping[str, Any], journal: str) -> None:
        """Forgets a switch that is through; the journal goes last. What cannot be removed now is found by the next one."""
        with contextlib.suppress(OSError):
            for path in _paths(plan):
                tidy(path)
            # Should it be there again after the power failed: all that it tells is done.
            _remove(journal)

    def _directories(self, plan: Mapping[str, Any]) -> set[str]:
        return {os.path.dirname(path) for path in (self.journal, *_paths(plan))}


def _forward(plan: Mapping[str, Any]) -> None:
    for item in plan["files"]:
        scratch = _files.waiting_name(item["path"])
        if os.path.lexists(scratch):
            os.rename(scratch, item["path"])
        elif not os.path.lexists(item["path"]):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), item["path"])
    for path in plan["gone"]:
        _remove(path)


def _backward(plan: Mapping[str, Any]) -> None:
    for path in [item["path"] for item in plan["files"] if item["was"]] + plan["gone"]:
        old = _files.old_name(path)
        if os.path.lexists(old):
            # Where both are one file this does nothing, and the second name goes when all is done.
            os.rename(old, path)
    for item in plan["files"]:
        if not item["was"]:
            _remove(item["path"])


def _move(item: Mapping[str, str]) -> None:
    """Moves a directory. The source is there until all of it is done, so that this can be begun again anywhere."""
    if not os.path.isdir(item["source"]):
        return
    if os.path.isdir(item["place"]):
        if item.get("aside"):
            remove_tree(item["aside"])
            os.rename(item["place"], item["aside"])
        else:
            remove_tree(item["place"])
    os.rename(item["source"], item["place"])
    _files.flush([os.path.dirname(item["place"])])


def remove_tree(path: str) -> None:
    """Removes a directory with all that is in it, or a file in its place; nothing where there is nothing."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        _remove(path)


def _second_name(path: str) -> None:
    """Gives a file a second name, by which it comes back. What cannot be replaced by a rename later has no second name either."""
    if os.path.isdir(path) and not os.path.islink(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    old = _files.old_name(path)
    try:
        _remove(old)
        try:
            os.link(path, old, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not os.path.islink(path):
                # One that must not be changed refuses this as well.
                os.close(os.open(path, os.O_WRONLY | os.O_NOFOLLOW))
            shutil.copy2(path, old, follow_symlinks=False)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _paths(plan: Mapping[str, Any]) -> list[str]:
    return [item["path"] for item in plan.get("files", ())] + list(plan.get("gone", ()))


def _parse(path: str) -> dict[str, Any] | None:
    """A journal, None where there is none that this user, or root, wrote whole."""
    try:
        found = _files.facts(path)
        if not found or found["kind"] != "file" or found["owner"][0] not in (0, os.geteuid()):
            return None
        plan = json.loads(found["data"])
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) and all(isinstance(plan.get(part), list) for part in _PARTS) else None


def _plan(path: str) -> dict[str, Any]:
    plan = _parse(path)
    if plan is None:
        raise OSError(errno.EINVAL, "it is no journal of this collection", path)
    return plan
