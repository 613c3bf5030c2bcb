"""One tested set of versions, told in three files: they must agree."""

import re
import tomllib

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+")


def pins(lines) -> dict[str, str]:
    """name -> version of exact requirements; anything that is not an exact pin is an error."""
    found = {}
    for line in lines:
        requirement = line.split("#")[0].strip()
        if requirement:
            if not PIN.fullmatch(requirement):
                raise ValueError(f"not an exact pin: {requirement!r}")
            name = re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()
            if name in found:
                raise ValueError(f"pinned twice: {name}")
            found[name] = requirement.split("==")[1]
    return found


def pyproject_pins() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return pins([*project["dependencies"], *project["optional-dependencies"]["test"]])


def conda_pins(text: str) -> tuple[list[str], dict[str, str]]:
    """What environment.yml asks of conda, and the pins of its pip section."""
    dependencies = yaml.safe_load(text)["dependencies"]
    pip = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert len(pip) == 1, "one pip section"
    return [entry for entry in dependencies if isinstance(entry, str)], pins(pip[0])


def check_environment(text: str) -> None:
    conda, pip = conda_pins(text)
    assert conda == ["python=3.11", "pip"]
    assert pip == pyproject_pins()


def test_environment_yml_carries_exactly_the_pins():
    check_environment((ROOT / "environment.yml").read_text())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch==2.13.0", "torch==2.13.1"),
        ("torch==2.13.0", "torch>=2.13.0"),
        ("      - einops==0.8.2\n", ""),
        ("      - einops==0.8.2\n", "      - einops==0.8.2\n      - timm==1.0.31\n"),
        ("python=3.11", "python=3.12"),
    ],
)
def test_a_drifted_environment_is_noticed(old, new):
    text = (ROOT / "environment.yml").read_text()
    assert old in text
    with pytest.raises((AssertionError, ValueError)):
        check_environment(text.replace(old, new))


def test_constraints_hold_what_pyproject_leaves_open():
    constraints = pins((ROOT / ".ci" / "constraints.txt").read_text().splitlines())
    assert len(constraints) > 80
    assert not set(constraints) & set(pyproject_pins()), "a version stands in one place only"


def test_the_running_environment_is_the_pinned_one():
    from importlib.metadata import version

    running = {name: version(name).split("+")[0] for name in pyproject_pins()}
    assert running == pyproject_pins()
