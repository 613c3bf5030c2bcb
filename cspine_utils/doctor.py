#!/usr/bin/env python3
"""Is this machine ready for the course? Asked before anything is downloaded.

Needs nothing but Python (any version from 3.6, so that it can say that the version is wrong):

    python3 cspine_utils/doctor.py            # sentences; exit code 1 if something is missing
"""

import os
import platform
import shutil
import sys

NEEDED_PYTHON = (3, 11)
NEEDED_DISK_GB = 4.0  # environment 2.0, pip's downloads while installing, cohort and prepared stacks
NEEDED_MEMORY_GB = 4.0


def problems(folder=".", version=None, free_bytes=None, memory_bytes=None, has_venv=None):
    """Sentences on what is missing, each with its remedy; an empty list where nothing is.

    The keyword arguments replace what the machine says, so that each answer can be tested.
    """
    version = tuple(sys.version_info[:3]) if version is None else tuple(version)
    free_bytes = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    memory_bytes = _memory_bytes() if memory_bytes is None else memory_bytes
    has_venv = _has_venv() if has_venv is None else has_venv
    found = []
    if version[:2] != NEEDED_PYTHON:
        found.append(
            "Python {} was found, and the pinned packages are tested on {}.{} only: install it (for example "
            "from your package manager, pyenv or conda) and run `make PYTHON=python3.11 ...`.".format(
                ".".join(map(str, version)), *NEEDED_PYTHON
            )
        )
    elif not has_venv:
        found.append(
            "This Python cannot make virtual environments: install its venv module "
            "(on Debian and Ubuntu: apt install python3.11-venv)."
        )
    if free_bytes < NEEDED_DISK_GB * 1e9:
        found.append(
            f"Only {free_bytes / 1e9:.1f} GB are free here and the environment, the cohort and the runs need "
            f"{NEEDED_DISK_GB:.0f} GB: free some space or clone the course to a larger disk."
        )
    if memory_bytes and memory_bytes < NEEDED_MEMORY_GB * 1e9:
        found.append(
            f"This machine has {memory_bytes / 1e9:.1f} GB of memory and the notebooks need "
            f"{NEEDED_MEMORY_GB:.0f} GB: use a larger machine."
        )
    return found


def notes(machine=None, has_compiler=None):
    """What is worth knowing but stops nothing."""
    machine = platform.machine() if machine is None else machine
    has_compiler = _has_compiler() if has_compiler is None else has_compiler
    if has_compiler or machine.lower() in ("x86_64", "amd64", "arm64", "aarch64"):
        return []  # every pinned package has a ready-made wheel there
    return [
        f"No C compiler was found; on a {machine} machine some packages may have no ready-made wheel: "
        "if pip stops, install gcc (on Debian and Ubuntu: apt install build-essential)."
    ]


def _has_venv():
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


def _has_compiler():
    return any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))


def _memory_bytes():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None  # not to be had on this system: do not guess


def main():
    missing = problems()
    for sentence in missing + notes():
        print("doctor: " + sentence, file=sys.stderr)
    if not missing:
        print(f"doctor: Python {platform.python_version()}, disk and memory are fine.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
