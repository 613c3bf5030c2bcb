"""Results on disk as they come, one JSON a line, so that long work which was stopped goes on where it was.

A line is flushed as soon as its result is there. If the process is killed in the middle of a line, that line counts
for nothing. A later line with the same key takes the place of an earlier one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from cspine_utils.errors import ParameterError

_OPENING = b'{"key": '


class Journal:
    """A file of (key, mark, value). The mark says from what the value was made: if that changed, it is worth nothing.

    Parameters
    ----------
    path : made if it is not there, with its folder

    Raises
    ------
    ParameterError : a file that is no journal (it is left as it is), or no place where one can write
    """

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
        except OSError as error:
            raise self._refusal(f"a place that cannot be written to ({error.strerror})") from error
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        self._entries = dict(self._parsed(line) for line in lines)
        if rest:
            if not (rest.startswith(_OPENING) or _OPENING.startswith(rest)):
                raise self._refusal("a file of another kind")
            os.truncate(self._file.fileno(), self._file.tell() - len(rest))  # the line that a kill cut in two

    def _parsed(self, line: bytes) -> tuple[str, tuple]:
        try:
            entry = json.loads(line)
            return entry["key"], (entry["mark"], entry["value"])
        except (ValueError, TypeError, KeyError):
            self._file.close()
            raise self._refusal("a file of another kind") from None

    def _refusal(self, found: str) -> ParameterError:
        return ParameterError(
            self.path,
            found=found,
            expected="the file of an earlier run, or a name for a new one",
            remedy="name another file; this one is left as it is.",
        )

    def value(self, key: str, mark: str):
        """The value that was made from this very thing, or None."""
        found, value = self._entries.get(key, (None, None))
        return value if found == mark else None

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def add(self, key: str, mark: str, value) -> None:
        """Write down a value that JSON can hold. Raises ParameterError where there is no room for it."""
        self._entries[key] = (mark, value)
        line = json.dumps({"key": key, "mark": mark, "value": value}).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise self._refusal(f"a place that cannot be written to ({error.strerror})") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
