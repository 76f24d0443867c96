"""The paper's tables against numbers computed by hand, on a study made for that."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import run_here
from study_maker import (
    CLEAN,
    LABELS,
    MADE_BY,
    REPRODUCE,
    SETTING,
    STEPS,
    change,
    control_folder,
    make_clean_control,
    make_study,
    write_control,
    write_inference,
    write_record,
)
from study_maker import (
    DIRTY as DIRTY_ONES,
)

from travelling.errors import InputError
from travelling.method.performance import METRICS, performance

sys.path.insert(0, str(REPRODUCE))
from evaluation import records
from evaluation.diagnoses import Diagnoses
from evaluation.intervals import metric_replicates, paired_p_value, percentile_interval, wilson_interval
from evaluation.records import read_study
from evaluation.render import to_latex, write_tables
from evaluation.tables import Table, make_tables
from evaluation.tables.holdout import summary_of_holdout
from evaluation.tables.performance import summary_of_performance
from evaluation.tables.settings import settings_in_words, summary_of_settings

CONDITION = "whole_centers_noise"
DIRTY, CONTROLLED = "dirty_baseline", "quality_control"
SCREENED = f"quality_control_{SETTING}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("whole") / "study")


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "study")


@pytest.fixture(scope="module")
def tables(whole):
    return made(whole)


def made(folder, **options):
    study = read_study(folder)
    return make_tables(study, Diagnoses(study, resamples=199, **options))


def run_script_here(script, *arguments):
    """Run a script of reproduce/ in this process; returns (exit status, stderr)."""
    done = run_here(REPRODUCE / script, *arguments)
    return done.returncode, done.stderr


def in_words(table):
    """All that a reader sees of a table."""
    lines = [line for view in table.views.values() for line in (view.columns, *view.to_numpy())]
    return "\n".join([*(f"| {' | '.join(map(str, line))} |" for line in lines), table.caption, *table.notes])


def cell(table, column, **where):
    """The one number of a table where other columns have the given values."""
    rows = table.frame
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1, where
    return rows[column].iloc[0]


def value(tables, model, metric, subgroup="all", column="value", **where):
    return cell(tables["performance"], column, model=model, metric=metric, subgroup=subgroup, **where)


@pytest.mark.parametrize(
    ("model", "metric", "expected"),
    [
        ("clean", "accuracy", 8 / 10),  # wrong: HC with 0.6, PD with 0.3
        ("clean", "sensitivity", 3 / 4),
        ("clean", "specificity", 5 / 6),
        ("clean", "F1_SCORE", 2 * 3 / (2 * 3 + 1 + 1)),
        ("clean", "AUC_ROC", (6 + 6 + 6 + 3.5) / 24),  # HC that each PD is above; one tie
        (DIRTY, "accuracy", 3 / 10),
        (DIRTY, "specificity", 0),
        (DIRTY, "F1_SCORE", 2 * 3 / (2 * 3 + 6 + 1)),
        (DIRTY, "AUC_ROC", (3 + 3 + 3 + 0) / 24),  # three PD tie with all HC
        (CONTROLLED, "accuracy", 9 / 10),
        (CONTROLLED, "specificity", 1),
    ],
)
def test_metrics_by_hand(tables, model, metric, expected):
    assert value(tables, model, metric) == pytest.approx(expected)


def test_metrics_of_subgroups_by_hand(tables):
    # men: HC 0.1, 0.3, 0.6 and PD 0.9, 0.7; women: HC 0.2, 0.4, 0.2 and PD 0.8, 0.3
    assert value(tables, "clean", "accuracy", "male") == pytest.approx(4 / 5)
    assert value(tables, "clean", "specificity", "male") == pytest.approx(2 / 3)
    assert value(tables, "clean", "sensitivity", "female") == pytest.approx(1 / 2)
    assert value(tables, "clean", "AUC_ROC", "female") == pytest.approx((3 + 2) / 6)
    # an age equal to an edge belongs to the older group; the PD of unknown age to none
    assert [value(tables, "clean", "accuracy", name, "HC") for name in ("age_below_60", "age_60_to_70")] == [2, 2]
    assert value(tables, "clean", "accuracy", "age_70_and_over", "PD") == 1
    assert value(tables, "clean", "specificity", "age_70_and_over") == pytest.approx(1 / 2)


def test_differences_to_clean_by_hand(tables):
    assert value(tables, DIRTY, "accuracy", column="difference_to_clean") == pytest.approx(-5 / 10)
    assert value(tables, DIRTY, "AUC_ROC", column="difference_to_clean") == pytest.approx((9 - 21.5) / 24)
    assert value(tables, CONTROLLED, "accuracy", column="difference_to_clean") == pytest.approx(1 / 10)
    # the change from 0.6 to 0.4 passes no PD: always the same AUROC, whoever is drawn
    for column in ("difference_to_clean", "difference_low", "difference_high"):
        assert value(tables, CONTROLLED, "AUC_ROC", column=column) == 0
    assert value(tables, CONTROLLED, "AUC_ROC", column="p_value") == 1
    assert value(tables, DIRTY, "AUC_ROC", column="p_value") == pytest.approx(2 / 200)
    assert np.isnan(value(tables, "clean", "AUC_ROC", column="difference_to_clean"))


def test_detection_by_hand(tables):
    def found(images, column):
        return cell(tables["detection"], column, images=images)

    assert [found("harmful", name) for name in ("number", "flagged", "eliminated")] == [2, 2, 2]
    assert found("harmful", "first_flagged_cycles") == "10: 1, 11: 1"
    assert found("harmful", "eliminated_cycles") == "11: 1, 12: 1"
    assert [found("good", name) for name in ("number", "flagged", "eliminated")] == [13, 1, 0]
    assert found("good", "flagged_share") == pytest.approx(1 / 13)
    assert [found("good, HC", name) for name in ("number", "flagged")] == [8, 1]
    assert [found("good, PD", name) for name in ("number", "flagged")] == [5, 0]
    assert [found("good, center of 1 image", name) for name in ("number", "flagged")] == [1, 0]
    assert [found("good, center of 2 to 5 images", name) for name in ("number", "flagged")] == [5, 1]
    assert [found("good, center of more than 5 images", name) for name in ("number", "flagged")] == [7, 0]
    assert [found("whole harmful centers", name) for name in ("number", "flagged", "eliminated")] == [1, 1, 1]


def test_centers_by_hand(tables):
    frame = tables["centers"].frame.set_index("center")
    assert frame.loc["harmful_01", ["images", "harmful", "harmful_eliminated", "good", "share_lost"]].tolist() == [
        2, 2, 2, 0, 1,
    ]  # fmt: skip
    assert frame.loc["B", ["images", "good_flagged", "good_eliminated", "share_lost"]].tolist() == [3, 1, 0, 0]
    (view,) = tables["centers"].views.values()
    assert view["center"].tolist() == ["B", "harmful_01"]


def test_every_number_depends_on_the_records(folder):
    control, inference = folder / CONDITION / CONTROLLED, folder / "clean" / "inference_predictions.csv"
    change(inference, "preds_raw", 0.2, Subject="t4", cycle=12)
    shutil.rmtree(control)
    make_study(folder.parent / "other", steps=[step for step in STEPS if step[:3] != (12, "revisit", "h2")])
    shutil.copytree(folder.parent / "other" / CONDITION / CONTROLLED, control)
    tables = made(folder)
    assert value(tables, "clean", "specificity") == 1
    assert value(tables, CONTROLLED, "accuracy", column="difference_to_clean") == 0
    assert cell(tables["detection"], "eliminated", images="harmful") == 1
    assert cell(tables["detection"], "eliminated", images="whole harmful centers") == 0
    assert cell(tables["settings"], "rejected_percent") == pytest.approx(100 * 7 / 25)


@pytest.fixture(scope="module")
def two_settings(tmp_path_factory):
    """A study with two settings, of which one screens; the clean images by the latter alone."""
    folder = make_study(tmp_path_factory.mktemp("settings") / "study", settings=("published", SETTING))
    make_clean_control(folder, SETTING)
    return folder


def test_settings_compared_by_hand(two_settings):
    table = made(two_settings)["settings"]

    def of(setting, *names, experiment="whole_centers"):
        return [cell(table, name, setting=setting, experiment=experiment) for name in names]

    shares = [f"{who}_{what}_percent" for who in ("harmful", "good") for what in ("flagged", "eliminated")]
    assert of("published", "harmful", "good") == of(SETTING, "harmful", "good") == [2, 13]
    assert of("published", *shares) == pytest.approx([100, 100, 100 / 13, 0])
    assert of(SETTING, *shares) == pytest.approx([100, 100, 200 / 13, 100 / 13])  # d1 by the screen; c7 is lost
    # the first cycle is 10: h1 in cycle 11 and h2 in 12, against both in 11
    assert of("published", "cycles_until_elimination") == [2.5]
    assert of(SETTING, "cycles_until_elimination") == [2]
    # h2, c6;c7 and h2, c7 alone, two revisits of 22 steps; 15 rows of the screen and h1's revisit trained nothing
    assert of("published", "rejected_percent") == pytest.approx([100 * 8 / 26])
    assert of(SETTING, "rejected_percent") == pytest.approx([100 * 6 / 22])
    auroc = ("AUC_ROC", "difference_to_clean", "difference_to_dirty")
    assert of("published", *auroc) == pytest.approx([21.5 / 24, 0, 12.5 / 24])
    assert of(SETTING, *auroc) == pytest.approx([18.5 / 24, -3 / 24, 9.5 / 24])
    assert of("published", "FPR", "FNR") == pytest.approx([0, 1 / 4])
    assert of(SETTING, "FPR", "FNR") == pytest.approx([0, 1 / 4])
    assert of("published", "run_seconds", "cycle") == [16 * 60, 12]
    assert of(SETTING, "run_seconds", "seeds") == [8 * 60, 1]
    assert np.isnan(of(SETTING, "good_flagged_percent_sd_over_seeds")).all()
    # the clean images: nothing is harmful, and there is no dirty model
    assert of(SETTING, "harmful", "good", experiment="clean") == [0, 13]
    assert of(SETTING, *shares[2:], experiment="clean") == pytest.approx([200 / 13, 100 / 13])
    assert np.isnan(of(SETTING, *shares[:2], "difference_to_dirty", experiment="clean")).all()
    assert of("published", "seeds", experiment="clean") == [0]
    text = in_words(table)
    assert "| evidence, screen | 2 | 100.0 | 100.0 | 13 | 15.4 | 7.7 | 2.0 | 27.3 | 0.000 | 0.250 | 0.771 |" in text
    assert "nan" not in text


def test_settings_side_by_side_and_in_words_that_follow_from_them(two_settings, tmp_path):
    tables = made(two_settings)
    shown = summary_of_settings(tables).set_index(["experiment", "setting"])
    names = ["harmful eliminated (flagged)", "good eliminated (flagged)", "FPR", "FNR", "AUROC"]
    assert shown.loc[("whole centers", "published"), names].tolist() == [
        "2 of 2 (2)", "0 of 13 (1)", "0.000", "0.250", "0.896",
    ]  # fmt: skip
    assert shown.loc[("whole centers", "evidence, screen"), names[:2]].tolist() == ["2 of 2 (2)", "1 of 13 (2)"]
    assert shown.loc[("clean", "published"), names].tolist() == ["n/a"] * 5  # not run
    # The clean model's FPR is 1/6, and its FNR 1/4.
    assert settings_in_words(tables) == [
        "published: all harmful images eliminated in 1 of 1 experiment; good images eliminated in 0 of 1. No rate "
        "exceeds the clean model's.",
        "evidence, screen: all harmful images eliminated in 1 of 1 experiment; good images eliminated in 2 of 2 (whole "
        "centers, noise: 1 of 13; clean: 1 of 13). No rate exceeds the clean model's.",
    ]
    folder = shutil.copytree(two_settings, tmp_path / "study")
    steps = [step for step in STEPS if step[:3] != (12, "revisit", "h2")]
    write_control(folder / CONDITION / CONTROLLED, {}, steps)
    write_inference(folder / CONDITION / CONTROLLED, [0.9] * 9 + [0.1])
    told = settings_in_words(made(folder))[0]
    assert "in 0 of 1 experiment (whole centers, noise: 1 of 2); good images eliminated in 0 of 1. Its rates" in told
    assert told.endswith("Its rates exceed the clean model's by 0.83 at most (FPR; whole centers, noise).")


@pytest.mark.parametrize("every", [1, 16])
def test_groups_go_with_every_setting(every, two_settings, tmp_path):
    folder = shutil.copytree(two_settings, tmp_path / "study")
    place = folder / CONDITION / control_folder(SETTING)
    write_record(place / "run.json", **MADE_BY[SETTING], verify_every=every)
    place.rename(place.with_name(control_folder("recommended")))  # the same options in groups of 16
    for name in ("published", "recommended"):
        assert read_study(folder).runs(("whole_centers", "noise"), name)[0].setting == name


def test_settings_are_averaged_over_seeds(tmp_path):
    for name in ("seed_1", "seed_2"):
        make_study(tmp_path / name, settings=("published", SETTING))
    steps = [(*step[:3], 0.2, 0.25) if step[:3] == (10, "subject", "b1") else step for step in STEPS]
    make_study(tmp_path / "seed_2", steps=[step for step in steps if step[:3] != (11, "revisit", "b1")])
    record = tmp_path / "seed_2" / CONDITION / CONTROLLED / "run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"sessions": 2 * content["sessions"]}))  # interrupted: for how long?
    table = made(tmp_path)["settings"]
    assert cell(table, "good_flagged_percent", setting="published") == pytest.approx(100 / 26)
    assert cell(table, "good_flagged_percent_sd_over_seeds", setting="published") == pytest.approx(
        100 / 13 / np.sqrt(2)
    )
    assert cell(table, "run_seconds", setting="published") == 960
    assert np.isnan(cell(table, "run_seconds_sd_over_seeds", setting="published"))
    assert cell(table, "good_flagged_percent_sd_over_seeds", setting=SETTING) == 0
    assert "| published | 2 | 2 | 100.0 ± 0.0 | 100.0 ± 0.0 | 13 | 3.8 ± 5.4 |" in in_words(table)


def test_false_alarms_by_hand(two_settings):
    table = made(two_settings)["false_alarms"]

    def group(name, setting=SETTING, experiment="whole_centers"):
        columns = ("number", "flagged", "eliminated", "flagged_share")
        return [cell(table, column, setting=setting, group=name, experiment=experiment) for column in columns]

    assert group("all") == pytest.approx([13, 2, 1, 2 / 13])
    assert group("all", "published") == pytest.approx([13, 1, 0, 1 / 13])
    # b1 is the second image: a woman of 52, HC
    groups = {"HC": (8, 1), "PD": (5, 0), "male": (7, 0), "female": (6, 1), "age_below_60": (5, 1)}
    assert {name: tuple(group(name, "published")[:2]) for name in groups} == groups
    assert group("1 image") == [1, 0, 0, 0]
    assert group("2 to 5 images") == pytest.approx([5, 1, 0, 1 / 5])  # b1 to b3, d1, d2
    assert group("more than 5 images") == pytest.approx([7, 1, 1, 1 / 7])
    assert group("X") == [4, 0, 0, 0]  # A and B; harmful images are of Y
    assert group("X", "published") == pytest.approx([4, 1, 0, 1 / 4])
    assert group("Y") == pytest.approx([7, 1, 1, 1 / 7])
    assert group("n/a") == pytest.approx([2, 1, 0, 1 / 2])  # D does not tell its scanner
    assert group("all", experiment="clean") == pytest.approx([13, 2, 1, 2 / 13])
    of_d = {"group": "n/a", "experiment": "whole_centers"}
    assert cell(table, "mean_score", setting=SETTING, **of_d) == (2.5 + 1.5) / 2  # the screen suspects d1, not d2
    assert np.isnan(cell(table, "mean_score", setting="published", **of_d))
    beside, alone = table.views.values()
    assert beside["setting"].unique().tolist() == ["published", "evidence, screen"]
    assert alone[alone["group"] == "Y"].to_dict("records") == [
        {"setting": "evidence, screen", "by": "scanner", "group": "Y", "runs": "1", "good images": "7", "flagged": "1",
         "share flagged": "0.143", "eliminated": "1", "share eliminated": "0.143", "mean score": "1.500"}
    ]  # fmt: skip


def test_a_training_set_without_scanners_or_made_of_a_log(folder):
    """Its column Screen_score tells nothing of this run, which has no screen."""
    path = folder / CONDITION / "harmful" / "training_set.csv"
    pd.read_csv(path).drop(columns="Scanner").assign(Screen_score="high").to_csv(path, index=False)
    frame = made(folder)["false_alarms"].frame
    assert set(frame["by"]) == {"all", "class", "sex", "age", "center size"}
    assert frame["mean_score"].isna().all()


def test_other_tables_of_a_study_with_several_settings(two_settings, tables):
    made_of_two = made(two_settings)
    # what is about one setting shows the published one, and says so
    frame, expected = made_of_two["centers"].frame, tables["centers"].frame
    pd.testing.assert_frame_equal(frame[frame["experiment"] != "clean"], expected, check_dtype=False)
    assert "Of the setting 'published' only" in made_of_two["centers"].caption
    assert "Of the setting" not in tables["centers"].caption
    auroc = value(made_of_two, SCREENED, "AUC_ROC", experiment="whole_centers")
    assert auroc == pytest.approx(18.5 / 24)
    assert "| noise | quality-controlled (evidence, screen) | 0.771" in in_words(made_of_two["performance"])
    found = made_of_two["detection"].frame.set_index(["experiment", "setting", "images"])
    assert found["flagged"]["whole_centers", SETTING, "good"] == 2
    assert found["first_flagged_cycles"]["whole_centers", SETTING, "harmful"] == "10: 2"
    assert found["flagged"]["whole_centers", "published", "good"] == 1

    assert not [table.name for table in made_of_two.values() if "nan" in in_words(table)]


def test_a_study_of_another_setting_alone(tmp_path):
    folder = make_study(tmp_path / "study", kind="inverted_in_range", settings=(SETTING,))
    shutil.rmtree(folder / "whole_centers_inverted_in_range" / DIRTY)
    study = read_study(folder)
    assert study.conditions == [("whole_centers", "inverted_in_range")]
    assert study.main_setting == SETTING
    assert study.notes == [
        "test_set.csv: missing, so its log was not audited",
        "no dirty baseline, so nothing is known of what harm does without quality control",
    ]
    tables = make_tables(study, Diagnoses(study, resamples=99))
    assert cell(tables["centers"], "good_flagged", center="D") == 1


def test_clean_images_that_are_elsewhere(two_settings, tmp_path):
    folder = shutil.copytree(two_settings, tmp_path / "study")
    record = folder / "clean" / SCREENED / "run.json"
    content = json.loads(record.read_text())
    content["options"]["fn_train"] = str(tmp_path / "secret" / "training_set.csv")
    record.write_text(json.dumps(content))
    study = read_study(folder)
    (note,) = [note for note in study.notes if "training_set.csv" in note]
    assert note == f"clean/{SCREENED}: its training_set.csv is missing, so what was found is not known"
    assert [run.key for run in study.controls] == [
        ("whole_centers", "noise", CONTROLLED),
        ("whole_centers", "noise", SCREENED),
    ]


def test_the_deciding_and_the_hold_out_set_side_by_side(folder, tables):
    assert "holdout" not in tables
    for name, predictions in (("clean", DIRTY_ONES), (f"{CONDITION}/{CONTROLLED}", CLEAN)):
        write_inference(folder / name, predictions, (12,), "holdout")
    made_now = made(folder)
    for name, table in tables.items():  # decided by the test set, as before
        pd.testing.assert_frame_equal(made_now[name].frame, table.frame)
    table = made_now["holdout"]
    assert set(table.frame["model"]) == {"clean", CONTROLLED}  # the others were not tested on it

    def of(model, metric):
        names = ("deciding", "holdout", "optimism", "optimism_low", "optimism_high")
        return [cell(table, name, model=model, metric=metric) for name in names]

    assert of("clean", "AUC_ROC")[:3] == pytest.approx([21.5 / 24, 9 / 24, 12.5 / 24])
    assert of("clean", "specificity")[:3] == pytest.approx([5 / 6, 0, 5 / 6])
    # the same predictions, of others: no difference, but an interval, for each set is resampled on its own
    same, low, high = of(CONTROLLED, "AUC_ROC")[2:]
    assert same == 0
    assert -0.5 < low < 0 < high < 0.5
    assert "(6 HC and 4 PD)" in table.caption
    shown = summary_of_holdout(made_now)
    assert [text.split()[0] for text in shown.iloc[0][["deciding set", "hold-out set", "optimism"]]] == [
        "0.896", "0.375", "+0.521",
    ]  # fmt: skip
    change(folder / "clean" / "holdout_predictions.csv", "ground_truth", 1, Subject="t4")
    with pytest.raises(InputError, match="tested on other subjects or labels than"):
        read_study(folder)


def test_another_cycle(folder):
    tables = made(folder, cycle=11)  # everybody is called HC there
    assert value(tables, "clean", "accuracy") == pytest.approx(6 / 10)
    with pytest.raises(InputError, match=r"cycle 9; there are \[11, 12\]"):
        made(folder, cycle=9)


def test_seeds_are_averaged(tmp_path):
    for name in ("seed_1", "seed_2"):
        make_study(tmp_path / name)
    write_inference(tmp_path / "seed_2" / "clean", [0.1, 0.2, 0.3, 0.4, 0.6, 0.6, 0.9, 0.8, 0.7, 0.6])
    tables = made(tmp_path)
    assert value(tables, "clean", "sensitivity") == pytest.approx((3 / 4 + 1) / 2)
    assert value(tables, "clean", "sensitivity", column="sd_over_seeds") == pytest.approx(0.25 / np.sqrt(2))
    assert value(tables, CONTROLLED, "specificity", column="difference_to_clean") == pytest.approx((1 / 6 + 2 / 6) / 2)
    assert cell(tables["detection"], "number", images="harmful") == 4
    assert cell(tables["detection"], "eliminated_sd_over_seeds", images="harmful") == 0
    assert "± 0.177" in in_words(tables["performance"])

    shutil.rmtree(tmp_path / "seed_2" / CONDITION / DIRTY)
    tables = made(tmp_path)
    assert value(tables, DIRTY, "accuracy", column="seeds") == 1
    assert any("dirty_baseline: missing" in note for note in tables["performance"].notes)


def test_one_seed_folder_is_a_study_too(tmp_path, tables):
    make_study(tmp_path / "seeds" / "seed_7")
    pd.testing.assert_frame_equal(made(tmp_path / "seeds")["performance"].frame, tables["performance"].frame)


def test_same_input_same_output(whole, tables, tmp_path):
    write_tables(tables, tmp_path / "one")
    write_tables(made(whole), tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 10
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_missing_is_not_available(folder):
    (folder / CONDITION / CONTROLLED / "inference_predictions.csv").unlink()
    write_record(folder / CONDITION / CONTROLLED / "run.json", finished=None)
    write_inference(folder / CONDITION / DIRTY, CLEAN, cycles=(10, 11))
    for path in (
        folder / "clean" / "inference_predictions.csv",
        folder / CONDITION / DIRTY / "inference_predictions.csv",
    ):
        pd.read_csv(path).drop(columns="Age").to_csv(path, index=False)
    tables = made(folder)
    assert value(tables, CONTROLLED, "accuracy", column="seeds") == 0
    assert np.isnan(value(tables, DIRTY, "accuracy"))
    assert np.isnan(value(tables, "clean", "accuracy", "age_below_60"))
    assert value(tables, "clean", "accuracy") == 0.8
    assert np.isnan(cell(tables["detection"], "flagged", images="harmful"))
    text = "\n".join(map(in_words, tables.values()))
    assert "not tested after cycle 12 (the last is 11)" in text
    assert "quality_control: not finished" in text
    assert "| n/a |" in text
    assert summary_of_settings(tables)["harmful eliminated (flagged)"].tolist() == ["n/a"]
    assert "nan" not in text


def test_a_study_without_clean_model_has_no_differences(folder):
    shutil.rmtree(folder / "clean")
    tables = made(folder)
    assert value(tables, DIRTY, "accuracy") == pytest.approx(0.3)
    assert np.isnan(value(tables, DIRTY, "accuracy", column="difference_to_clean"))


def test_one_class_subgroup(folder):
    for path in folder.rglob("inference_predictions.csv"):
        table = pd.read_csv(path)
        table["Sex"] = np.where(table["ground_truth"] == 1, "M", "F")
        table.to_csv(path, index=False)
    tables = made(folder)
    assert value(tables, "clean", "sensitivity", "male") == 0.75
    assert np.isnan(value(tables, "clean", "specificity", "male"))
    assert np.isnan(value(tables, "clean", "AUC_ROC", "male"))


def in_both_cycles(path, column, value, **where):
    for cycle in (11, 12):
        change(path, column, value, cycle=cycle, **where)


def without(path, subject):
    table = pd.read_csv(path)
    table[table["Subject"] != subject].to_csv(path, index=False)


def without_options(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"options": {"revisit": 1}}))


RECORD, PREDICTIONS = f"{CONDITION}/{CONTROLLED}/run.json", "inference_predictions.csv"
LOG, HARMFUL = f"{CONDITION}/{CONTROLLED}/log.csv", f"{CONDITION}/harmful"
BREAKS = [  # a file, what is done to it, and what is said
    (RECORD, lambda path: write_record(path, **MADE_BY[SETTING]), "made by another setting than that of its folder"),
    (RECORD, without_options, "run.json: lacks the option protocol"),
    (f"clean/{PREDICTIONS}", lambda path: change(path, "preds_raw", "much", Subject="t4", cycle=12),
     "clean/inference_predictions.csv, row 16: preds_raw is not a number"),
    (f"{CONDITION}/{DIRTY}/{PREDICTIONS}", lambda path: in_both_cycles(path, "ground_truth", 1, Subject="t4"),
     "dirty_baseline: tested on other subjects or labels than"),
    (f"{HARMFUL}/truth.csv", lambda path: change(path, "Subject", "h9", Subject="h2"), "row 3: Subject is not in"),
    (f"{HARMFUL}/training_set.csv", lambda path: without(path, "c7"), "log.csv: trained c7, who is not in"),
    (CONDITION, lambda path: path.rename(path.with_name("whole_centers_inverted")),
     "truth.csv: its Experiment or Kind is not that of its folder"),
    (LOG, lambda path: path.write_text("a,b\n1,2\n"), "log.csv: missing column"),
    (LOG, lambda path: path.write_text(""), "log.csv: not a CSV file"),
    ("clean/run.json", lambda path: path.write_text('{"script": '), "run.json: not a record of a run"),
    ("clean/run.json", lambda path: path.write_text('["a"]'), "run.json: not a record of a run"),
    ("clean", lambda path: shutil.copytree(path, path.parent / "seed_1" / "clean"), "has seed folders"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "damage", "message"), BREAKS)
def test_records_that_contradict_themselves_are_refused(file, damage, message, folder):
    damage(folder / file)
    with pytest.raises(InputError) as error:
        read_study(folder)
    assert message in str(error.value)


@pytest.fixture
def audited(folder, monkeypatch):
    """What the audit was asked, with a test set to audit by; it finds what a test puts into the list of violations."""
    asked, violations = [], []

    def audit_log(*files):
        asked.append(files)
        return SimpleNamespace(violations=violations, summary="")

    monkeypatch.setattr(records, "audit_log", audit_log)
    (folder / "test_set.csv").write_text("Subject\n")
    return asked, violations


def test_every_log_is_audited_with_the_options_of_its_run(folder, audited):
    asked, violations = audited
    assert read_study(folder).notes == []
    control = folder / CONDITION / CONTROLLED
    assert asked == [
        (
            control / "log.csv", folder / CONDITION / "harmful" / "training_set.csv", folder / "test_set.csv",
            json.loads((control / "run.json").read_text()), control / "log_subjects.csv",
        )
    ]  # fmt: skip
    violations.extend(["log.csv, row 7: Ignored is 0, but FPR rose", "log.csv, row 8: another"])
    with pytest.raises(InputError, match=r"^log\.csv, row 7: Ignored is 0, but FPR rose$"):
        read_study(folder)
    (folder / "test_set.csv").unlink()
    assert read_study(folder).notes == ["test_set.csv: missing, so its log was not audited"]


def test_a_table_more_is_one_file_more(folder, monkeypatch, tmp_path):
    """As docs/extending.md has it."""
    import evaluation.tables

    (tmp_path / "seeds_of_study.py").write_text(
        "import pandas as pd\nfrom evaluation.tables import table\n\n@table('Seeds', section='runs', place=2)\n"
        'def seeds_of_study(study, diagnoses):\n    """The seeds {when}."""\n'
        "    frame = pd.DataFrame({'seed': study.seeds})\n    return frame, {'All': frame}, {}\n"
    )
    monkeypatch.setattr(evaluation.tables, "__path__", [*evaluation.tables.__path__, str(tmp_path)])
    monkeypatch.setattr(evaluation.tables, "_FOUND", [*evaluation.tables._FOUND])
    monkeypatch.delitem(sys.modules, "evaluation.tables.seeds_of_study", raising=False)
    table = made(folder)["seeds_of_study"]
    assert (table.caption, table.section, len(table.frame)) == ("The seeds after cycle 12.", "runs", 1)


def test_the_script_writes_and_says_what_is_wrong(folder, tmp_path):
    assert run_script_here("evaluate.py", folder, "--resamples", 99) == (0, "")
    assert sorted(path.stem for path in (folder / "tables").glob("*.tex")) == [
        "centers", "detection", "false_alarms", "performance", "settings",
    ]  # fmt: skip
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()
    assert run_script_here("evaluate.py", nowhere) == (2, f"error: {nowhere}: no such folder\n")
    status, message = run_script_here("evaluate.py", empty)
    assert (status, message.count("\n")) == (2, 1)
    assert "empty: not a study" in message
    assert run_script_here("evaluate.py", folder, "--resamples", 99, "--output-folder", tmp_path / "all") == (0, "")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["figures", "report.html", "tables"]
    for path in (folder / "tables").iterdir():
        assert (tmp_path / "all" / "tables" / path.name).read_bytes() == path.read_bytes()


def test_the_summary_of_diagnoses_is_what_the_demo_prints(tables):
    performance_rows = summary_of_performance(tables)
    assert performance_rows["AUROC"].tolist() == ["0.896", "0.375", "0.896"]
    assert performance_rows["model"].tolist() == ["clean", "dirty", "quality-controlled"]


def test_text_that_is_markup_stays_text():
    shown = pd.DataFrame({"a_b": ["50 % & more #1"]})
    text = to_latex(Table("t", "Title", "found", "95 %\nof all", shown, {"View": shown}, ["a\nnote"]))
    assert "a\\_b" in text
    assert "50 \\% \\& more \\#1" in text
    outside = [line for line in text.splitlines() if "Title" in line or "note" in line or "View" in line]
    assert outside == ["% Title. 95 % of all", "% a note", "% View"]


def test_replicates_are_the_metrics_of_resampled_subjects():
    generator = np.random.default_rng(3)
    labels = np.array(LABELS * 4)
    predictions = np.round(generator.random((2, len(labels))), 1)  # with ties
    drawn = metric_replicates(labels, predictions, seed=5, resamples=20000)
    assert drawn.shape == (2, len(METRICS), 20000)
    for model in range(2):
        expected = performance(labels, predictions[model])
        mean, deviation = drawn[model].mean(axis=1), drawn[model].std(axis=1)
        for index, metric in enumerate(METRICS):
            # the same subjects drawn with replacement: the mean is unbiased (F1, a ratio, nearly so)
            assert mean[index] == pytest.approx(expected[metric], abs=0.01 if metric == "F1_SCORE" else 0.003)
        rate = expected["sensitivity"]
        assert deviation[METRICS.index("sensitivity")] == pytest.approx(np.sqrt(rate * (1 - rate) / 16), rel=0.03)
    # DeLong's standard error of AUROC: the spread of each subject's share of pairs won
    patients, healthy = predictions[0][labels == 1], predictions[0][labels == 0]
    won = (np.sign(patients[:, None] - healthy) + 1) / 2
    delong = np.sqrt(won.mean(axis=1).var(ddof=1) / len(patients) + won.mean(axis=0).var(ddof=1) / len(healthy))
    assert drawn[0, METRICS.index("AUC_ROC")].std() == pytest.approx(delong, rel=0.05)


def test_a_prediction_that_is_not_a_number_is_wrong_in_every_resample():
    drawn = metric_replicates([0, 0, 1, 1], [[0.1, 0.1, np.nan, np.nan]], seed=0, resamples=99)[0]
    assert (drawn[METRICS.index("sensitivity")] == 0).all()
    assert np.isnan(drawn[METRICS.index("AUC_ROC")]).all()


def test_too_few_subjects_have_no_interval():
    assert np.isnan(metric_replicates([0, 0, 1], [[0.1, 0.2, 0.9]], seed=0, resamples=99)).all()
    assert np.isnan(metric_replicates([], [[]], seed=0, resamples=99)).all()


def test_interval_and_p_value_by_hand():
    assert percentile_interval(np.arange(101) / 100).tolist() == pytest.approx([0.025, 0.975])
    assert paired_p_value([-1, 1, 1, 1, 1, 1, 1, 1, 1]) == pytest.approx(2 * (1 + 1) / 10)
    assert paired_p_value([0, 0, 0]) == 1
    assert np.isnan(paired_p_value([1, np.nan]))
    # Newcombe 1998, table I: 81 of 263
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert np.isnan(wilson_interval(0, 0)).all()
