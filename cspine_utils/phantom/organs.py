"""Glands, oesophagus and large vessels of the neck as tubes along the spine: textbook values of a supine adult, mm."""

from __future__ import annotations

from .hounsfield import BLOOD_HU, GLAND_HU, PAROTID_HU, THYROID_HU
from .tracks import Tube

#: Glands, oesophagus and fat pads, painted after the muscles.
ORGANS: dict[str, Tube] = {
    "parotid": Tube(
        {
            "S": (56, -14, 7, 11, 95, 0),
            "C1": (55.5, -13, 8, 12, 95, 0),
            "C2": (51, -15, 6.5, 10, 95, 0),
            "C3": (47, -18, 2, 4, 95, 0),
        },
        PAROTID_HU,
        1.0,
    ),
    "submandibular": Tube(
        {
            "C2": (36, -38, 3, 6, 100, 0),
            "C3": (33, -40, 7, 11, 105, 0),
            "C4": (29, -38, 4, 7, 110, 0),
        },
        GLAND_HU,
        1.2,
        visceral=True,
    ),
    "thyroid gland": Tube(
        {
            "C5": (18.5, -27, 1.5, 4, 80, 0),
            "C6": (18, -29, 4.5, 9.5, 82, 0.012),
            "C7": (17, -31, 6.6, 11.5, 84, 0.010),
            "T1": (16.5, -31, 4.5, 8, 85, 0),
            "T2": (16, -31, 1.5, 3, 85, 0),
        },
        THYROID_HU,
        0.8,
        visceral=True,
    ),
    "isthmus": Tube(
        {
            "C6": (0, -41, 1.0, 6, 0, 0.012),
            "C7": (0, -42, 2.2, 11, 0, 0.018),
            "T1": (0, -41.5, 1.4, 9, 0, 0.018),
        },
        THYROID_HU,
        0.5,
        paired=False,
        visceral=True,
    ),
    "oesophagus": Tube(
        {
            "C5": (0, -14.5, 1.8, 9, 0, 0.004),
            "C6": (1, -16, 2.8, 8, 0, 0.004),
            "C7": (2.5, -17, 3.8, 7.5, 0, 0),
            "T1": (4, -18, 4.2, 7.5, 0, 0),
            "T3": (5, -17, 4.4, 8, 0, 0),
        },
        BLOOD_HU + 2,
        0.5,
        paired=False,
        visceral=True,
    ),
}

#: Vessels; their HU is replaced by that of contrast if it was given.
VESSELS: dict[str, Tube] = {
    "jugular": Tube(
        {
            "S": (30, -4, 3.6, 4.5, 60, 0),
            "C1": (32, -6, 3.8, 5, 60, 0),
            "C2": (34, -9, 4.2, 5.5, 50, 0),
            "C4": (34, -15.5, 4.4, 6.4, 50, 0),
            "C6": (33, -20.5, 4.6, 6.8, 40, 0),
            "T1": (29.5, -28, 5.0, 7.6, 30, 0),
            "T3": (26, -36, 5.5, 7.5, 20, 0),
        },
        BLOOD_HU + 2,
        1.0,
    ),
    "carotid": Tube(
        {
            "S": (23, -10, 2.6, 2.7, 0, 0),
            "C1": (25, -11.5, 2.6, 2.7, 0, 0),
            "C2": (26, -13, 2.7, 2.8, 0, 0),
            "C3": (26.5, -16, 3.3, 3.7, 0, 0),
            "C4": (26, -19.5, 3.6, 4.3, 45, 0),
            "C5": (24.5, -21, 3.4, 3.6, 0, 0),
            "C7": (23.5, -23, 3.4, 3.6, 0, 0),
            "T1": (22, -26, 3.5, 3.7, 0, 0),
            "T3": (17, -27, 3.8, 4, 0, 0),
        },
        BLOOD_HU,
        1.2,
    ),
    "external carotid": Tube(
        {
            "S": (46, -18, 1.4, 1.5, 0, 0),
            "C1": (44, -20, 1.7, 1.8, 0, 0),
            "C2": (36, -22, 2.0, 2.1, 0, 0),
            "C3": (30, -24, 2.3, 2.4, 0, 0),
            "C4": (27.5, -23, 2.2, 2.4, 0, 0),
        },
        BLOOD_HU,
        1.0,
    ),
}

#: Painted last: it lies under the skin.
EXTERNAL_JUGULAR = Tube(
    {
        "C2": (58, -13, 1.3, 1.5, 0, 0),
        "C4": (56, -4, 1.5, 2.0, 80, 0),
        "C6": (51, -12, 1.7, 2.2, 60, 0),
        "C7": (46, -16, 1.8, 2.4, 40, 0),
    },
    BLOOD_HU,
    0.8,
)
