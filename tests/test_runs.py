import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cspine_utils.errors import ParameterError
from cspine_utils.runs import NotebookError, check_parameters, notebook_parameters, run_notebook

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
