"""The map in the README is the map of the code: the same rooms, and no room reaches up."""

import ast
import importlib
import re

import pytest
from conftest import ROOT

PACKAGE = ROOT / "cspine_utils"
NAME = re.compile(r"`([a-z_0-9/]+)`")


def rooms_of_the_readme() -> list[str]:
    """First column of the README's table of rooms, from top to bottom; `models/vit3d` is the room vit3d."""
    table = (ROOT / "README.md").read_text().split("| `cspine_utils/` | |")[1].split("\n\n")[0]
    first_column = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    return [name.rstrip("/").split("/")[-1] for cell in first_column for name in NAME.findall(cell)]


def room_of(parts: tuple[str, ...]) -> str:
    """cspine_utils/phantom/sdf.py -> phantom, cspine_utils/models/vit3d.py -> vit3d, cspine_utils/dicom.py -> dicom."""
    return parts[1] if parts[0] == "models" and len(parts) > 1 else parts[0]


def imports(source: str) -> set[str]:
    """Rooms of this package that a module imports by their full name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cspine_utils" and not node.level:
            parts = node.module.split(".")[1:]
            names = [parts] if parts and parts != ["models"] else [[*parts, alias.name] for alias in node.names]
            found |= {room_of(tuple(name)) for name in names}
    return found


def reaches_up(room: str, source: str, order: list[str]) -> set[str]:
    return {other for other in imports(source) - {room} if order.index(other) > order.index(room)}


def test_readme_lists_every_room_once():
    modules = {p.stem for p in PACKAGE.glob("*.py")} | {p.stem for p in (PACKAGE / "models").glob("*.py")}
    modules |= {p.parent.name for p in PACKAGE.glob("*/__init__.py")} - {"models"}
    order = rooms_of_the_readme()
    assert sorted(order) == sorted(modules - {"__init__"})


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_room_reaches_up(path):
    if path.name == "__init__.py" and path.parent in (PACKAGE, PACKAGE / "models"):
        return
    room = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
    assert reaches_up(room, path.read_text(), rooms_of_the_readme()) == set()


def test_reaching_up_is_noticed():
    order = rooms_of_the_readme()
    assert reaches_up("volume", "from cspine_utils.stacks import prepare", order) == {"stacks"}
    assert reaches_up("volume", "from cspine_utils import rsna, errors", order) == {"rsna"}
    assert reaches_up("stacks", "from cspine_utils.models.vit3d import ViT3D", order) == {"vit3d"}
    assert reaches_up("training", "from cspine_utils.models.vit3d import ViT3D", order) == set()


COMMANDS = {
    "course": [[]], "ladder": [[]], "phantom": [[]], "phantom.acceptance": [[]],
    "phantom.acceptance.morphometry": [[]], "runs": [[]],
    "worklist": [[], ["theory"], ["simulate"]],
}  # fmt: skip


def test_these_are_all_commands_of_the_package():
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    parsing = {path for path, text in sources.items() if "ArgumentParser(" in text}
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__main__") for path in parsing}
    assert names == set(COMMANDS)


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, all_ in COMMANDS.items() for words in all_])
def test_every_command_tells_what_it_does(name, words, capsys):
    room = PACKAGE.joinpath(*name.split("."))
    module = importlib.import_module(f"cspine_utils.{name}" + (".__main__" if room.is_dir() else ""))
    with pytest.raises(SystemExit) as end:
        module.main([*words, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and f"python -m cspine_utils.{name}" in said and len(said.splitlines()) > 6
