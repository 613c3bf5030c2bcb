"""Faulty label files and faulty tables for `faults.run`, each made from good ones."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from conftest import neck_mask, patient_volume
from faults import EITHER, READ, REFUSED, SANE, Fault
from faults_dicom import SHAPE

STUDIES = ("1.2.826.0.1.3680043.21", "1.2.826.0.1.3680043.22")
LABELS = "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n" + "".join(
    f"{study},{values}\n" for study, values in zip(STUDIES, ("1,0,0,0,0,0,1,0", "0,0,0,0,0,0,0,0"), strict=True)
)
BOXES = f"StudyInstanceUID,x,y,width,height,slice_number\n{STUDIES[0]},2.0,1.0,3.0,2.5,6\n"


def corpus(seeds: int):
    """(faults, good) of label files and tables; nothing is written before one of them is built."""
    volume = patient_volume(SHAPE, seed=5)
    mask = neck_mask(SHAPE)
    stored, affine = _stored(volume, mask)
    masks = Masks(nib.Nifti1Image(stored.astype(np.uint16), affine).to_bytes())
    for part in (_intact, _cut_and_flipped, _headers, _values, _packed, _places):
        part(masks, volume, mask, seeds)
    tables = _tables()
    good = {
        "mask": {"hu": volume.hu, "affine": volume.affine, "mask": mask},
        "dataset": {"studies": np.array(STUDIES)},
    }
    return masks.faults + tables, good


# --------------------------------------------------------------------------------------------- label files


class Masks:
    """Collects faults of label files; each is one file of bytes, or made by hand."""

    def __init__(self, content: bytes):
        self.content, self.faults = content, []

    def bytes(self, name, content, expected=REFUSED, *, file="m.nii", says="", as_nobody=False):
        """`content` may be a function, for what takes long to make."""

        def build(home: Path) -> Path:
            (home / file).write_bytes(content() if callable(content) else content)
            if as_nobody:
                (home / file).chmod(0)
            return home / file

        self.faults.append(Fault(f"mask: {name}", "mask", build, expected, says, "mask", as_nobody=as_nobody))

    def image(self, name, image, expected=REFUSED, **options):
        stream = io.BytesIO()
        image.to_stream(stream)
        self.bytes(name, stream.getvalue(), expected, **options)

    def field(self, name, form, at, *values, expected=REFUSED, **options):
        """Other numbers at a place of the header (offsets as in nifti1.h)."""
        packed = struct.pack("<" + form, *values)
        self.bytes(name, self.content[:at] + packed + self.content[at + len(packed) :], expected, **options)

    def place(self, name, act, expected=REFUSED):
        def build(home: Path) -> Path:
            return act(home / "m.nii") or home / "m.nii"

        self.faults.append(Fault(f"mask: {name}", "mask", build, expected, "", "mask"))


def _stored(volume, mask):
    """The mask in the order LAS, and its affine."""
    flip = np.array([[0, 0, -1, mask.shape[0] - 1], [0, -1, 0, mask.shape[1] - 1], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    return mask[::-1, ::-1].transpose(2, 1, 0), volume.affine @ flip


def _intact(masks: Masks, volume, mask, seeds):
    stored, affine = _stored(volume, mask)
    masks.bytes("intact", masks.content, READ)
    masks.bytes("intact .nii.gz", gzip.compress(masks.content), READ, file="m.nii.gz")
    big = nib.Nifti1Header(endianness=">")
    big.set_data_dtype(np.uint16)
    masks.image("big-endian", nib.Nifti1Image(stored.astype(np.uint16), affine, big), READ)
    masks.image("NIfTI-2", nib.Nifti2Image(stored.astype(np.uint16), affine), READ)
    masks.image("uint32", nib.Nifti1Image(stored.astype(np.uint32), affine), READ)
    masks.image("float64 with whole numbers", nib.Nifti1Image(stored.astype(np.float64), affine), READ)
    masks.image("int64", nib.Nifti1Image(stored.astype(np.int64), affine, dtype=np.int64), READ)
    noted = nib.Nifti1Image(stored.astype(np.uint8), affine)
    noted.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made by hand " * 50))
    masks.image("with a comment in its header", noted, READ)
    masks.bytes("bytes after the last voxel", masks.content + bytes(1000), READ)
    for text in ("with spaces", "Übung Ω 日本", "two\nlines", "%s {x} 'q'"):
        masks.bytes(f"named {text!r}", masks.content, READ, file=f"{text}.nii")


def _cut_and_flipped(masks: Masks, volume, mask, seeds):
    content = masks.content
    for at in (0, 1, 3, 4, 40, 70, 112, 254, 340, 347, 348, 350, 352, 353, 400, 1000, 4000, 7000, -2, -1):
        masks.bytes(f"cut at {at}", content[:at] if at else b"")
    packed = gzip.compress(content)
    for at in (0, 1, 5, 10, 11, 20, len(packed) // 2, -9, -8, -5, -1):
        expected = EITHER if -10 < at < 0 else REFUSED  # every voxel is there
        masks.bytes(f"gzip cut at {at}", packed[:at] if at else b"", expected, file="m.nii.gz")
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        for name, last in (("header", 352), ("file", len(content))):
            changed = np.frombuffer(content, np.uint8).copy()
            for at in generator.integers(0, last, generator.integers(1, 4)):
                changed[at] ^= 1 << generator.integers(8) if seed % 2 else generator.integers(1, 256)
            masks.bytes(f"flipped {name} {seed}", changed.tobytes(), SANE)
        changed = np.frombuffer(packed, np.uint8).copy()
        for at in generator.integers(0, len(packed), 2):
            changed[at] ^= generator.integers(1, 256)
        masks.bytes(f"flipped gzip {seed}", changed.tobytes(), SANE, file="m.nii.gz")


def _headers(masks: Masks, volume, mask, seeds):
    huge = 32767
    masks.field("claims 32767 x 32767 x 32767", "4h", 40, 3, huge, huge, huge)
    claims = masks.content[:40] + struct.pack("<4h", 3, huge, huge, huge) + masks.content[48:]
    masks.bytes("claims 32767 x 32767 x 32767, gzip", gzip.compress(claims), file="m.nii.gz")
    masks.field("a negative size", "4h", 40, 3, -31, 24, 5)
    masks.field("a size of zero", "4h", 40, 3, 31, 0, 5)
    masks.field("no axes", "h", 40, 0)
    masks.field("nine axes", "h", 40, 9)
    masks.field("one axis", "h", 40, 1)
    masks.field("four axes, the last of length one", "5h", 40, 4, 31, 24, 5, 1, expected=EITHER)
    masks.field("sizeof_hdr 347", "i", 0, 347, expected=EITHER)
    masks.field("no magic", "4s", 344, b"abcd", expected=EITHER)
    masks.field("magic of a pair of files", "4s", 344, b"ni1\0", expected=EITHER)
    for offset in (1e30, -352.0, float("nan"), float("inf"), 0.0, 351.5, 1e9):
        masks.field(f"vox_offset {offset}", "f", 108, offset, expected=EITHER if offset in (0, 351.5) else REFUSED)
    for slope, inter in ((float("nan"), 0.0), (float("inf"), 0.0), (1.0, float("nan")), (1.0, float("inf"))):
        masks.field(f"scl_slope {slope}, scl_inter {inter}", "2f", 112, slope, inter, expected=EITHER)
    masks.field("scl_slope 0.5", "2f", 112, 0.5, 0.0)
    masks.field("scl_inter 1000", "2f", 112, 1.0, 1000.0)
    masks.field("scl_slope 1e38", "2f", 112, 1e38, 1e38)
    masks.field("unknown type", "2h", 70, 9999, 16)
    for code, bits, name in (
        (128, 24, "RGB"),
        (32, 64, "complex"),
        (1, 1, "binary"),
        (2304, 32, "RGBA"),
        (1536, 128, "float128"),
    ):
        masks.field(f"type {name}", "2h", 70, code, bits)
    masks.field("a type that disagrees with its bits", "2h", 70, 512, 8, expected=EITHER)
    masks.field("an extension of absurd length", "4B2i", 348, 1, 0, 0, 0, 0x7FFFFFF0, 6, expected=EITHER)
    masks.field("an extension of negative length", "4B2i", 348, 1, 0, 0, 0, -16, 6, expected=EITHER)
    masks.field("no place in the patient", "2h", 252, 0, 0)
    masks.field("NaN affine", "2h", 252, 0, 1)
    nan = masks.content[:280] + struct.pack("<12f", *[float("nan")] * 12) + masks.content[328:]
    masks.bytes("NaN in the affine", nan, EITHER)
    for name, numbers in {
        "NaN affine": [float("nan")] * 12, "singular affine": [0.0] * 12, "flat affine": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        "infinite affine": [float("inf")] * 12, "affine of 1e38": [1e38] * 12, "affine of 1e-38": [1e-38, 0, 0, 0] * 3,
        "affine of another place": [1, 0, 0, 500, 0, 1, 0, 0, 0, 0, 1, 0],
    }.items():  # fmt: skip
        only = masks.content[:252] + struct.pack("<2h", 0, 1) + masks.content[256:280]
        masks.bytes(f"{name}, no qform", only + struct.pack("<12f", *numbers) + masks.content[328:])
    masks.field("qform of NaN, no sform", "2h3f", 252, 1, 0, float("nan"), 0.0, 0.0)
    masks.field("quaternion longer than one", "2h3f", 252, 1, 0, 5.0, 5.0, 5.0)
    masks.faults = [f for f in masks.faults if f.name != "mask: NaN affine"]


def _values(masks: Masks, volume, mask, seeds):
    stored, affine = _stored(volume, mask)
    four = np.stack([stored, stored], axis=-1)
    masks.image("4-D", nib.Nifti1Image(four.astype(np.uint8), affine))
    masks.image("2-D", nib.Nifti1Image(stored[0].astype(np.uint8), affine))
    for value in (-1, 256, 1000, 32767):
        other = stored.astype(np.int16).copy()
        other[3, 4, 2] = value
        masks.image(f"a label {value}", nib.Nifti1Image(other, affine))
    for value in (1.5, float("nan"), float("inf"), -0.25, 1e300):
        other = stored.astype(np.float64).copy()
        other[3, 4, 2] = value
        masks.image(f"a label {value}", nib.Nifti1Image(other, affine))
    masks.image("labels of 2**63", nib.Nifti1Image(np.full(stored.shape, 2**63, np.uint64), affine, dtype=np.uint64))
    masks.image("complex labels", nib.Nifti1Image(stored.astype(np.complex64), affine))
    rgb = np.zeros(stored.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    masks.image("RGB labels", nib.Nifti1Image(rgb, affine))
    masks.image("one slice short", nib.Nifti1Image(stored[..., :-1].astype(np.uint8), affine))
    masks.image("mirrored", nib.Nifti1Image(stored.astype(np.uint8), np.diag([-1.0, 1, 1, 1]) @ affine))
    masks.image("the CT itself", nib.Nifti1Image(_stored(volume, volume.hu)[0], affine))


def _packed(masks: Masks, volume, mask, seeds):
    masks.bytes("gzip named .nii", gzip.compress(masks.content), EITHER)
    masks.bytes("plain named .nii.gz", masks.content, EITHER, file="m.nii.gz")
    masks.bytes("gzip of garbage", gzip.compress(np.random.default_rng(0).bytes(5000)), file="m.nii.gz")
    masks.bytes("gzip of nothing", gzip.compress(b""), file="m.nii.gz")
    masks.bytes("gzip with a wrong checksum", gzip.compress(masks.content)[:-8] + b"\1" * 8, EITHER, file="m.nii.gz")
    masks.bytes("text", b"labels of the neck, by hand\n" * 40)
    masks.bytes("text named .nii.gz", b"labels of the neck, by hand\n" * 40, file="m.nii.gz")
    masks.bytes("noise", np.random.default_rng(0).bytes(6000))
    masks.bytes("zeros", bytes(6000))
    masks.bytes("another suffix", masks.content, EITHER, file="m.img")
    masks.bytes("half of a pair", masks.content, EITHER, file="m.hdr")
    masks.bytes("no suffix", masks.content, EITHER, file="mask")
    for name, shape in (("of another grid", (2000, 2000, 1000)), ("with the right size", stored_shape(mask))):
        header = masks.content[:40] + struct.pack("<4h", 3, *shape) + masks.content[48:]
        masks.bytes(
            f"gzip bomb {name}", partial(_bomb, header), EITHER if "right" in name else REFUSED, file="m.nii.gz"
        )
    # As many voxels as promised, and as many axes as the CT: nothing but the grid tells.
    same = masks.content[:40] + struct.pack("<4h", 3, 31, 24, 32767) + masks.content[48:]
    masks.bytes("gzip of 24 million voxels on a grid too long", partial(_bomb, same), file="m.nii.gz")


def stored_shape(mask) -> tuple[int, ...]:
    return mask.shape[::-1]


def _bomb(start: bytes) -> bytes:
    """A gzip file of some megabytes: `start`, then four gigabytes of zeros (made of equal blocks, so at no cost)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + head + zeros * 256 + packer.flush(zlib.Z_FINISH) + bytes(8)


def _places(masks: Masks, volume, mask, seeds):
    masks.place("no such file", lambda path: None)
    masks.place("a folder", lambda path: path.mkdir())
    masks.place("a FIFO", lambda path: os.mkfifo(path))
    masks.place("a link to itself", lambda path: path.symlink_to(path))
    masks.place("a link to nowhere", lambda path: path.symlink_to("nowhere"))
    masks.place("a link to endless zeros", lambda path: path.symlink_to("/dev/zero"))
    masks.place("a file in place of its folder", _below_a_file)
    masks.place("a name too long", lambda path: path.with_name("m" * 300 + ".nii"))
    masks.bytes("a file nobody may read", masks.content, as_nobody=True)


def _below_a_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path / "m.nii"


# -------------------------------------------------------------------------------------------------- tables


def _write_dataset(home: Path, labels: bytes, boxes: bytes) -> Path:
    root = home / "rsna"
    (root / "segmentations").mkdir(parents=True)
    for study in STUDIES:
        (root / "train_images" / study).mkdir(parents=True)
    (root / "train.csv").write_bytes(labels)
    (root / "train_bounding_boxes.csv").write_bytes(boxes)
    return root


def _tables() -> list[Fault]:
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
    return faults


def _a_file_for(name: str):
    def act(root: Path) -> None:
        folder = root / name
        for path in folder.iterdir():
            path.rmdir()
        folder.rmdir()
        folder.write_text("not a folder")

    return act
