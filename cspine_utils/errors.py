"""Errors that a reader can act on.

Every error of this package says where it happened, what was found, what was expected and
what to do. A cohort run catches `CSpineError`, lists the study with the message as its
reason, and goes on; anything else that escapes is a bug.
"""

from __future__ import annotations

import os
from numbers import Integral


class CSpineError(Exception):
    """Base of all errors of this package.

    Parameters
    ----------
    where : the file, folder or argument at fault
    found : what is there
    expected : what should be there
    remedy : what the reader can do about it
    """

    def __init__(self, where: str | os.PathLike, *, found: str, expected: str, remedy: str):
        self.where, self.found, self.expected, self.remedy = str(where), found, expected, remedy
        super().__init__(f"{self.where}: found {found}; expected {expected}. What to do: {remedy}")

    def __reduce__(self):  # keyword-only arguments do not survive the default pickling of exceptions
        return _rebuild, (type(self), self.where, self.found, self.expected, self.remedy)


def _rebuild(kind, where, found, expected, remedy):
    return kind(where, found=found, expected=expected, remedy=remedy)


def brief(value, length: int = 80) -> str:
    """What a file says, cut to a length that a message can hold."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


class DatasetError(CSpineError):
    """The RSNA-2022 folder or one of its tables does not have the expected form."""


class StudyError(CSpineError):
    """A study id is unknown, unsafe, or has no images."""


class SeriesError(CSpineError):
    """A DICOM series cannot be read as one evenly spaced CT volume."""


class MaskError(CSpineError):
    """A label map cannot be read, or holds something other than labels."""


class GridMismatch(MaskError):
    """A label map lies on another grid than the CT volume it should describe."""


class StackError(CSpineError):
    """A study cannot be turned into a six-channel stack, or a store is inconsistent."""


class ModelError(CSpineError):
    """A model was asked for a shape or an option that it cannot have."""


class TrainingError(CSpineError):
    """Training cannot start or go on."""


class WorklistError(CSpineError):
    """A reading room that cannot be, or that a formula does not cover."""


class ParameterError(CSpineError):
    """A function, notebook or command line was given a name or value that it does not take."""


def check_whole_number(name: str, value, least: int) -> None:
    """Raise ParameterError unless the argument is a whole number from `least` up."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ParameterError(
            name, found=repr(value), expected=f"a whole number from {least} up", remedy="count in whole numbers"
        )
