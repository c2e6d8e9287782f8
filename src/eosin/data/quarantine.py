"""Tiles that could not be read: each listed once with its reason, and a limit to how many a run bears."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

from eosin.core.errors import EosinError
from eosin.core.files import storage_errors

__all__ = ["Quarantine"]


_LIMIT = 0.01


class Quarantine:
    """The unreadable tiles of a run.

    Several processes, and a run resumed later, may share one file: each name is written once.

    Args:
        path: The JSON-lines file (`name`, `reason`), or None to keep the list in memory only. It is created with the
            first entry.
        limit: The share of a source's tiles that may be unreadable; 0.01 where the user has no say in it.
    """

    def __init__(self, path: Path | None, limit: float | None = None) -> None:
        if limit is not None and not 0 <= limit <= 1:
            raise EosinError(f"quarantine_limit {limit}: give a share between 0 and 1, such as 0.01")
        self.path = path
        self.limit = _LIMIT if limit is None else limit
        self._more = "" if limit is None else ", or raise quarantine_limit"
        self._reasons: dict[str, str] = {}
        self._offset = 0
        if path is not None and path.exists():
            self._exchange([])
        # What an earlier start of the run listed may have been repaired since: it counts only when met again.
        self._stale = set(self._reasons)

    @property
    def count(self) -> int:
        """Number of tiles listed, by earlier starts of the run too."""
        return len(self._reasons)

    @property
    def names(self) -> list[str]:
        """Names of the listed tiles, in the order of listing."""
        return list(self._reasons)

    def reason(self, name: str) -> str:
        """Return why a listed tile could not be read."""
        return self._reasons[name]

    def add(self, name: str, reason: str) -> None:
        """List a tile, once."""
        self._stale.discard(name)
        if name in self._reasons:
            return
        if self.path is None:
            self._reasons[name] = reason
        else:
            self._exchange([{"name": name, "reason": reason}])

    def check(self, total: int) -> None:
        """Stop the run when too many tiles are unreadable.

        Args:
            total: Number of tiles in the source.

        Raises:
            EosinError: If more than `limit` of `total` were found unreadable since this object was made.
        """
        found = [name for name in self._reasons if name not in self._stale]
        if len(found) > self.limit * total:
            listed = "" if self.path is None else f", all listed in {self.path}"
            raise EosinError(
                f"{len(found):,} of {total:,} tiles are unreadable, more than the limit of {self.limit:.4g} "
                f"(first '{found[0]}': {self._reasons[found[0]]}{listed}); repair or remove them"
                f"{self._more}"
            )

    def summary(self, *, met: bool = False) -> str:
        """Return the closing line.

        Args:
            met: Tell only of tiles met since this object was made: the file may hold those of an earlier call, of
                another source or repaired since.
        """
        found = [name for name in self._reasons if not met or name not in self._stale]
        if not found:
            return "no unreadable tiles"
        where = "" if self.path is None else f", listed in {self.path}"
        plural = "" if len(found) == 1 else "s"
        return f"{len(found):,} unreadable tile{plural} left out{where} (first '{found[0]}': {self._reasons[found[0]]})"

    def _exchange(self, entries: list[dict[str, str]]) -> None:
        """Take in what others have appended, then append the entries that are still missing, under a lock."""
        if self.path is None:
            return
        with storage_errors(self.path), open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self._offset)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            for line in content[:whole].splitlines():
                try:
                    entry = json.loads(line)
                    self._reasons.setdefault(str(entry["name"]), str(entry["reason"]))
                except (ValueError, KeyError, TypeError):
                    raise EosinError(f"{self.path}: a damaged line ({line[:60]!r}); remove it") from None
            # A line cut short by a crash would join the next one.
            file.truncate(self._offset + whole)
            self._offset += whole
            for entry in entries:
                if entry["name"] not in self._reasons:
                    line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
                    file.write(line)
                    self._offset += len(line)
                    self._reasons[entry["name"]] = entry["reason"]
