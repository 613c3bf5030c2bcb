"""The thorough way through a DICOM header, by pydicom, for whatever the direct one does not know."""

from __future__ import annotations

import io
import logging
import math
import os
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import pydicom

from .elements import (
    ALSO,
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    NATIVE_SYNTAXES,
    WANTED,
    Elements,
    NotDicom,
    damaged,
    unreadable,
)

#: Where pydicom read the header, the mark that ends compressed pixels is looked for in this many bytes at the end.
_TAIL = 4096
_SEQUENCE_END_BYTES = bytes.fromhex("feffdde0")
_ALONE = threading.RLock()


class _Within(io.BufferedReader):
    """A file that is never asked for more than it has: a damaged length would reserve gigabytes."""

    def read(self, size=-1):
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextmanager
def quietly():
    """Keep back what pydicom warns and logs: it quotes values of the header, which may be a person's name.

    One thread at a time: filters and loggers belong to the process, and the thread that leaves last would put back
    what it found when it came, which is silence.
    """
    logger = logging.getLogger("pydicom")
    with _ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = before


def open_within(path: Path) -> io.BufferedReader:
    """Open a file for pydicom."""
    return _Within(io.FileIO(path))


def read_by_pydicom(path: Path) -> Elements:
    """The thorough way. Raises NotDicom or SeriesError."""
    try:
        with open_within(path) as file, quietly():
            start = file.read(132)
            if start[128:] != b"DICM" and not _may_be_bare(start):
                raise NotDicom
            file.seek(0)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            pixels_at = file.tell()
            size = file.seek(0, os.SEEK_END)
            file.seek(max(pixels_at, size - _TAIL))
            ended = _SEQUENCE_END_BYTES in file.read()
            values = {keyword: value for keyword in WANTED if (value := _from_dataset(dataset, keyword)) is not None}
            values.setdefault("TransferSyntaxUID", _syntax_of(dataset))
    except NotDicom:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # whatever bytes are in the file: pydicom raises many kinds of errors on them
        raise damaged(path, type(error).__name__) from None  # its message quotes the header
    complete = ended or values["TransferSyntaxUID"] in NATIVE_SYNTAXES
    return Elements(values, None, size - pixels_at, (), False, complete, dataset)


def _may_be_bare(start: bytes) -> bool:
    """A data set without preamble starts with group 0008 (or 0002), in either byte order."""
    return start[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")


def _syntax_of(dataset: pydicom.Dataset) -> str:
    """For files without a file meta header: what pydicom found out by looking."""
    implicit, little = dataset.original_encoding
    return IMPLICIT if implicit else EXPLICIT if little else BIG_ENDIAN


def _from_dataset(dataset: pydicom.Dataset, keyword: str):
    """The value of one element in the form of `decoded`; None where it is missing or empty."""
    source = dataset.file_meta if keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID") else dataset
    vr = WANTED[keyword][2]
    try:
        element = source.get(pydicom.datadict.tag_for_keyword(keyword))
        if element is None or (element.VR != vr and (element.VR, vr) not in ALSO):
            return None if element is None else ()
        value = element.value
        several = isinstance(value, pydicom.multival.MultiValue | list | tuple)
        if value is None or (value == "" and not several) or (several and not len(value)):
            return None
        if vr in ("CS", "UI", "LO"):
            return ("\\".join(map(str, value)) if several else str(value)).strip(" \0")
        numbers = tuple(float(v) for v in value) if several else (float(value),)
    except (TypeError, ValueError, OverflowError):
        return ()
    if vr == "DS":
        return numbers
    whole = tuple(int(v) for v in numbers if math.isfinite(v))
    return tuple(v & 0xFFFF for v in whole) if vr == "US" else whole
