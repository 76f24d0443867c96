"""Who may import what: one table, read against the imports of every file. And what runs without its neighbours."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from test_golden import GOLDEN

# Each room and what it may import, beside itself. A folder of scripts is a room, too; "ground" are the modules of
# travelling/ that lie in no room. A name with a dot is one module of a room.
GROUND = {"ground"}
METHOD = GROUND | {"method"}
SCRIPT = METHOD | {"network", "images", "runs"}
MAY_IMPORT = {
    "ground": set(),
    "method": GROUND,
    "network": METHOD,
    "images": METHOD | {"network"},
    "beyond": METHOD | {"images"},
    "runs": METHOD | {"network", "images", "beyond"},
    "standard_travelling_model": SCRIPT,
    "dirty_baselines": SCRIPT,
    "generate_harmful_samples": SCRIPT,
    "inference": SCRIPT,
    "prepare_images": SCRIPT,
    "travelling_quality_control": SCRIPT | {"auditing", "judging", "reporting"},
    "judging": METHOD | {"runs", "auditing"},
    "auditing": METHOD | {"runs.extensible"},
    "reporting": METHOD | {"images", "auditing", "judging"},
    # The only one that imports a script: it shares the loop.
    "federated": SCRIPT | {"beyond", "judging", "travelling_quality_control.enc_PD_quality_control"},
    "reproduce": SCRIPT | {"beyond", "prepare_images", "auditing", "judging", "reporting"},
}
SCRIPTS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for room in MAY_IMPORT
    if (ROOT / room).is_dir()
    for path in (ROOT / room).glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8") and room != "reproduce"
)
FILES = [
    path
    for folder in (*MAY_IMPORT, "travelling")
    if (ROOT / folder).is_dir()
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def module_of(path):
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def room_of(module):
    """(room, module in it): of ``travelling.runs.options`` ("runs", "options")."""
    top, _, rest = module.partition(".")
    first, _, last = rest.partition(".")
    if top in ("travelling", "travelling_quality_control") and (ROOT / top / first).is_dir() and first:
        return first, last
    return ("ground" if top == "travelling" else top), rest


def imports_of(path, with_types=True):
    """The modules of this repository that a file imports, wherever in it: those for types alone only if asked for."""
    found, waiting = set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not with_types:
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        waiting += ast.iter_child_nodes(node)
    # The scripts of the study import each other by their names.
    beside = {f"{path.parent.relative_to(ROOT).parts[0]}.{name}" for name in found}
    return ({name for name in found if name in MODULES} | (beside & MODULES.keys())) - {module_of(path)}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_room_imports_what_it_may(path):
    room, _ = room_of(module_of(path))
    for module in imports_of(path):
        other, name = room_of(module)
        assert other == room or {other, f"{other}.{name}"} & MAY_IMPORT[room], f"{room} must not import {module}"


def test_nothing_imports_in_a_circle():
    left = {module: imports_of(path, with_types=False) & MODULES.keys() for module, path in MODULES.items()}
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"a circle of {', '.join(left)}"


def test_nothing_imports_a_script_but_the_server():
    assert len(SCRIPTS) >= 8
    importers = {module for module, path in MODULES.items() if imports_of(path) & set(SCRIPTS)}
    assert importers == {"travelling_quality_control.federated.server"}


@pytest.mark.parametrize(
    ("script", "needs", "lines", "of_others"),
    [
        (
            "standard_travelling_model.enc_PD_train_distributed", "travelling.method.travel", 3000,
            ("beyond", "extensi", "control", "audit", "harm", "performance", "metrics", "saved_model", "pretrained"),
        ),
        (
            "generate_harmful_samples.generate_data", "travelling.images.harm", 2300,
            ("beyond", "extensi", "control", "audit", "method.travel", "network.model.", "volumes", "trainer"),
        ),
    ],
)  # fmt: skip
def test_a_script_imports_nothing_that_only_others_need(script, needs, lines, of_others):
    needed, waiting = set(), [script]
    while waiting:
        module = waiting.pop()
        if module not in needed:
            needed.add(module)
            waiting += imports_of(MODULES[module], with_types=False)
    assert needs in needed
    assert not [module for module in needed if any(word in f"{module}." for word in of_others)]
    assert sum(len(MODULES[module].read_text(encoding="utf-8").splitlines()) for module in needed) <= lines


def test_every_room_is_in_the_table():
    assert {room_of(module)[0] for module in MODULES} == MAY_IMPORT.keys()


def test_no_settings_are_of_any_class():
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for argument in [*node.args, *node.kwonlyargs] if isinstance(node, ast.arguments) else ():
                if argument.arg in ("settings", "options", "arguments") and argument.annotation:
                    where = f"{module}, line {argument.lineno}: {argument.arg}"
                    assert ast.unparse(argument.annotation) != "Any", where


GOLDEN_RUN = """
import json
import runpy
import sys
from unittest import mock

from travelling.network import sfcn

with mock.patch.object(sfcn, "DROPOUT", 0.0):
    del sys.argv[0]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
print(json.dumps([name for name in sys.modules if name.startswith("travelling.beyond")]))
"""


def test_the_published_method_runs_without_what_is_beyond_it(tmp_path):
    """It neither imports it nor needs that it is there."""
    copy = tmp_path / "copy"
    for folder in ("travelling", "travelling_quality_control"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(copy / "travelling" / "beyond")
    models = [GOLDEN / f"{part}_distributed_BS5_07.h5" for part in ("encoder", "classifier_PD")]
    done = subprocess.run(
        [
            sys.executable, "-c", GOLDEN_RUN, copy / "travelling_quality_control" / "enc_PD_quality_control.py",
            "-fn_train", GOLDEN / "training_set.csv", "-fn_test", GOLDEN / "test_set.csv", "-cycles", "9",
            "-en", models[0], "-pd", models[1], "-revisit", "1", "-error", "0.02", "-fn_save", "log",
            "--protocol", "published", "--allow-saturated",
        ],
        cwd=tmp_path, env={"PYTHONPATH": str(copy), "CUDA_VISIBLE_DEVICES": "", "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert len((tmp_path / "log.csv").read_text().splitlines()) > 8
