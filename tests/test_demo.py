"""The demo study: what runs again, what is reused, and how a failure is told."""

import importlib.util
import sys

import pytest
from conftest import ROOT

from travelling.errors import InputError

SCRIPT = """
import os, sys
print("I am", sys.argv[1])
if sys.argv[1] == "bad":
    print("error: no luck", file=sys.stderr)
    sys.exit(2)
if sys.argv[1] == "dead":
    os._exit(9)
open(sys.argv[2], "a").write(sys.argv[1])
sys.exit(0)
"""


@pytest.fixture(scope="module")
def demo():
    specification = importlib.util.spec_from_file_location("demo", ROOT / "reproduce" / "demo.py")
    module = sys.modules["demo"] = importlib.util.module_from_spec(specification)  # workers look it up by name
    sys.path.insert(0, str(ROOT / "reproduce"))
    specification.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "reproduce"))
    del sys.modules["demo"]


@pytest.fixture
def step(tmp_path):
    """Function: a step that appends its word to the file <name>."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def make(name, word, *needs):
        result = tmp_path / name.replace("/", "_")
        return name, [str(script), word, str(result)], list(needs), [result]

    return make


def test_a_study_runs_each_step_once(demo, step, tmp_path):
    steps = [step("cohort", "a"), step("x/one", "b", "cohort"), step("x/two", "c", "x/one"), step("y", "d", "cohort")]
    for _ in range(2):
        demo.run_study(steps, tmp_path, jobs=2)
        assert [result.read_text() for *_, (result,) in steps] == ["a", "b", "c", "d"]
    assert (tmp_path / "steps" / "x_one.txt").read_text().endswith("I am b\n")

    (tmp_path / "x_two").unlink()
    demo.run_study(steps, tmp_path, jobs=2)
    assert [result.read_text() for *_, (result,) in steps] == ["a", "b", "c", "d"]

    steps[1] = step("x/one", "B", "cohort")  # another command: this step and what needs it run again
    demo.run_study(steps, tmp_path, jobs=2)
    assert [result.read_text() for *_, (result,) in steps] == ["a", "bB", "cc", "d"]


@pytest.mark.parametrize(("word", "reason"), [("bad", "error: no luck"), ("dead", "died")])
def test_a_failed_step_is_named_and_runs_again(word, reason, demo, step, tmp_path):
    steps = [step("cohort", "a"), step("x/one", word, "cohort"), step("x/two", "c", "x/one")]
    for _ in range(2):
        with pytest.raises(InputError, match="step 'x/one' failed") as error:
            demo.run_study(steps, tmp_path, jobs=2)
        assert "x_one.txt" in str(error.value)
        assert reason in str(error.value)
    assert (tmp_path / "cohort").read_text() == "a"
    assert not (tmp_path / "x_two").exists()


def test_the_plan_names_what_each_step_needs_before_it(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output-folder", str(tmp_path)])
    known = set()
    for name, line, needs, _ in demo.plan(demo.parse_arguments()):
        assert set(needs) <= known, name
        assert all(isinstance(word, str) for word in line)
        known.add(name)
    assert sum(name.endswith("/inference") for name in known) == 9
