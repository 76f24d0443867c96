"""The report: whatever subjects are called, without a network, for keyboards and screen readers, in a real browser."""

import base64
import dataclasses
import hashlib
import html.parser
import itertools
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from study_maker import REPRODUCE, SETTING, make_clean_control, make_study

from travelling.errors import InputError

sys.path.insert(0, str(REPRODUCE))
from evaluation.diagnoses import Diagnoses
from evaluation.figures import make_figures, overview, render, write_figures
from evaluation.records import read_study
from evaluation.report import make_report
from evaluation.tables import make_tables

NAMES = {
    "h1": "<script>document.title = 'bad'</script>",
    "b1": "{{ 7 * 7 }}\"'><b>b1",
    "harmful_01": '"><img src=x onerror="document.title = 1">&amp; $x_1$ $',
    "B": "</table></details><style>* { display: none }</style>",
}
BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None
)
in_a_browser = pytest.mark.skipif(
    not BROWSER,
    reason="no Chromium on PATH or in CHROMIUM (apt-get install chromium): the report was not opened in a browser",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(make_study(tmp_path_factory.mktemp("report") / "study", names=NAMES))


@pytest.fixture(scope="module")
def tables(study):
    return make_tables(study, Diagnoses(study, resamples=99))


@pytest.fixture(scope="module")
def figures(study):
    return make_figures(study)


@pytest.fixture(scope="module")
def text(study, tables, figures):
    return make_report(study, tables, figures, resamples=99)


@pytest.fixture(scope="module")
def page(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


class Elements(html.parser.HTMLParser):
    """All elements of a page as (name, attributes), the text of its cells, and of its script."""

    def __init__(self, text):
        super().__init__()
        self.found, self.cells, self.scripts, self.open = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.open = tag
        if tag in ("td", "script"):
            (self.cells if tag == "td" else self.scripts).append("")

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open == "td":
            self.cells[-1] += data
        elif self.open == "script":
            self.scripts[-1] += data

    def named(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]


def words(report):
    """The text of a report."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", report)).split())


@pytest.fixture(scope="module")
def elements(text):
    return Elements(text)


def test_names_that_are_markup_stay_text(elements):
    assert len(elements.scripts) == 1
    assert len(elements.named("style")) == 1
    assert not [attributes for _, attributes in elements.found if any(name.startswith("on") for name in attributes)]
    for name in ("harmful_01", "B"):
        assert NAMES[name] in [cell.strip() for cell in elements.cells]


def test_the_page_needs_no_network_and_runs_its_own_script_alone(elements):
    for _, attributes in elements.found:
        for name in ("src", "srcset", "href", "data", "action"):
            address = attributes.get(name, "#")
            assert address.startswith(("#", "data:", "https://doi.org/")), address
    (policy,) = [meta["content"] for meta in elements.named("meta") if "http-equiv" in meta]
    digest = base64.b64encode(hashlib.sha256(elements.scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_page_is_there_for_everybody(elements, text):
    assert elements.named("html") == [{"lang": "en"}]
    assert elements.named("main")
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in elements.found:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    assert all(len(image["alt"]) > 20 for image in elements.named("img"))
    assert all(header.get("scope") == "col" for header in elements.named("th"))
    assert len(elements.named("table")) == len(elements.named("caption")) > 10
    assert all(region["aria-label"] for region in elements.named("div") if region.get("role") == "region")
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_colors_can_be_read_in_light_and_dark(text):
    def luminance(color):
        digits = color if len(color) == 6 else "".join(2 * digit for digit in color)
        channels = np.array([int(digits[place : place + 2], 16) for place in (0, 2, 4)]) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    themes = [dict(re.findall(r"--(\w+): #(\w+);", rule)) for rule in re.findall(r":root {([^}]*)}", text)]
    assert len(themes) == 2
    for theme in themes:
        for ink in ("ink", "quiet", "link"):
            for paper in ("page", "band"):
                light, dark = sorted((luminance(theme[ink]), luminance(theme[paper])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.1, AA


def test_what_was_found_and_at_which_centers(elements, text):
    told = words(text)
    assert "published: all harmful images eliminated in 1 of 1 experiment; good images eliminated in 0 of 1. No" in told
    assert "Of 2 harmful images, 2 were flagged and 2 eliminated. Of 13 good images, 1 was flagged and 0 elim" in told
    cells = [cell.strip() for cell in elements.cells]
    start = cells.index(NAMES["harmful_01"])
    assert cells[start + 1 : start + 8] == ["2", "2", "2", "2", "0", "0", "0"]  # images, harmful and good ones
    start = cells.index(NAMES["B"])
    assert cells[start + 1 : start + 8] == ["3", "0", "0", "0", "3", "1", "0"]


def test_methods_have_the_studys_numbers(text):
    told = words(text)
    assert "through 4 centers with 13 T1-weighted images (8 HC, 5 PD) in cycles 10 to 12, in batches of 5." in told
    assert "whole centers, noise: 2 at 1 center" in told
    assert "more than 0.05 per image" in told
    assert "revisited 1 cycle later" in told
    assert "10 test subjects (6 HC, 4 PD) were evaluated after cycle 12" in told
    assert "99 bootstrap resamples" in told
    assert "Python 3.12.1, keras 3.15.1" in told


def test_a_study_without_anything_finished_has_a_report(study, tmp_path):
    folder = shutil.copytree(study.folder, tmp_path / "study")
    for name in ("inference_predictions.csv", "run.json", "inference_run.json"):
        for path in folder.rglob(name):
            path.unlink()
    nothing = read_study(folder)
    report = make_report(
        nothing, make_tables(nothing, Diagnoses(nothing, resamples=99)), make_figures(nothing), resamples=99
    )
    assert "No run of quality control has finished" in report
    assert "(no model was tested)" in report
    assert "whole_centers_noise/quality_control: not finished" in report
    assert "No run.json was found" in report
    assert not re.search(r"\b(nan|None|NaN)\b(?! has finished)", re.sub("(?s)<(script|style)>.*?</", "", report))


def test_a_study_with_several_settings_shows_the_published_one_and_compares_all(tmp_path):
    folder = make_study(tmp_path / "study", settings=("published", SETTING))
    make_clean_control(folder, "published")
    both = read_study(folder)
    tables = make_tables(both, Diagnoses(both, resamples=99))
    drawn = make_figures(both)
    report = make_report(both, tables, [], resamples=99)
    assert "evidence, screen: all harmful images eliminated in 1 of 1 experiment; good images" in words(report)
    assert "Settings compared" in report
    assert "Whom false alarms hit" in report
    assert "<td>evidence, screen</td>" in report
    assert [picture.name for picture in drawn if picture.run] == [
        "rates_whole_centers_noise",
        "rates_clean",
    ]
    told = words(report)
    assert "It was compared with the setting 'evidence, screen'." in told
    assert "a step that raised FPR or FNR by more than 0.05 per image was rejected" in told
    assert "conformal" not in told
    assert not re.search(r"\b(nan|NaN)\b", re.sub("(?s)<(script|style)>.*?</", "", report))


def test_quality_control_of_images_as_they_are_has_no_harmful_ones(tmp_path):
    folder = make_study(tmp_path / "study", settings=())
    make_clean_control(folder, "published")
    shutil.rmtree(folder / "whole_centers_noise")
    clean = read_study(folder)
    told = words(make_report(clean, make_tables(clean, Diagnoses(clean, resamples=99)), [], resamples=99))
    assert "published: good images eliminated in 0 of 1 experiment." in told
    assert "all harmful images" not in told


def test_a_report_of_the_screen_alone(tmp_path):
    screened = read_study(make_study(tmp_path / "study", settings=(SETTING,)))
    tables, drawn = make_tables(screened, Diagnoses(screened, resamples=99)), make_figures(screened)
    report = make_report(screened, tables, [], resamples=99)
    told = words(report)
    assert (
        "a step that lowered the AUROC (paired DeLong test, one-sided p < 0.01), or raised FPR or FNR by more" in told
    )
    assert "without its label or the model, by 5 looks: (1) 54 image quality metrics of its foreground" in told
    assert [picture.name for picture in drawn] == ["metrics_by_cycle", "rates_whole_centers_noise"]
    assert "2 images were eliminated. 1 more was eliminated without a training step." in drawn[1].alternative
    assert "quality-controlled (evidence, screen) 0.771" in drawn[0].alternative
    assert render(drawn[1]).startswith(b"\x89PNG")


def test_many_experiments_have_several_figures_of_metrics(study):
    with_many = [dataclasses.replace(model, kind=f"k{number}") for number in range(7) for model in study.models[1:2]]
    drawn = make_figures(dataclasses.replace(study, models=[study.models[0], *with_many]))
    assert [picture.name for picture in drawn] == ["metrics_by_cycle", "metrics_by_cycle_2"]
    assert "whole centers, k5 dirty" in drawn[0].alternative
    assert "k6" not in drawn[0].alternative
    assert "whole centers, k6 dirty" in drawn[1].alternative


def test_the_overview_needs_both_kinds(study):
    with pytest.raises(InputError, match="inverted and of noise"):
        overview(study)


def test_figures_are_files_and_the_same_every_time(figures, tmp_path):
    assert [picture.name for picture in figures] == ["metrics_by_cycle", "rates_whole_centers_noise"]
    picture = figures[1]
    write_figures([picture], tmp_path)
    for file_format, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        content = (tmp_path / f"{picture.name}.{file_format}").read_bytes()
        assert content.startswith(magic)
        assert render(picture, file_format) == content


def browse(page, *options, folder):
    """Open a page in headless Chromium; returns (what it wrote to stdout, its console messages)."""
    line = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        f"--user-data-dir={folder}", "--enable-logging=stderr", "--window-size=1200,1600", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [message for message in done.stderr.splitlines() if "CONSOLE" in message]


@in_a_browser
def test_the_page_runs_without_errors_and_names_stay_text(page, tmp_path):
    dom, console = browse(page, "--dump-dom", folder=tmp_path)
    assert console == []
    assert "<title>Travelling model with quality control: report</title>" in dom
    assert dom.count("<script") == 1


@in_a_browser
def test_tables_are_sorted_by_their_buttons(page, tmp_path):
    driver = """<script>
    const tables = [...document.querySelectorAll("table")];
    const table = tables.find((one) => one.caption.textContent.startsWith("Centers with"));
    const column = (place) => [...table.tBodies[0].rows].map((row) => row.cells[place].textContent).join();
    const buttons = table.querySelectorAll("th button");
    const seen = [column(3)];
    for (const [button, place] of [[3, 3], [3, 3], [2, 3]]) { buttons[button].click(); seen.push(column(place)); }
    seen.push([...table.querySelectorAll("th")].map((one) => one.getAttribute("aria-sort")).join());
    const other = tables[0];
    other.querySelectorAll("th button")[3].click();
    seen.push([...other.tBodies[0].rows].map((row) => row.cells[2].textContent).join());
    document.title = seen.join("|");
    </script></body>"""
    copy = tmp_path / "driven.html"
    content = re.sub("<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    copy.write_text(content.replace("</body>", driver), encoding="utf-8")
    dom, console = browse(copy, "--dump-dom", folder=tmp_path)
    assert console == []
    before, up, down, by_name, sorted_by, by_auroc = re.search("<title>(.*?)</title>", dom)[1].split("|")
    assert before == "3,2"
    assert up == "2,3"
    assert down == "3,2"
    assert by_name == "2,3"
    assert sorted_by == ",,ascending,,,,,,,,"
    assert by_auroc == "dirty,clean,quality-controlled"


@in_a_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_looks_like_something(theme, page, tmp_path):
    from matplotlib.image import imread

    path = tmp_path / "screenshot.png"
    dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    browse(page, f"--screenshot={path}", *dark, folder=tmp_path / "profile")
    picture = imread(path)[..., :3]
    assert picture.shape == (1600, 1200, 3)
    background = picture[0, 0].mean()
    assert background < 0.2 if theme == "dark" else background > 0.9
    written = np.abs(picture - picture[0, 0]).max(axis=2) > 0.3
    assert 0.01 < written.mean() < 0.5
    assert written.any(axis=1)[1200:].any()  # as far as the window reaches


def test_a_model_that_calls_everybody_pd_is_not_said_to_be_like_the_clean_one(study, tables):
    """Its AUROC can be as good: only the threshold is lost."""
    performance = tables["performance"].frame.copy()
    dirty = (performance["model"] == "dirty_baseline") & (performance["subgroup"] == "all")
    like_clean = {"value": 0.95, "difference_to_clean": 0.0, "difference_low": -0.05, "difference_high": 0.05}
    worse = {"value": 0.4, "difference_to_clean": -0.4, "difference_low": -0.5, "difference_high": -0.3}
    for metric, cells in (
        ("AUC_ROC", like_clean), ("accuracy", worse), ("sensitivity", {"value": 1}), ("specificity", {"value": 0}),
    ):  # fmt: skip
        performance.loc[dirty & (performance["metric"] == metric), list(cells)] = list(cells.values())
    changed = tables | {"performance": dataclasses.replace(tables["performance"], frame=performance)}
    told = words(make_report(study, changed, [], resamples=99))
    clean, said = re.search("clean (AUROC .*?) dirty (AUROC .*?) quality-controlled AUROC", told).groups()
    assert said == (
        "AUROC 0.950, not told apart from clean: +0.000 (95 % interval -0.050 to +0.050); "
        "accuracy 0.400, lower than clean: -0.400 (95 % interval -0.500 to -0.300); it calls everybody PD"
    )
    assert "calls everybody" not in clean


def test_a_cycle_in_which_most_batches_were_rejected_is_told(study, tables):
    run = study.shown_controls[0]
    log = run.table.copy()
    batches = (log["Phase"] == "batch") & (log["Cycle"] == log["Cycle"].max())
    log.loc[batches, "Ignored"] = 1
    locked = dataclasses.replace(run, table=log)
    other = dataclasses.replace(study, models=[locked if model is run else model for model in study.models])
    before, told = (words(make_report(which, tables, [], resamples=99)) for which in (study, other))
    assert "Lock-up" not in before
    number = int(batches.sum())
    assert f"Lock-up: {number} of {number} batches of cycle {log['Cycle'].max()} were rejected" in told
    assert "Verdict: look closer" in told


@pytest.mark.parametrize("setting", ["screen", SETTING])
def test_a_run_in_which_the_screen_let_nothing_train(setting, tmp_path):
    made = read_study(make_study(tmp_path / "study", settings=(SETTING,)))
    (run,) = made.controls
    screening = run.screening.assign(Ignored=1)
    table = pd.concat([run.log[:1], screening])
    nothing = dataclasses.replace(run, name=f"quality_control_{setting}", table=table)
    nothing = dataclasses.replace(made, models=[nothing if model is run else model for model in made.models])
    tables, drawn = make_tables(nothing, Diagnoses(nothing, resamples=99)), make_figures(nothing)
    assert [picture.name.split("_")[0] for picture in drawn] == ["metrics", "rates"]
    report = make_report(nothing, tables, drawn, resamples=99)
    looks = int(((screening["Phase"] == "screen") & (screening["Cycle"] == 10)).sum())
    assert f"Lock-up: {looks} of {looks} images of cycle 10 were flagged without a step" in report
    assert "in cycles 10 to 11" in words(report)
    assert not re.search(r"\b(nan|NaN)\b", re.sub("(?s)<(script|style)>.*?</", "", report))
