"""Measured runs of the demo: how they are kept, and where another run lies among them."""

import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT
from study_maker import REPRODUCE, SETTING, make_study

sys.path.insert(0, str(REPRODUCE))
from evaluation.demo_runs import figures, place, read_measured
from evaluation.records import read_study
from plan import Study

import reproduce


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("demo") / "study", settings=("published", SETTING))


def run(csv, *words):
    line = [sys.executable, ROOT / "tests" / "benchmarks" / "demo_runs.py", "--csv", csv, *words]
    return subprocess.run(list(map(str, line)), capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def kept(study, tmp_path_factory):
    """Two measured runs of one seed: the second has other kernels, and was added twice."""
    csv = tmp_path_factory.mktemp("kept") / "runs.csv"
    for kernels in ("AVX2", "AVX-512", "AVX-512"):
        run(csv, "add", study, "--processor", "some, with comma", "--kernels", kernels, "--threads", 1)
    return csv


def test_a_study_is_a_row_for_every_model_and_is_kept_once(kept):
    rows = read_measured(kept)
    assert len(rows) == 2 * 4
    assert set(rows["kernels"]) == {"AVX2", "AVX-512"}
    clean, dirty, published, both = (rows.iloc[number] for number in range(4))
    assert [row["setting"] for row in (clean, dirty, published, both)] == [
        "clean", "dirty_baseline", "published", SETTING,
    ]  # fmt: skip
    names = ["harmful", "harmful_eliminated", "harmful_flagged", "good", "good_flagged", "good_eliminated"]
    assert published[names].tolist() == [2, 2, 2, 13, 1, 0]
    assert both[names].tolist() == [2, 2, 2, 13, 2, 1]
    assert clean[names].isna().all()
    assert both[["FPR", "FNR", "AUROC"]].tolist() == [0, 0.25, 0.771]
    assert published["eliminated"] != both["eliminated"]
    assert published[["seed", "version"]].tolist() == [1, "None (abc)"]


def test_ranges_are_printed_as_markdown(kept, tmp_path):
    rows = pd.read_csv(kept, dtype=str, keep_default_na=False)
    changed = rows.index[(rows["kernels"] == "AVX-512") & (rows["setting"] == SETTING)]
    rows.loc[changed, ["FPR", "good_flagged", "eliminated"]] = ["0.5", "4", "other"]
    rows.to_csv(tmp_path / "changed.csv", index=False)
    lines = run(tmp_path / "changed.csv", "ranges").splitlines()
    assert lines[0].startswith("| experiment | kind | setting | runs | harmful | harmful eliminated |")
    assert len(lines) == 2 + 4
    assert (
        "| whole centers | noise | published | 2 | 2 | 2 | 2 | 13 | 1 | 0 | 0 | 0.25 | 0.896 | 1 of 1 seed |" in lines
    )
    ((spread,),) = [[line for line in lines if "evidence" in line]]
    assert "| 2 to 4 | 1 | 0 to 0.5 | 0.25 | 0.771 | 0 of 1 seed |" in spread


def test_a_run_is_placed_among_those_measured(study, kept, tmp_path):
    inside = place(read_study(study), read_measured(kept))
    assert inside["among those measured"].tolist() == ["inside"] * 4
    assert inside["good flagged"].tolist() == ["", "", "1 (1)", "2 (2)"]
    measured = read_measured(kept)
    measured = measured[measured["setting"] != "clean"]
    measured.loc[measured["setting"] == SETTING, ["FPR", "good_eliminated"]] = [0.1, 2]
    measured.loc[measured.index[-1], "good_eliminated"] = 3
    shown = place(read_study(study), measured)
    assert shown["among those measured"].tolist() == ["inside", "inside", "outside: good eliminated, FPR"]
    assert shown.iloc[-1][["FPR", "good eliminated"]].tolist() == ["0 (0.1)", "1 (2 to 3)"]


def demo(**given):
    told = Study(demo=True, **given)
    told.check(str)
    return told


def test_only_the_demo_with_its_defaults_is_placed(study, kept, monkeypatch, capsys):
    assert demo(jobs=1, without_dirty=True, output_folder=study).is_whole_demo()
    for other in (
        {"cycles": 13}, {"settings": ("published",)}, {"kinds": ("blur",)}, {"seeds": 2}, {"error": 1}, {"width": 1.0},
    ):  # fmt: skip
        assert not demo(**other).is_whole_demo()
    monkeypatch.setattr("evaluation.demo_runs.MEASURED", kept)
    monkeypatch.setattr(reproduce, "DEMO_CONDITIONS", ())  # draw no picture of what is no image
    for given, words in (({}, "of 2 runs that were measured"), ({"cycles": 13}, "")):
        reproduce.evaluate(study, demo(**given))
        out = capsys.readouterr().out
        assert ("that were measured" in out) == bool(words)
        assert words in out
        assert ("0.771 (0.771)" in out) == bool(words)


def test_seeds_have_numbers(tmp_path):
    for name in ("seed_1", "seed_2"):
        make_study(tmp_path / name)
    assert figures(read_study(tmp_path))["seed"].tolist() == [1, 1, 1, 2, 2, 2]
