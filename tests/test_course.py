"""The one command: what it runs, skips, prints, and where it puts what it made."""

import re
import shutil

import nbformat
import pandas as pd
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_notebook

from cspine_utils import course

PARAMETERS = 'data_dir: str = "d"\nwork_dir: str = "w"\nfigures_dir: str = "f"'
FIRST = "from pathlib import Path\nPath(figures_dir).mkdir(parents=True, exist_ok=True)\n"
FIRST += "(Path(figures_dir) / '01.png').write_text(data_dir)"
SECOND = "from pathlib import Path\nout = Path(work_dir) / '02'\nout.mkdir(exist_ok=True)\n"
SECOND += "(out / 'loss_table.csv').write_text('model,validation loss,validation constant\\nvit,0.41234,0.40567\\n')"


def write_notebook(path, code):
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(code)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small copy of the repository with two quick notebooks."""
    root = tmp_path / "repository"
    (root / "notebooks").mkdir(parents=True)
    (root / "cspine_utils").mkdir()
    (root / "cspine_utils" / "room.py").write_text("x = 1\n")
    shutil.copy(ROOT / "pyproject.toml", root)
    write_notebook(root / "notebooks" / "01_first.ipynb", FIRST)
    write_notebook(root / "notebooks" / "02_second.ipynb", SECOND)
    monkeypatch.setattr(course, "ROOT", root)
    monkeypatch.setattr(course, "PHANTOM", root / "data" / "phantom")
    monkeypatch.setattr(course, "MIN_MASKS", 3)  # as many as the small test folder has
    return root


def run(capsys, data):
    code = course.main(["--data", str(data)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_second_call_redoes_only_what_changed(repository, rsna_folder, capsys):
    code, out, _ = run(capsys, rsna_folder)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("[1/2] 01_first") and "made figures/01.png" in lines[0] and " s " in lines[0]
    assert lines[1].startswith("[2/2] 02_second") and "02/loss_table.csv" in lines[1]
    assert "0.412" in out and "0.406" in out, "the final table"
    assert "Figures:" in out and "Next:" in out

    def states():
        out = run(capsys, rsna_folder)[1].splitlines()[:2]
        return ["unchanged" if "unchanged" in line else "ran" for line in out]

    assert states() == ["unchanged", "unchanged"]
    write_notebook(repository / "notebooks" / "01_first.ipynb", FIRST + "\n1 + 1")
    assert states() == ["ran", "unchanged"]
    work, figures = course.folders(rsna_folder)
    (figures / "01.png").unlink()
    assert states() == ["ran", "unchanged"], "its product was missing"
    (work / "02" / "loss_table.csv").write_text("model,validation loss,validation constant\nother,0.1,0.2\n")
    assert states() == ["unchanged", "ran"], "somebody else wrote over its product"
    image = next((rsna_folder / "train_images").rglob("3.dcm"))
    image.write_bytes(image.read_bytes()[:-2])
    assert states() == ["ran", "ran"], "an image was changed in place"
    (repository / "cspine_utils" / "room.py").write_text("x = 2\n")
    assert states() == ["ran", "ran"], "the package changed"
    table = pd.read_csv(rsna_folder / "train_bounding_boxes.csv")
    table.iloc[1:].to_csv(rsna_folder / "train_bounding_boxes.csv", index=False)
    assert states() == ["ran", "ran"], "the data changed"
    assert states() == ["unchanged", "unchanged"]


def test_nothing_made_from_another_folder_lands_among_the_committed_files(repository, rsna_folder, capsys):
    run(capsys, rsna_folder)
    work, figures = course.folders(rsna_folder)
    assert work.parent == repository / "data" / "runs" and figures.parent == work
    assert (figures / "01.png").read_text() == str(rsna_folder), "the notebook was given the folder"
    made = {path.relative_to(repository).parts[0] for path in repository.rglob("*") if path.is_file()}
    assert made == {"notebooks", "cspine_utils", "pyproject.toml", "data"}
    assert course.folders(course.PHANTOM) == (repository / "data" / "runs" / "phantom", repository / "figures")


def test_studies_that_failed_are_listed_at_the_end(repository, rsna_folder, capsys):
    code = FIRST + "\n(Path(work_dir) / 'studies.csv').write_text("
    code += "'study,status,reason\\n1.2,made,\\n1.3,failed,cut short: download it again\\n1.4,skipped,no label map\\n')"
    write_notebook(repository / "notebooks" / "01_first.ipynb", code)
    _, out, _ = run(capsys, rsna_folder)
    assert "Studies: 1 failed, 1 made, 1 skipped" in out
    assert "1.3: cut short: download it again" in out and "1.4:" not in out


def test_two_folders_of_one_name_do_not_share_results(tmp_path):
    assert course.folders(tmp_path / "a" / "rsna") != course.folders(tmp_path / "b" / "rsna")


def test_a_failing_notebook_stops_with_its_cell(repository, rsna_folder, capsys):
    write_notebook(repository / "notebooks" / "01_first.ipynb", "raise ValueError('no C8')")
    code, out, err = run(capsys, rsna_folder)
    assert code == 1 and "ValueError in cell [3]: no C8" in err and "02_second" not in out
    write_notebook(repository / "notebooks" / "01_first.ipynb", FIRST)
    assert run(capsys, rsna_folder)[0] == 0


def test_a_wrong_folder_is_one_sentence(repository, tmp_path, capsys):
    code, out, err = run(capsys, tmp_path / "absent")
    assert code == 1 and out == "" and err.count("\n") == 1 and "no such folder" in err
    (tmp_path / "empty").mkdir()
    code, out, err = run(capsys, tmp_path / "empty")
    assert code == 1 and "train_images" in err and "What to do" in err


def test_too_few_label_maps_are_said_before_anything_runs(repository, rsna_folder, capsys):
    next((rsna_folder / "segmentations").iterdir()).unlink()
    code, out, err = run(capsys, rsna_folder)
    assert code == 1 and out == "" and "of 2 of 4 studies" in err and "at least 3" in err


GRID_PARAMETERS = 'data_dir: str = "d"\nstore_dir: str = "s"\nrun_dir: str = "r"\nrate: float = 0.5'
GRID_CODE = "import json\nfrom pathlib import Path\nassert rate < 1\n"
GRID_CODE += "(Path(run_dir) / 'metrics.json').write_text(json.dumps({'loss': rate / 4, 'data': data_dir}))"


def test_a_grid_runs_on_the_data_and_tells_by_its_exit_code(repository, rsna_folder, capsys):
    cells = [new_code_cell(GRID_PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(GRID_CODE)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), repository / "notebooks" / "unit.ipynb")
    profile = repository / "notebooks" / "profiles" / "small.yml"
    profile.parent.mkdir()
    profile.write_text("notebook: ../unit.ipynb\ngrid:\n  rate: [0.5, 0.25]\n")
    arguments = ["--data", str(rsna_folder), "--grid", "notebooks/profiles/small.yml"]
    assert course.main(arguments) == 0
    out = capsys.readouterr().out
    assert "0.125" in out and "0.0625" in out and str(rsna_folder) in out
    work, _ = course.folders(rsna_folder)
    assert len(list((work / "grids" / "small").glob("*/metrics.json"))) == 2
    assert course.main(arguments) == 0 and capsys.readouterr().out.count(": kept") == 2
    profile.write_text("notebook: ../unit.ipynb\ngrid:\n  rate: [0.5, 2.0]\n")
    assert course.main(arguments) == 1
    assert "FAILED" in capsys.readouterr().out
    profile.write_text("notebook: ../unit.ipynb\ngrid:\n  rte: [0.5]\n")
    assert course.main(arguments) == 1
    assert "did you mean 'rate'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("notebook: ../unit.ipynb\ngrid: {seed: 1}\n", "found {'seed': 1}"),
     ("notebook: ../unit.ipynb\ngrid: [{rte: 0.5}]\n", "small.yml.*did you mean 'rate'")],
)  # fmt: skip
def test_a_wrong_grid_is_told_before_the_cohort_is_made(repository, monkeypatch, capsys, text, said):
    monkeypatch.setattr(course, "make_cohort", lambda data: pytest.fail("minutes of rendering"))
    profile = repository / "notebooks" / "profiles" / "small.yml"
    profile.parent.mkdir()
    cells = [new_code_cell('run_dir: str = ""\nrate: float = 0.1', metadata={"tags": ["parameters"]})]
    nbformat.write(new_notebook(cells=cells), repository / "notebooks" / "unit.ipynb")
    if text:
        profile.write_text(text)
    assert course.main(["--grid", "notebooks/profiles/small.yml"]) == 1
    assert re.search(said, capsys.readouterr().err)
    with pytest.raises(SystemExit):
        course.main(["--grid", "notebooks/profiles/small.yml", "--in-place"])


def test_a_grid_of_runs_is_one_entry_of_the_summary(tmp_path):
    runs = [tmp_path / "09" / "grid" / f"run{i}" / "training" / name for i in range(3) for name in ("a.csv", "b.json")]
    single = [tmp_path / "09" / "loss_table.csv", tmp_path / "figures" / "x.png"]
    made = course._summary([*runs, *single], tmp_path)
    assert made == "grid/ (6 files), 09/loss_table.csv, figures/x.png"


def test_a_notebook_that_runs_grids_is_run_again_when_a_grid_changes(repository, rsna_folder, capsys):
    (repository / "notebooks" / "profiles").mkdir()
    profile = repository / "notebooks" / "profiles" / "small.yml"
    profile.write_text("rate: 1")
    write_notebook(repository / "notebooks" / "experiment.ipynb", "1")
    write_notebook(repository / "notebooks" / "02_second.ipynb", SECOND + "\nrun = 'run_grid(...)'")

    def states():
        lines = run(capsys, rsna_folder)[1].splitlines()[:2]
        return ["unchanged" if "unchanged" in line else "ran" for line in lines]

    assert states() == ["ran", "ran"] and states() == ["unchanged", "unchanged"]
    profile.write_text("rate: 2")
    assert states() == ["unchanged", "ran"]
    write_notebook(repository / "notebooks" / "experiment.ipynb", "2")
    assert states() == ["unchanged", "ran"]
