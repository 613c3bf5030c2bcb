"""Folders that mix series, lack slices, hold strange things, have strange names, or may not be read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from conftest import patient_volume, write_series
from faults import EITHER, READ, SANE
from faults_series import LAST, MIDDLE, SHAPE, Maker, numbers, with_value


def add_to(make: Maker) -> None:
    """Add these faults to the collection."""
    _mixed(make)
    _folders(make)


def _mixed(make: Maker):
    def twin(folder: Path) -> None:
        shutil.copy(folder / LAST, folder / "99.dcm")

    def two_series(folder: Path) -> None:
        volume = patient_volume(SHAPE, seed=6)
        write_series(folder, volume, first_number=101, series_uid="1.2.826.0.1.3680043.1.2", signed=False)

    def size(content: bytes) -> bytes:
        return with_value(with_value(content, "Rows", numbers(12)), "PixelData", content[-12 * 31 * 2 :])

    make.add("the same slice twice", twin, says="5.dcm.*99.dcm|99.dcm.*5.dcm", damaged="99.dcm")
    make.add("two series", two_series, says="2 series|two .*series")
    make.bytes("a slice of another size", size, says="")
    turned = b"1\\0\\0\\0\\0.866025404\\0.5"
    make.add(
        "a slice of another orientation", _in_the_middle(lambda c: with_value(c, "ImageOrientationPatient", turned))
    )
    make.add("a slice of another spacing", _in_the_middle(lambda c: with_value(c, "PixelSpacing", b"0.9\\0.9")))
    make.add("a slice of another series", _in_the_middle(lambda c: with_value(c, "SeriesInstanceUID", b"1.2.9")))
    make.add("a slice of another study", _in_the_middle(lambda c: with_value(c, "StudyInstanceUID", b"1.2.9")))
    make.add("a missing slice", lambda folder: (folder / MIDDLE).unlink(), says="missing")
    make.add("one slice only", lambda folder: [p.unlink() for p in folder.iterdir() if p.name != LAST] and None)


def _in_the_middle(change):
    def damage(folder: Path) -> None:
        path = folder / MIDDLE
        path.write_bytes(change(path.read_bytes()))

    return damage


def _folders(make: Maker):
    def put(name: str, act):
        return lambda folder: act(folder / name) and None

    make.add("empty folder", lambda folder: [path.unlink() for path in folder.iterdir()] and None)
    make.add("no such folder", lambda folder: folder.with_name("absent"), says="no such folder")
    make.add("a file in place of the folder", lambda folder: folder / LAST, says="a file")
    make.add("a FIFO in place of the folder", _fifo_for_folder)
    make.add("a folder that is a link to itself", _loop_for_folder)
    make.add(
        "text named .dcm", put("9.dcm", lambda p: p.write_text("Meeting notes, not DICOM.")), EITHER, damaged="9.dcm"
    )
    make.add("a link to itself", put("9.dcm", lambda p: p.symlink_to(p)), EITHER, damaged="9.dcm")
    make.add("a link to nowhere", put("9.dcm", lambda p: p.symlink_to("nowhere")), EITHER, damaged="9.dcm")
    make.add("a FIFO", put("9.dcm", os.mkfifo), EITHER, damaged="9.dcm")
    make.add("a link to endless zeros", put("9.dcm", lambda p: p.symlink_to("/dev/zero")), EITHER, damaged="9.dcm")
    make.add("a folder named 9.dcm", put("9.dcm", os.mkdir), EITHER, damaged="9.dcm")
    make.add("a folder in place of a slice", lambda f: (f / MIDDLE).unlink() or (f / MIDDLE).mkdir(), says="")
    make.add("a file nobody may read", lambda f: (f / LAST).chmod(0), says=LAST, as_nobody=True)
    make.add("a folder nobody may list", lambda f: f.chmod(0o711), as_nobody=True)
    make.add("a folder nobody may enter", lambda f: f.chmod(0), as_nobody=True)
    make.add("a folder nobody may reach", _unreachable, as_nobody=True)
    for text in ("a folder with spaces", "Übung Ω 日本", "two\nlines", "quote\"s and 'such' %s {x}", "-rf", "a" * 200):
        make.add(f"folder named {text[:30]!r}", lambda folder: None, READ, to=text)
        make.add(
            f"file named {text[:30]!r}", lambda f, t=text: (f / LAST).rename(f / f"{t}.dcm") and None, SANE, damaged=""
        )
    make.add("file name that is no text", _not_text, SANE, damaged="")


def _fifo_for_folder(folder: Path) -> Path:
    os.mkfifo(folder.with_name("pipe"))
    return folder.with_name("pipe")


def _loop_for_folder(folder: Path) -> Path:
    loop = folder.with_name("loop")
    loop.symlink_to(loop)
    return loop


def _unreachable(folder: Path) -> Path:
    closed = folder.with_name("closed")
    closed.mkdir()
    shutil.copytree(folder, closed / "series")
    closed.chmod(0)
    return closed / "series"


def _not_text(folder: Path) -> None:
    try:
        os.rename(folder / LAST, os.path.join(os.fsencode(folder), b"\xff\xfe.dcm"))
    except OSError:  # macOS knows no such names
        pass
