"""The words every other room uses: seven cervical levels, eight targets, label ids.

Label ids are those of the RSNA-2022 label maps: 1-7 = C1-C7, 8-19 = T1-T12, 0 = everything else.
"""

from __future__ import annotations

LEVELS: tuple[str, ...] = ("C1", "C2", "C3", "C4", "C5", "C6", "C7")
TARGETS: tuple[str, ...] = (*LEVELS, "patient_overall")

LABEL_IDS: dict[str, int] = {
    **{level: i for i, level in enumerate(LEVELS, start=1)},
    **{f"T{i}": 7 + i for i in range(1, 13)},
}
LABEL_NAMES: dict[int, str] = {label: name for name, label in LABEL_IDS.items()}

CERVICAL_IDS = range(1, 8)
