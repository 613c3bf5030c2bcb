"""The profiles of notebook 06: papermill would take a misspelt name with no more than a warning."""

import pytest
import yaml
from conftest import ROOT

from cspine_utils.errors import ParameterError
from cspine_utils.runs import check_parameters, notebook_parameters

NOTEBOOK = ROOT / "notebooks" / "06_training_and_loss_curves.ipynb"
#: Where more is larger, of the parameters that cost time.
COSTS = ("size", "epochs", "batch_size", "dim", "depth")


def profile(name) -> dict:
    return yaml.safe_load((ROOT / "notebooks" / "profiles" / f"{name}.yml").read_text())


@pytest.mark.parametrize("name", ["ci", "laptop", "gpu"])
def test_a_profile_holds_parameters_of_the_notebook(name):
    values = profile(name)
    assert values and check_parameters(NOTEBOOK, values) == values


@pytest.mark.parametrize("change", [{"epoch": 3}, {"learning_rate": "1e-4"}, {"size": 64.0}])
def test_a_profile_that_drifted_is_noticed(change):
    with pytest.raises(ParameterError):
        check_parameters(NOTEBOOK, profile("ci") | change)


def test_ci_is_the_notebook_as_committed_and_the_others_scale_up():
    declared = {name: default for name, (_, default) in notebook_parameters(NOTEBOOK).items()}
    ci, laptop, gpu = map(profile, ("ci", "laptop", "gpu"))
    assert ci == {name: declared[name] for name in ci}
    for small, large in ((ci, laptop), (laptop, gpu)):
        known = [name for name in COSTS if name in small and name in large]
        assert known and all(small[name] <= large[name] for name in known)
        assert any(small[name] < large[name] for name in known)
