"""The table of the ladder as the README shows it: made from data/ladder.csv, not typed."""

from __future__ import annotations

import pandas as pd

from .plan import RUNGS

#: What each rung is, in words.
WORDS = {
    "crops-easy": "one vertebra, easy fractures, beside its intact twin",
    "crops-torn": "the same with torn masks",
    "crops-standard": "one vertebra, standard fractures",
    "crops-longer": "standard fractures, as many passes again",
    "crops-hard": "the same model on hard fractures, not trained on them",
    "necks-balanced": "whole necks, easy, each level broken in every second neck",
    "necks-easy": "whole necks, easy, broken as often as in the real data",
    "necks-standard": "whole necks, standard, broken as often as in the real data",
    "few-boxes": "whole necks, easy, as often as in the real data: straight from torn crops, few boxes",
    "few-maps": "the same, but masks drawn by a network, in training and here",
}


def in_order(table: pd.DataFrame, by: tuple[str, str]) -> pd.DataFrame:
    """Rows sorted by the columns "rung", in the order of the ladder, and "seed"."""
    order = {name: place for place, name in enumerate(RUNGS)}
    return table.sort_values(list(by), key=lambda c: c.map(order) if c.name == "rung" else c, kind="stable")


def markdown(table: pd.DataFrame) -> str:
    """One line a rung and seed, in the order of the ladder, with a line for the head of the table.

    Parameters
    ----------
    table : as data/ladder.csv has it
    """
    table = in_order(table, ("rung", "seed"))
    head = (
        "", "learned from", "judged on", "AUROC (95 %)", "with torn masks", "before", "broken above its own twin",
        "loss beside the constant's", "skill", "minutes",
    )  # fmt: skip
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    several = table["seed"].nunique() > 1
    for row in table.to_dict("records"):
        alone = RUNGS[row["rung"]].kind == "crops"
        unit = "pairs" if alone else "necks"
        cells = [
            WORDS[row["rung"]] + (f", seed {row['seed']}" if several else ""),
            (f"{row['learned_from']:,} {unit}" if row["learned_from"] else "–")
            + (", start kept" if row.get("kept") == "start" else ""),
            f"{row['judged_on']:,} {unit}",
            f"{row['auroc']:.3f} ({row['auroc_low']:.3f}–{row['auroc_high']:.3f})",
            f"{row['auroc_torn']:.3f}",
            "" if alone else f"{row['auroc_before']:.3f}",
            f"{row['above_own_twin']:.1%}",
            "" if alone else f"{row['loss']:.3f} beside {row['constant']:.3f}",
            "" if alone else f"{row['skill']:.0%}",
            f"{row['train_seconds'] / 60:.0f}" if row["learned_from"] else "–",
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)
