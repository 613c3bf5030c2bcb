import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cspine_utils import runs
from cspine_utils.errors import ParameterError
from cspine_utils.runs import (
    NotebookError,
    check_parameters,
    collect,
    notebook_parameters,
    package_code,
    read_grid,
    run_grid,
    run_notebook,
)

PARAMETERS = 'rate: float = 3.0e-4\nepochs: int = 2\nname: str = "a"\nshuffle: bool = False'


@pytest.fixture
def notebook(tmp_path):
    cells = [
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell("from pathlib import Path\nPath('made.txt').write_text(f'{rate} {epochs} {name} {shuffle}')"),
    ]
    path = tmp_path / "source" / "n.ipynb"
    path.parent.mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_names_types_and_defaults_are_read(notebook):
    assert notebook_parameters(notebook) == {
        "rate": ("float", 3e-4), "epochs": ("int", 2), "name": ("str", "a"), "shuffle": ("bool", False),
    }  # fmt: skip


def test_values_of_the_right_type_pass(notebook):
    checked = check_parameters(notebook, {"rate": 1, "epochs": 5, "shuffle": True})
    assert checked == {"rate": 1.0, "epochs": 5, "shuffle": True} and isinstance(checked["rate"], float)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"zzz": 3}, "one of rate, epochs, name, shuffle"),
        ({"rate": "1e-4"}, "type str.*1.0e-4"),
        ({"epochs": 2.0}, "type float.*type int"),
        ({"epochs": True}, "type bool.*type int"),
        ({"shuffle": 1}, "type int.*type bool"),
        ({"name": 3}, "type str"),
    ],
)
def test_misspelt_names_and_wrong_types_are_refused_before_anything_runs(notebook, tmp_path, values, said):
    with pytest.raises(ParameterError, match=said):
        run_notebook(notebook, tmp_path / "out.ipynb", values)
    assert not (tmp_path / "out.ipynb").exists() and not (notebook.parent / "made.txt").exists()


def test_a_notebook_runs_in_its_own_folder_with_its_parameters(notebook, tmp_path):
    run_notebook(notebook, tmp_path / "runs" / "out.ipynb", {"rate": 0.5, "name": "b"})
    assert (notebook.parent / "made.txt").read_text() == "0.5 2 b False"
    executed = nbformat.read(tmp_path / "runs" / "out.ipynb", as_version=4)
    assert "rate = 0.5" in "".join(cell.source for cell in executed.cells)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["out.ipynb"]


def test_a_failing_cell_is_named_and_leaves_no_finished_copy(notebook, tmp_path):
    content = nbformat.read(notebook, as_version=4)
    content.cells.append(new_code_cell("raise KeyError('C9')"))
    nbformat.write(content, notebook)
    with pytest.raises(NotebookError, match=r"KeyError in cell \[3\]: 'C9'.*out\.failed\.ipynb"):
        run_notebook(notebook, tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists() and (tmp_path / "out.failed.ipynb").exists()


# ---- grids

GRID_PARAMETERS = 'rate: float = 3.0e-4\nepochs: int = 2\nrun_dir: str = ""'
WORK = """import json
from pathlib import Path
with open(Path(run_dir).parent / "log.txt", "a") as log:
    log.write(f"{rate}\\n")
assert rate < 0.9, "too fast"
(Path(run_dir) / "metrics.json").write_text(json.dumps({"loss": rate * epochs, "epochs": -1}))"""
ROWS = [{"rate": 0.5, "epochs": 3}, {"rate": 0.95}, {"rate": 0.25}]


def write_grid_notebook(path, work=WORK):
    cells = [new_code_cell(GRID_PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell(work)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture
def work(tmp_path):
    return write_grid_notebook(tmp_path / "source" / "work.ipynb")


def ran(out) -> list[str]:
    """The rates that really ran, in order."""
    log = out / "log.txt"
    return log.read_text().split() if log.exists() else []


def quiet(_):
    pass


def test_a_failing_run_is_listed_with_its_cell_and_the_rest_goes_on(work, tmp_path):
    out, said = tmp_path / "runs", []
    report = run_grid(work, ROWS, out, say=said.append)
    assert list(report["status"]) == ["made", "failed", "made"]
    assert "AssertionError in cell [3]: too fast" in report["reason"].iloc[1]
    assert ran(out) == ["0.5", "0.95", "0.25"]
    assert len(said) == 3 and "[2/3] rate=0.95" in said[1] and "FAILED" in said[1]
    for name, status in report["status"].items():
        files = {path.name for path in (out / name).iterdir()}
        made = {"run.json", "metrics.json", "work.ipynb"}
        assert files == (made if status == "made" else {"run.json", "work.failed.ipynb"})


def test_collect_gives_parameters_metrics_and_failures_in_the_order_of_the_grid(work, tmp_path):
    run_grid(work, ROWS, tmp_path / "runs", common={"epochs": 7}, say=quiet)
    table = collect(tmp_path / "runs")
    assert list(table["status"]) == ["finished", "failed", "finished"]
    assert list(table["rate"]) == [0.5, 0.95, 0.25] and list(table["epochs"]) == [3, 7, 7]
    assert table["loss"].iloc[[0, 2]].tolist() == [1.5, 1.75] and table["loss"].isna().iloc[1]
    assert table["metrics.epochs"].iloc[0] == -1, "a metric with a parameter's name does not hide the parameter"
    assert "too fast" in table["reason"].iloc[1]


def test_finished_runs_are_kept_and_failed_ones_made_again(work, tmp_path):
    out = tmp_path / "runs"
    run_grid(work, ROWS, out, say=quiet)
    report = run_grid(work, ROWS, out, say=quiet)
    assert list(report["status"]) == ["kept", "failed", "kept"] and ran(out)[3:] == ["0.95"]
    report = run_grid(work, [*ROWS[2:], {"rate": 0.125}], out, say=quiet)
    assert list(report["status"]) == ["kept", "made"], "a longer grid makes what is new, whatever the order"


@pytest.mark.parametrize("change", ["notebook", "common", "inputs", "metrics"])
def test_what_a_run_depends_on_makes_it_again(work, tmp_path, change):
    out, row = tmp_path / "runs", [{"rate": 0.5}]
    run_grid(work, row, out, say=quiet)
    options = {}
    if change == "notebook":
        write_grid_notebook(work, WORK + "\n1 + 1")
    elif change == "common":
        options = {"common": {"epochs": 9}}
    elif change == "inputs":
        options = {"inputs": "other data"}
    else:
        next(out.glob("*/metrics.json")).unlink()
    assert list(run_grid(work, row, out, say=quiet, **options)["status"]) == ["made"]


def test_runs_of_another_package_version_are_named_or_made_again(work, tmp_path):
    out, row, said = tmp_path / "runs", [{"rate": 0.5}], []
    run_grid(work, row, out, say=quiet)
    path = next(out.glob("*/run.json"))
    path.write_text(path.read_text().replace(package_code(), "0" * 16))
    report = run_grid(work, row, out, say=said.append)
    assert list(report["status"]) == ["kept"] and "another version of the package" in said[0]
    assert list(run_grid(work, row, out, rerun_changed=True, say=quiet)["status"]) == ["made"]
    assert list(run_grid(work, row, out, rerun_changed=True, say=quiet)["status"]) == ["kept"]


REUSE = """import json
from pathlib import Path
kept = Path(run_dir) / "result.txt"
if not kept.exists():
    kept.write_text(str(rate * epochs))
(Path(run_dir) / "metrics.json").write_text(json.dumps({"loss": float(kept.read_text())}))"""


@pytest.mark.parametrize("change", ["package", "common", "nothing"])
def test_what_other_code_or_settings_left_is_not_taken_up(tmp_path, change):
    """A notebook that goes on with what it finds in its folder, as training does."""
    path, out = write_grid_notebook(tmp_path / "source" / "reuse.ipynb", REUSE), tmp_path / "runs"
    run_grid(path, [{"rate": 0.5}], out, say=quiet)
    (result,) = out.glob("*/result.txt")
    result.write_text("99")
    record = result.with_name("run.json")
    if change == "package":
        record.write_text(record.read_text().replace(package_code(), "0" * 16))
    else:
        record.write_text(record.read_text().replace("finished", "started"))  # as if it had been killed
    common = {"epochs": 5} if change == "common" else {}
    run_grid(path, [{"rate": 0.5}], out, common=common, rerun_changed=True, say=quiet)
    wanted = {"package": 1.0, "common": 2.5, "nothing": 99.0}  # the same run goes on with what it had
    assert collect(out)["loss"].tolist() == [wanted[change]]


def test_collect_can_leave_out_runs_of_an_earlier_grid(work, tmp_path):
    out = tmp_path / "runs"
    run_grid(work, [{"rate": 0.5}], out, say=quiet)
    report = run_grid(work, [{"rate": 0.25}], out, say=quiet)
    assert sorted(collect(out)["rate"]) == [0.25, 0.5] and list(collect(out, report.index)["rate"]) == [0.25]


def test_a_notebook_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no such file"):
        run_grid(tmp_path / "absent.ipynb", [{"rate": 0.5}], tmp_path / "runs")


@pytest.mark.parametrize(
    ("grid", "common", "said"),
    [
        ([{"rate": 0.5}, {"rte": 0.5}], {}, "did you mean 'rate'"),
        ([{"rate": 0.5}, {"rate": "1e-4"}], {}, "type str.*1.0e-4"),
        ([{"rate": 0.5}], {"epoch": 3}, "did you mean 'epochs'"),
        ([{"rate": 0.5}, {"rate": 0.5}], {}, "two rows"),
        ([{"rate": 1}, {"rate": 1.0}], {}, "two rows"),
        ([{"rate": 0.5, "run_dir": "x"}], {}, "run_dir in a row"),
        ({"rate": [0.5, "fast"]}, {}, "type str"),
        ([{"rate": 0.5, "epochs": 3}, {"epochs": 3, "rate": 0.5}], {}, "two rows"),
        ([{"rate": 0.5}, {"rate": 0.5, "epochs": 2}], {}, "two rows that are one run"),  # 2 is the default
        ([{}, {"epochs": 7}], {"epochs": 7}, "two rows that are one run"),
        ([], {}, "at least one row"),
        (None, {}, "at least one row"),
        (3, {}, "at least one row"),
        (["rate"], {}, "at least one row"),
        ({"rate": 0.5}, {}, "a list of values"),
        ({"rate": []}, {}, "a list of values"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(work, tmp_path, grid, common, said):
    with pytest.raises(ParameterError, match=said):
        run_grid(work, grid, tmp_path / "runs", common=common)
    assert not (tmp_path / "runs").exists()


def test_a_notebook_without_run_dir_is_refused(notebook, tmp_path):
    with pytest.raises(ParameterError, match="run_dir: str"):
        run_grid(notebook, [{"rate": 0.5}], tmp_path / "runs")


def test_all_combinations_of_a_mapping(work, tmp_path):
    run_grid(work, {"rate": [0.5, 0.25], "epochs": [1, 3]}, tmp_path / "runs", say=quiet)
    table = collect(tmp_path / "runs")
    assert list(zip(table["rate"], table["epochs"], strict=True)) == [(0.5, 1), (0.5, 3), (0.25, 1), (0.25, 3)]
    assert list(table["loss"]) == [0.5, 1.5, 0.25, 0.75]


def test_a_run_that_leaves_no_metrics_has_failed(tmp_path):
    silent = write_grid_notebook(tmp_path / "source" / "silent.ipynb", "rate")
    report = run_grid(silent, [{"rate": 0.5}], tmp_path / "runs", say=quiet)
    assert list(report["status"]) == ["failed"] and "no metrics.json" in report["reason"].iloc[0]


KILLED = WORK.replace('assert rate < 0.9, "too fast"', "import time\nif rate == 0.25:\n    time.sleep(600)")


def test_a_killed_grid_goes_on_where_it_was(tmp_path):
    """The process is killed in its second run: the first is kept, the second made again, none is half there."""
    path, out = write_grid_notebook(tmp_path / "source" / "work.ipynb", KILLED), tmp_path / "runs"
    grid = tmp_path / "grid.yml"
    grid.write_text("notebook: source/work.ipynb\ngrid:\n  - {rate: 0.5}\n  - {rate: 0.25}\n  - {rate: 0.125}\n")
    command = [sys.executable, "-m", "cspine_utils.runs", str(grid), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(ran(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)  # the kernel with it
    process.wait()
    assert ran(out) == ["0.5", "0.25"]
    assert list(collect(out)["status"]) == ["finished", "started"]
    table = run_grid(path, [{"rate": 0.5}, {"rate": 0.125}], out, say=quiet)
    assert list(table["status"]) == ["kept", "made"] and ran(out)[2:] == ["0.125"]


def test_the_command_line_exits_non_zero_if_a_run_failed(work, tmp_path, capsys):
    grid, out = tmp_path / "grid.yml", str(tmp_path / "runs")
    grid.write_text("notebook: source/work.ipynb\ncommon: {epochs: 4}\ngrid:\n  - {rate: 0.5}\n  - {rate: 0.95}\n")
    assert runs.main([str(grid), "--out", out]) == 1
    assert "1 of 2 runs are finished" in capsys.readouterr().out
    grid.write_text("notebook: source/work.ipynb\ncommon: {epochs: 4}\ngrid:\n  - {rate: 0.5}\n")
    assert runs.main([str(grid), "--out", out]) == 0
    grid.write_text("notebook: source/work.ipynb\ngrid:\n  - {rate: 1e-4}\n")  # text, for YAML
    assert runs.main([str(grid), "--out", out]) == 1
    assert "1.0e-4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "grid: []",
        "- a\n- b",
        "notebook: x.ipynb\ngrid: []\nepochs: 3",
        "a: [",
        "3",
        "notebook: [a]\ngrid: []",
        "notebook: a\ngrid: []\ncommon: [x]",
    ],
)
def test_a_file_that_is_no_grid_is_refused(tmp_path, text):
    path = tmp_path / "grid.yml"
    path.write_text(text)
    with pytest.raises(ParameterError, match="the keys notebook and grid"):
        read_grid(path)


def test_collect_lists_what_it_cannot_read(work, tmp_path):
    out = tmp_path / "runs"
    with pytest.raises(ParameterError, match="run the grid first"):
        collect(out)
    run_grid(work, [{"rate": 0.5}, {"rate": 0.25}], out, say=quiet)
    run_grid(work, [{"rate": 0.125}], out, say=quiet)
    third, second, first = sorted(out.glob("*/"))
    (third / "run.json").write_text('{"status": "finished"}')
    (first / "run.json").write_text("{")
    (second / "metrics.json").write_text("[]")
    table = collect(out)
    assert list(table["status"]) == ["unreadable"] * 3
    assert set(table["reason"]) == {"run.json is missing or damaged", "metrics.json is missing or damaged"}
