"""The notebooks are committed as they ran, and the gates that say so are shown to close."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import nbformat
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_contract import problems

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"


def test_the_course_is_complete():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_spine_and_fractures",
        "02_dataset_screening",
        "03_dicom_nifti_alignment",
        "04_six_channel_stacks",
        "05_vit3d_from_scratch",
        "06_training_and_loss_curves",
        "07_slice_models",
        "08_segmentation",
        "09_comparison_and_ablation",
        "10_diagnosis_time",
        "experiment",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_as_run(path):
    assert problems(path) == []


def saved_figures() -> set[str]:
    sources = "".join(cell.source for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells)
    return set(re.findall(r'plots\.save\(figure, figures_dir, "(\w+)"\)', sources))


def test_figures_are_those_that_the_notebooks_make():
    assert {path.stem for path in (ROOT / "figures").glob("*.png")} == saved_figures()


def sound_notebook():
    """A small notebook that keeps the contract; the fixtures below break one thing each."""
    cells = [
        new_markdown_cell("# A title\n\nAfter this notebook you will be able to count."),
        new_code_cell("n: int = 2", execution_count=1, metadata={"tags": ["parameters"]}),
        new_code_cell("print(n + 1)", execution_count=2, outputs=[new_output("stream", name="stdout", text="3\n")]),
        new_code_cell("n", execution_count=3, outputs=[
            new_output("execute_result", data={"text/plain": "2"}, execution_count=3)]),
        new_markdown_cell("## Key points\n\n* 2 + 1 = 3"),
    ]  # fmt: skip
    return new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
    )


def no_counts(notebook):
    notebook.cells[2].execution_count = None


def wrong_order(notebook):
    notebook.cells[2].execution_count, notebook.cells[3].execution_count = 3, 2


def stripped(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def stored_error(notebook):
    notebook.cells[2].outputs = [new_output("error", ename="ValueError", evalue="no", traceback=[])]


def stored_warning(notebook):
    notebook.cells[2].outputs.append(new_output("stream", name="stderr", text="UserWarning: old"))


def machine_path(notebook):
    notebook.cells[2].outputs[0].text = "wrote /Users/someone/course/x.png"


def no_parameters(notebook):
    notebook.cells[1].metadata.tags = []


def derived_parameter(notebook):
    notebook.cells[1].source = "n: int = 1 + 1"


def bare_parameter(notebook):
    notebook.cells[1].source = "n = 2"


def own_class(notebook):
    notebook.cells[2].source = "class Model:\n    pass"


def long_cell(notebook):
    notebook.cells[2].source = "\n".join(["n += 1"] * 26)


def figure_without_caption(notebook):
    notebook.cells[2].outputs = [new_output("display_data", data={"image/png": "aGk="})]


def no_goals(notebook):
    notebook.cells[0].source = "# A title"


def no_key_points(notebook):
    notebook.cells[-1].source = "The end."


def saved(tmp_path, notebook):
    path = tmp_path / "fixture.ipynb"
    nbformat.write(notebook, path)
    return path


def test_a_sound_notebook_passes_the_contract(tmp_path):
    assert problems(saved(tmp_path, sound_notebook())) == []


@pytest.mark.parametrize(
    "break_it",
    [
        no_counts, wrong_order, stripped, stored_error, stored_warning, machine_path, no_parameters, derived_parameter,
        bare_parameter, own_class, long_cell, figure_without_caption, no_goals, no_key_points,
    ],
)  # fmt: skip
def test_the_contract_refuses(tmp_path, break_it):
    notebook = sound_notebook()
    break_it(notebook)
    assert len(problems(saved(tmp_path, notebook))) == 1


def stale_stream(notebook):
    notebook.cells[2].outputs[0].text = "4\n"


def stale_result(notebook):
    notebook.cells[3].outputs[0].data["text/plain"] = "7"


def stale_result_that_asks(notebook):
    stale_result(notebook)
    notebook.cells[3].metadata["tags"] = ["nbval-check-output"]


def failing_code(notebook):
    notebook.cells[2].source = "print(n + undefined)"


def another_time(notebook):
    notebook.cells[2].source = "print('made in 3.25 s, loss 0.412')"
    notebook.cells[2].outputs[0].text = "made in 17.00 s, loss 0.412\n"


def another_time_and_loss(notebook):
    another_time(notebook)
    notebook.cells[2].outputs[0].text = "made in 17.00 s, loss 0.413\n"


def as_it_is(notebook):
    pass


#: nbval's option -> {what is done to the notebook: cells that must fail}
NBVAL = {
    "--nbval": {
        as_it_is: [], stale_stream: [1], stale_result: [2], failing_code: [1], another_time: [],
        another_time_and_loss: [1],
    },
    "--nbval-lax": {as_it_is: [], stale_result: [], stale_result_that_asks: [2], failing_code: [1]},
}  # fmt: skip


@pytest.mark.parametrize("mode", NBVAL)
def test_nbval_compares_what_it_should_and_hides_times_alone(tmp_path, mode):
    """All notebooks in one call: starting pytest and its plugins takes longer than they do."""
    for break_it in NBVAL[mode]:
        notebook = sound_notebook()
        break_it(notebook)
        nbformat.write(notebook, tmp_path / f"{break_it.__name__}.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-current-env", mode]
    command += ["--nbval-sanitize-with", SANITIZE, "--rootdir", tmp_path, tmp_path]
    command += ["--junit-xml", tmp_path / "said.xml"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    cells = list(ElementTree.parse(tmp_path / "said.xml").iter("testcase"))
    assert len(cells) == 3 * len(NBVAL[mode]), run.stdout
    found = {break_it.__name__: [] for break_it in NBVAL[mode]}
    for cell in cells:
        if cell.find("failure") is not None:
            found[cell.get("classname").removesuffix(".ipynb")].append(int(cell.get("name").removeprefix("Cell ")))
    assert found == {break_it.__name__: failing for break_it, failing in NBVAL[mode].items()}, run.stdout


def test_the_sanitizer_file_has_rules_that_nbval_reads():
    """A rule written `replace:X` without the space is dropped silently."""
    lines = [line for line in SANITIZE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        assert line.startswith(("[", "regex: ", "replace: ")), line
