"""Folders in RSNA-2022 form whose tables or folders are damaged."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
from faults import EITHER, READ, REFUSED, Fault

STUDIES = ("1.2.826.0.1.3680043.21", "1.2.826.0.1.3680043.22")
LABELS = "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n" + "".join(
    f"{study},{values}\n" for study, values in zip(STUDIES, ("1,0,0,0,0,0,1,0", "0,0,0,0,0,0,0,0"), strict=True)
)
BOXES = f"StudyInstanceUID,x,y,width,height,slice_number\n{STUDIES[0]},2.0,1.0,3.0,2.5,6\n"


def _write_dataset(home: Path, labels: bytes, boxes: bytes) -> Path:
    root = home / "rsna"
    (root / "segmentations").mkdir(parents=True)
    for study in STUDIES:
        (root / "train_images" / study).mkdir(parents=True)
    (root / "train.csv").write_bytes(labels)
    (root / "train_bounding_boxes.csv").write_bytes(boxes)
    return root


def corpus() -> tuple[list[Fault], dict]:
    """(faults, what the good tables hold)."""
    faults = []

    def add(name, expected=REFUSED, *, labels=LABELS, boxes=BOXES, says="", act=None, as_nobody=False):
        def build(home: Path) -> Path:
            made = (table() if callable(table) else table for table in (labels, boxes))
            root = _write_dataset(home, *(t if isinstance(t, bytes) else t.encode() for t in made))
            return (act and act(root)) or root

        faults.append(Fault(f"tables: {name}", "dataset", build, expected, says, "dataset", as_nobody=as_nobody))

    head, *rows = LABELS.splitlines(keepends=True)
    first = STUDIES[0]
    add("intact", READ)
    add("a mark of byte order", READ, labels=b"\xef\xbb\xbf" + LABELS.encode(), boxes=b"\xef\xbb\xbf" + BOXES.encode())
    add("quotes", READ, labels=LABELS.replace(first, f'"{first}"').replace("C1", '"C1"'))
    add("lines of Windows", READ, labels=LABELS.replace("\n", "\r\n"))
    add("no end of line at the end", READ, labels=LABELS.rstrip())
    add("empty lines", READ, labels=LABELS.replace("\n", "\n\n"))
    add("a column more", READ, labels="".join(f"{line},x\n" for line in LABELS.splitlines()))
    add("boxes of nobody", READ, boxes=BOXES.splitlines()[0] + "\n")
    add("boxes of nobody, no end of line", READ, boxes=BOXES.splitlines()[0])
    add("other columns first", READ, labels="".join(f"x,{line}\n" for line in LABELS.splitlines()))
    says = r"train\.csv"
    add("empty", labels=b"", says=says)
    add("columns only", EITHER, labels=head)
    add("NUL bytes", EITHER, labels=LABELS.replace(",0", ",\0"), says=says)
    add("NUL bytes only", labels=bytes(500), says=says)
    add("a NUL in an id", labels=LABELS.replace(first, first[:-2] + "\0" + "21"), says=says)
    add("UTF-16", labels=LABELS.encode("utf-16"), says=says)
    add("noise", labels=np.random.default_rng(0).bytes(5000), says=says)
    add("noise in the boxes", boxes=np.random.default_rng(0).bytes(5000), says="train_bounding_boxes")
    add("gzip", labels=gzip.compress(LABELS.encode()), says=says)
    add("semicolons", labels=LABELS.replace(",", ";"), says=says)
    add("a column missing", labels=LABELS.replace("C7", "C9"), says="C7")
    add("a column twice", labels=LABELS.replace("C7", "C6"), says="C7")
    add("a label column and its double", EITHER, labels=LABELS.replace("C7\n", "C7,C7\n").replace(",0\n", ",0,1\n"))
    add("other columns", labels="a,b,c\n1,2,3\n", says=says)
    add("a million columns", labels=lambda: ",".join(map(str, range(10**6))) + "\n", says=says)
    add("a name of a megabyte", labels=LABELS.replace("C7", "C" * 10**6), says=says)
    add("an id of a megabyte", labels=LABELS.replace(first, "1." * 5 * 10**5), says=says)
    add("a cell of a megabyte", labels=LABELS.replace("1,0\n", "1," + "x" * 10**6 + "\n"), says=says)
    add("a quote that never ends", labels=LABELS.replace(first, '"' + first), says=says)
    add("a row too long", labels=LABELS + STUDIES[1] + "9" + ",0" * 20 + "\n", says=says)
    add("a row too short", labels=LABELS + STUDIES[1] + "9,0\n", says=says)
    add("an id more than once", labels=LABELS + rows[0], says="once|times|one row")
    for bad in (
        "../../etc",
        "/etc/passwd",
        "..",
        ".",
        "a/b",
        "",
        "nan",
        " ",
        "1.2\t",
        "a\\b",
        "C:",
        "%2e%2e",
        "\u202e1.2",
        "~root",
    ):
        expected = EITHER if bad == "nan" else REFUSED
        add(f"the id {bad!r}", expected, labels=LABELS.replace(first, bad), boxes=BOXES.replace(first, bad), says=says)
    for bad in ("2", "-1", "0.5", "", "nan", "inf", "yes", "1e999", "9" * 400, "0x1", "1_0"):
        add(f"the label {bad[:10]!r}", labels=LABELS.replace("1,0\n", f"{bad},0\n"), says=says)
    add("an overall label that disagrees", labels=LABELS.replace(f"{first},1", f"{first},0"), says="patient_overall")
    for bad in ("left", "", "nan", "inf", "-inf", "1e999", "9" * 30, "6.5", "-3", "0"):
        expected = EITHER if bad == "0" else REFUSED
        add(f"a box in slice {bad[:10]!r}", expected, boxes=BOXES.replace(",6\n", f",{bad}\n"), says="train_bounding")
    for bad in ("wide", "nan", "inf", "-1e999"):
        add(f"a box {bad} wide", boxes=BOXES.replace("3.0", bad), says="train_bounding")
    add("a box of an unknown study", boxes=BOXES.replace(first, "1.2.3"), says="train_bounding")
    add("boxes without columns", boxes="1,2,3\n", says="train_bounding")
    add("no such folder", act=lambda root: root / "absent")
    add("a file in place of the folder", act=lambda root: root / "train.csv")
    for name in ("train.csv", "train_bounding_boxes.csv"):
        add(f"{name} absent", act=lambda root, n=name: (root / n).unlink(), says=name)
        add(f"{name} a folder", act=lambda root, n=name: (root / n).unlink() or (root / n).mkdir(), says=name)
        add(f"{name} a FIFO", act=lambda root, n=name: (root / n).unlink() or os.mkfifo(root / n), says=name)
        add(f"{name} a link to itself", act=lambda r, n=name: (r / n).unlink() or (r / n).symlink_to(r / n), says=name)
        add(f"{name} endless", act=lambda r, n=name: (r / n).unlink() or (r / n).symlink_to("/dev/zero"), says=name)
        add(f"{name} nobody may read", act=lambda root, n=name: (root / n).chmod(0), says=name, as_nobody=True)
    add("a folder nobody may enter", act=lambda root: root.chmod(0), as_nobody=True)
    for name in ("train_images", "segmentations"):
        add(f"{name} nobody may enter", act=lambda root, n=name: (root / n).chmod(0), says=name, as_nobody=True)
    add("train_images a file", act=_a_file_for("train_images"), says="train_images")
    add("segmentations a file", act=_a_file_for("segmentations"), says="segmentations")
    add("a study that is a file", act=_a_file_for(f"train_images/{first}"), says=first)
    add("a study that is absent", act=lambda root: (root / "train_images" / first).rmdir(), says=first)
    add("a label file that is a folder", EITHER, act=lambda root: (root / "segmentations" / f"{first}.nii").mkdir())
    return faults, {"studies": np.array(STUDIES)}


def _a_file_for(name: str):
    def act(root: Path) -> None:
        folder = root / name
        for path in folder.iterdir():
            path.rmdir()
        folder.rmdir()
        folder.write_text("not a folder")

    return act
