"""All or nothing: a file is written under another name and then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a name to write to; afterwards it is renamed to `path`. Whoever reads sees the old file or the new one.

    Of a write that raises nothing is left. Of a killed one, the file with the other name is; the next write to `path`
    takes it over.

    Parameters
    ----------
    path : in a folder that is there
    shared : several processes may write it at the same time: each gets a name of its own

    Raises OSError where the file cannot be written or renamed.
    """
    own = f".{os.getpid()}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a small text file in UTF-8, see `replacing`."""
    with replacing(path, shared=shared) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
