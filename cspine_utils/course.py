"""The whole course on one command: cohort, notebooks in order, figures, final table.

    python -m cspine_utils.course [--data DIR]      what `make course` calls
    python -m cspine_utils.course --cohort-only     only the synthetic cohort
    python -m cspine_utils.course --in-place        for authors: keep the outputs in notebooks/
    python -m cspine_utils.course --grid FILE       a grid of runs on the same data, what `make ablations` calls

Without --data the synthetic cohort is used and figures go to figures/. With another folder everything
made from it, figures included, stays under data/runs/, which git ignores: nothing made from licensed
images may be committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd

from cspine_utils.errors import CSpineError, DatasetError
from cspine_utils.rsna import RsnaDataset
from cspine_utils.runs import check_grid, collect, notebook_parameters, read_grid, run_grid, run_notebook

ROOT = Path(__file__).resolve().parents[1]
PHANTOM = ROOT / "data" / "phantom"
#: The cohort that the committed notebooks show.
COHORT = {"studies": 48, "seed": 2022, "size": 128}
#: Studies with a label map that the notebooks cannot do without.
MIN_MASKS = 6


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cspine_utils.course", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(PHANTOM), help="a folder in RSNA-2022 form (default: the phantom)")
    parser.add_argument("--cohort-only", action="store_true", help="make the synthetic cohort and stop")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--in-place", action="store_true", help="write the outputs into notebooks/ (for authors)")
    way.add_argument("--grid", help="a grid file, e.g. notebooks/profiles/ablation.yml: run it and print its table")
    options = parser.parse_args(arguments)
    data = (ROOT / options.data).resolve()
    try:
        if options.grid:
            check_grid(ROOT / options.grid)  # before the cohort, which takes minutes
        make_cohort(data)
        if options.grid:
            return run_profile(data, ROOT / options.grid)
        if not options.cohort_only:
            run_course(data, in_place=options.in_place)
    except CSpineError as error:
        print(f"course: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"course: {error}. What to do: check free space and permissions, then call again.", file=sys.stderr)
        return 1
    return 0


def make_cohort(data: Path) -> None:
    """Write the synthetic cohort if `data` is its folder; a finished one is left as it is."""
    if data != PHANTOM:
        return
    from cspine_utils.phantom import write_cohort  # torch takes seconds to import and a real folder needs none

    started = time.perf_counter()
    write_cohort(data, **COHORT, workers=None)
    print(f"cohort: {COHORT['studies']} synthetic studies in {_shown(data)}, {time.perf_counter() - started:.0f} s")


def run_course(data: Path, *, in_place: bool = False) -> None:
    """Run the notebooks in order, skip those that nothing has changed for, print the final table."""
    dataset = RsnaDataset(data)
    _check_enough(dataset)
    work, figures = folders(data)
    data_state = _data_state(dataset)
    # experiment.ipynb is no chapter: notebook 09 runs it. Its own stored outputs are for authors to renew.
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb" if in_place else "[0-9][0-9]_*.ipynb"))
    notebooks = [path for path in notebooks if not path.name.endswith(".failed.ipynb")]  # what an earlier run left
    for number, notebook in enumerate(notebooks, start=1):
        parameters = _parameters(notebook, data, work, figures)
        line = f"[{number}/{len(notebooks)}] {notebook.stem:<32}"
        out = notebook if in_place else work / "notebooks" / notebook.name
        stamp = work / "notebooks" / f"{notebook.stem}.json"
        fingerprint = _fingerprint(notebook, data_state, parameters)
        if not in_place and _is_current(stamp, fingerprint):
            print(f"{line}   unchanged", flush=True)
            continue
        print(line, end="", flush=True)
        before, started = _products(work, figures), time.perf_counter()
        # In place the defaults run: papermill would add a cell with the values that it was given.
        run_notebook(notebook, out, {} if in_place else parameters)
        seconds = time.perf_counter() - started
        made = {p: state for p, state in _products(work, figures).items() if before.get(p) != state}
        print(f" {seconds:5.0f} s   made {_summary(made, work) or 'no files'}", flush=True)
        if in_place:
            _drop_run_metadata(notebook)
            continue
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(
            json.dumps(
                {"fingerprint": fingerprint, "made": {str(p): state for p, state in made.items()}, "seconds": seconds}
            )
        )
    _print_result(work, figures)


def run_profile(data: Path, profile: Path) -> int:
    """Run a grid on the data, in a folder of its own; print its table; 1 if a run failed, else 0."""
    _check_enough(RsnaDataset(data))
    work, _ = folders(data)
    out = work / "grids" / profile.stem
    file = read_grid(profile)
    common = {"data_dir": str(data), "store_dir": str(work)} | file["common"]
    report = run_grid(
        file["notebook"], file["grid"], out, common=common, inputs=_data_state(RsnaDataset(data)), rerun_changed=True
    )
    table = collect(out, report.index)
    columns = [c for c in table.columns if c not in ("data_dir", "store_dir", "notebook")]
    print(f"\n{table[columns].set_index('run').T.to_string(float_format=lambda v: f'{v:.4g}')}")
    print(f"\nRuns: {_shown(out)}")
    return int((report["status"] == "failed").any())


def _check_enough(dataset: RsnaDataset) -> None:
    """Say at once, not after minutes, that there is too little to learn from and to judge by."""
    masks = sum(dataset.mask_path(study) is not None for study in dataset.studies)
    if masks < MIN_MASKS:
        raise DatasetError(
            dataset.root / "segmentations",
            found=f"label maps (<StudyInstanceUID>.nii) of {masks} of {len(dataset.studies)} studies",
            expected=f"at least {MIN_MASKS}: the six-channel stacks need them, and the set is split in two",
            remedy="add label maps, unpacked from .nii.gz if need be, or use the synthetic cohort (make course).",
        )


def folders(data: Path) -> tuple[Path, Path]:
    """(work, figures) for a data folder: tables, stacks and executed notebooks; pictures."""
    if data == PHANTOM:
        return ROOT / "data" / "runs" / "phantom", ROOT / "figures"
    name = f"{data.name}-{hashlib.sha256(str(data).encode()).hexdigest()[:8]}"
    work = ROOT / "data" / "runs" / name
    return work, work / "figures"


def _parameters(notebook: Path, data: Path, work: Path, figures: Path) -> dict:
    ours = {"data_dir": str(data), "work_dir": str(work), "figures_dir": str(figures)}
    return {name: ours[name] for name in notebook_parameters(notebook) if name in ours}


def _data_state(dataset: RsnaDataset) -> str:
    """Changes with the tables, and with name, size or time of any image or label map. Nothing is opened but tables."""
    digest = hashlib.sha256()
    for name in ("train.csv", "train_bounding_boxes.csv"):
        digest.update((dataset.root / name).read_bytes())
    for folder in ("train_images", "segmentations"):
        for path in sorted((dataset.root / folder).rglob("*")):
            state = path.lstat()
            digest.update(f"{path.relative_to(dataset.root)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _fingerprint(notebook: Path, data_state: str, parameters: dict) -> str:
    """Changes with the notebook's code, the package, its pins, the data, the parameters, and the grids that it runs."""
    digest = hashlib.sha256(json.dumps([data_state, parameters], sort_keys=True).encode())
    source = "".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells)
    digest.update(source.encode())
    if "run_grid(" in source:  # what it runs, and with which settings, is written in other files
        folder = notebook.parent
        for path in [folder / "experiment.ipynb", *sorted((folder / "profiles").glob("*.yml"))]:
            digest.update(path.read_bytes())
    for path in [ROOT / "pyproject.toml", *sorted((ROOT / "cspine_utils").rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_current(stamp: Path, fingerprint: str) -> bool:
    try:
        known = json.loads(stamp.read_text())
        return known["fingerprint"] == fingerprint and all(_state(Path(p)) == s for p, s in known["made"].items())
    except (OSError, ValueError, KeyError):
        return False


def _products(work: Path, figures: Path) -> dict[Path, list[int]]:
    """Everything a notebook may have made -> its size and the time of its last change."""
    places = [p for folder in (work, figures) if folder.is_dir() for p in folder.rglob("*")]
    return {p: _state(p) for p in places if p.is_file() and p.parent.name != "notebooks"}


def _state(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _summary(made, work: Path) -> str:
    """`figures/a.png, stacks/ (36 files)`: single files by name, many of a folder as a count.

    Below `work`, what lies deeper than two folders is counted there: a grid of runs is one entry.
    """
    folders: dict[Path, list[str]] = {}
    for path in made:
        folder = path.parent
        if folder.is_relative_to(work):
            folder = work.joinpath(*folder.relative_to(work).parts[:2])
        folders.setdefault(folder, []).append(path.name)
    parts = []
    for folder, names in folders.items():
        if len(names) > 3 and folder.name != "figures":
            parts.append(f"{folder.name}/ ({len(names)} files)")
        else:
            parts.extend(f"{folder.name}/{name}" for name in sorted(names))
    return ", ".join(parts)


def _drop_run_metadata(notebook: Path) -> None:
    """Leave no times and paths of the author's machine in a committed notebook."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("papermill", None)
    for cell in content.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    nbformat.write(content, notebook)


def _print_failed(path: Path, most: int = 10) -> None:
    """Which studies could not be used, with their reasons: none is lost silently."""
    if not path.is_file():
        return
    table = pd.read_csv(path, dtype=str)
    failed = table[table["status"] == "failed"]
    counts = ", ".join(f"{n} {status}" for status, n in table["status"].value_counts().sort_index().items())
    print(f"\nStudies: {counts} ({_shown(path)})")
    for _, row in failed.head(most).iterrows():
        print(f"  {row['study']}: {row['reason']}")
    if len(failed) > most:
        print(f"  ... and {len(failed) - most} more")


def _print_result(work: Path, figures: Path) -> None:
    _print_failed(work / "studies.csv")
    tables = sorted(work.glob("*/loss_table.csv"))
    for path in tables:
        table = pd.read_csv(path).set_index("model").T
        print(f"\n{path.parent.name}\n{table.to_string(float_format=lambda v: f'{v:.3f}')}")
    if tables:
        print("\nLoss: mean binary cross-entropy over the eight targets. The constant knows only how often each target")
        print(
            "occurs in the training studies; the majority answers what is more frequent. A model has learned something"
        )
        print("that carries over if the whole interval of the difference (validation loss minus constant) lies below")
        print("zero; one loss below the constant is no proof.")
    print()
    print(f"Figures: {_shown(figures)}   executed notebooks: {_shown(work / 'notebooks')}   tables: {_shown(work)}")
    print("Next: `make lab` opens the notebooks; README.md says how to name the real RSNA-2022 folder.")


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
