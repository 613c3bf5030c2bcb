"""Tools for the course on cervical-spine fracture detection from CT.

This file imports nothing, so that ``cspine_utils/doctor.py`` can run on a machine
that has only Python. Import the rooms by name: ``from cspine_utils import dicom, nifti``.

Not for clinical use.
"""

__version__ = "0.1.0"
