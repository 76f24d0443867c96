"""The report of one run of quality control: every number against the log, and nothing that nobody knows.

The logs are made by quality control itself, with a trainer by chance (test_audit.py); what it remembered is the truth.
"""

import html.parser
import json
import re
import shutil
import sys
from collections import Counter
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_here, write_image
from fake_trainer import settings_of
from scipy.ndimage import gaussian_filter
from study_maker import REPRODUCE
from test_audit import FakeScreen, RandomTrainer, change_record, make_run, read_rows, write_rows
from test_report import browse, in_a_browser

from travelling.beyond import screen_labels
from travelling.beyond.screen import looks as measured
from travelling.beyond.screen.looks import LOOKS
from travelling.images.nifti import read_upright
from travelling.method.quality_control import methods
from travelling_quality_control.auditing.run_record import read_run_record
from travelling_quality_control.reporting import drawing, pages, slices
from travelling_quality_control.reporting.one_run import write_report

SCRIPT = ROOT / "travelling_quality_control" / "report.py"
ALONE = {"subject": "tried alone", "screen": "screened", "revisit": "revisited"}
WORDS = {"eliminated": "eliminated", "waiting": "waits for its revisit", "came_back": "came back"}


def make(folder, wait=2, **options):
    """A run whose training set tells all that a report can tell; returns its QualityControl."""
    folder.mkdir(parents=True, exist_ok=True)
    control = make_run(folder, wait=wait, **options)
    table = pd.read_csv(folder / "train.csv")
    table["Group_bin"], table["Sex"] = table.index % 2, [("M", "F")[number % 3 == 0] for number in table.index]
    table["Age"], table["Scanner"] = 50 + table.index, ["", "X", "Y"] * (len(table) // 3)
    table.to_csv(folder / "train.csv", index=False)
    return control


def report(folder, *options, train="train.csv", log="log.csv"):
    """Run the script in this process; returns (exit status, stdout, stderr)."""
    words = [folder / log, "--train", folder / train, "--test", folder / "test.csv", *options]
    done = run_here(SCRIPT, *words)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(autouse=True)
def figures_take_time(monkeypatch):
    """Figures are drawn only where a test looks at them."""
    monkeypatch.setattr(pages, "render", lambda picture: b"picture")


class Page(html.parser.HTMLParser):
    """What stands on a page: ``tables`` by caption as lists of dicts, ``words``, ``tags``."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.tags, self._texts, self._skip = {}, [], [], 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.words = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._skip += tag in ("style", "script")
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
        elif tag == "caption":
            self._caption = ""

    def handle_endtag(self, tag):
        self._skip -= tag in ("style", "script")
        if tag == "table":
            head, *rows = self._rows
            self.tables[self._caption] = [dict(zip(head, row, strict=True)) for row in rows]
        self._inside = None

    def handle_data(self, text):
        if self._skip:
            return
        self._texts.append(text)
        place = next((tag for tag, _ in reversed(self.tags) if tag in ("caption", "th", "td", "p", "li")), None)
        if place == "caption":
            self._caption += text.strip()
        elif place in ("th", "td") and self._rows:
            self._rows[-1][-1] += text.strip()

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def truth_of(control):
    """What quality control remembered: {subject: decision}."""
    return {
        subject: "eliminated"
        if subject in control.eliminated
        else "waiting"
        if subject in control.waiting
        else "came_back"
        if flags
        else "kept"
        for subject, flags in control.flags.items()
    }


def rows_alone(rows, name):
    """The rows of a log about an image alone, with their numbers in the file."""
    return [(number, row) for number, row in enumerate(rows, 2) if row["Subject"] == name and row["Phase"] in ALONE]


SETTINGS = [
    {"rule": rule, "screen": screen, "verify_every": every, "protocol": protocol}
    for rule in ("published", "evidence")
    for screen, every, protocol in ((False, 1, "corrected"), (True, 1, "corrected"), (True, 5, "published"))
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting.values())))
def test_every_number_is_that_of_the_log(tmp_path, setting):
    screen = FakeScreen(4) if setting["screen"] else None
    control = make(tmp_path, **setting | {"screen": screen}, trainer=RandomTrainer(4, harm=12))
    status, out, err = report(tmp_path)
    assert (status, err) == (0, ""), out
    page, rows = Page(tmp_path / "log_report.html"), read_rows(tmp_path / "log.csv")
    truth = truth_of(control)
    numbers = Counter(truth.values())
    flagged = len(truth) - numbers["kept"]
    assert flagged > 3
    assert out.startswith(
        f"{len(truth)} images: {numbers['eliminated']} eliminated, {numbers['waiting']} waiting, "
        f"{numbers['came_back']} came back, {numbers['kept']} kept; verdict: "
    )
    lead = re.search(r"Of (\d+) images at (\d+) centers, (\d+) w\w+ flagged.*? (\d+) w\w+ eliminated, (\d+) came back, "
                     r"and (\d+) waits? for a revisit. (\d+) w\w+ kept", page.words)  # fmt: skip
    assert [int(number) for number in lead.groups()] == [
        len(truth), 8, flagged, numbers["eliminated"], numbers["came_back"], numbers["waiting"], numbers["kept"],
    ]  # fmt: skip
    # The images, and every row about each of them alone.
    listed = page.tables["Every image that was flagged or eliminated"]
    assert {row["image"]: row["decision"] for row in listed} == {
        name: WORDS[decision] for name, decision in truth.items() if decision != "kept"
    }
    for image in listed:
        name, flags = image["image"], control.flags[image["image"]]
        flag = [row for _, row in rows_alone(rows, name) if row["Phase"] != "revisit" and row["Ignored"] == "1"][-1]
        if flag["Phase"] == "screen":
            look = max(LOOKS, key=lambda look: float(flag[f"Screen_{look}"]))
            assert (image["reason"], image["look"]) == (LOOKS[look].finding, LOOKS[look].title)
            assert float(image["score"]) == pytest.approx(float(flag["Screen_score"]), rel=5e-3)
            assert image["limit"] == "2.5"
        else:
            assert image["reason"].startswith("training on it made the model ")
            assert image["look"] == "training on it alone"
            for rate, group in (("PFP", "healthy test subjects ("), ("PFN", "test subjects with PD (")):
                rise = float(flag[rate]) - float(flag[f"Reference_{rate}"]) - float(flag["Tolerance"])
                if setting["rule"] == "published":
                    assert (group in image["reason"]) == (rise > 0)
                    assert float(image["score"]) >= rise + float(flag["Tolerance"]) - 6e-4
                    assert image["limit"] == "+0.02"
                else:
                    assert float(image["score"].removeprefix("p ")) < 0.01
        assert image["center"] == name.partition("_")[0]
        assert (image["times flagged"], image["cycles"]) == (str(len(flags)), ",".join(map(str, flags)))
        alone = rows_alone(rows, name)
        shown = page.tables[f"Rows of the log about {name}"]
        assert [row["log row"] for row in shown] == [str(number) for number, _ in alone]
        for cells, (_, row) in zip(shown, alone, strict=True):
            assert (cells["cycle"], cells["step"]) == (row["Cycle"], ALONE[row["Phase"]])
            for rate, column in (("FPR", "PFP"), ("FNR", "PFN")):
                told = f"{float(row[f'Reference_{column}']):.3f} to {float(row[column]):.3f}" if row[column] else ""
                assert cells[rate] == told
            columns = ("AUROC", "P_AUROC", "P_FP", "P_FN") if setting["rule"] == "evidence" else ()
            columns = dict(zip(columns, columns, strict=True)) or {"tolerated rise": "Tolerance"}
            columns |= {"score": "Screen_score", "limit": "Screen_limit"} if screen else {}
            for label, column in columns.items():
                assert cells[label] == (f"{float(row[column]):.3g}" if row[column] else "")
            if screen:
                looks = {column: float(row[f"Screen_{column}"]) for column in LOOKS if row["Screen_score"]}
                assert cells["look"] == (LOOKS[max(looks, key=looks.get)].title if looks else "")
            rejected = "eliminated" if row["Phase"] == "revisit" else "flagged"
            spared = "came back" if row["Phase"] == "revisit" else "kept"
            assert cells["outcome"] == (rejected if row["Ignored"] == "1" else spared)

    # Centers and groups.
    people = pd.read_csv(tmp_path / "train.csv", keep_default_na=False).set_index("Subject")
    people["class"], people["age"] = people["Group_bin"].map({0: "HC", 1: "PD"}), pd.cut(
        people["Age"], [0, 60, 70, 200], right=False, labels=["below 60", "60 to 70", "70 and over"]
    )  # fmt: skip
    people["Scanner"] = people["Scanner"].replace("", "n/a")
    columns = {"scanner": "Scanner", "class": "class", "sex": "Sex", "age": "age"}
    groups = page.tables[
        "Flagged images by scanner, class, sex and age in years, as far as the training set tells them"
    ]
    assert [row["group"] for row in groups if row["by"] == "age"] == ["below 60", "60 to 70", "70 and over"]
    centers = page.tables["All centers"]
    assert len(centers) == 8
    assert centers == sorted(centers, key=lambda row: -float(row["share flagged"]))
    for row in [*groups, *centers]:
        members = people["Study"] == row["center"] if "center" in row else people[columns[row["by"]]] == row["group"]
        found = Counter(truth[name] for name in people.index[members])
        assert int(row["images"]) == found.total()
        assert int(row["flagged"]) == found.total() - found["kept"]
        assert row["share flagged"] == f"{1 - found['kept'] / found.total():.3f}"
        assert [int(row[name.replace("_", " ")]) for name in WORDS] == [found[name] for name in WORDS]
        if screen:
            last = [[r for _, r in rows_alone(rows, name) if r["Screen_score"]][-1] for name in people.index[members]]
            mean = np.mean([float(about["Screen_score"]) for about in last])
            assert float(row["mean score"]) == pytest.approx(mean, abs=6e-4)
        else:
            assert "mean score" not in row
    assert {name for by, name in [(row["by"], row["group"]) for row in groups] if by == "scanner"} == {"X", "Y", "n/a"}

    # The lists.
    table = pd.read_csv(tmp_path / "log_decisions.tsv", sep="\t", keep_default_na=False).set_index("participant_id")
    assert table["decision"].to_dict() == truth
    assert list(table.index) == list(people.index)
    assert (table["center"] == people["Study"]).all()
    assert table["times_flagged"].to_dict() == {name: len(flags) for name, flags in control.flags.items()}
    assert set(table.loc[table["decision"] == "kept", ["cycles", "reason"]].to_numpy().ravel()) == {"n/a"}
    for name, row in table[table["decision"] != "kept"].iterrows():
        alone = rows_alone(rows, name)
        flag = max(number for number, about in alone if about["Phase"] != "revisit" and about["Ignored"] == "1")
        later = [number for number, about in alone if number > flag and about["Phase"] == "revisit"]
        assert [int(number) for number in re.findall(r"row (\d+),", row["reason"])] == [flag, *later[:1]]
        assert ("eliminated" in row["reason"]) == (row["decision"] == "eliminated")
    out = pd.read_csv(tmp_path / "log_exclude.tsv", sep="\t", keep_default_na=False, dtype=str)
    assert sorted(out["participant_id"]) == sorted(control.eliminated)
    assert out["reason"].tolist() == table.loc[out["participant_id"], "reason"].tolist()
    assert list(json.loads((tmp_path / "log_exclude.json").read_text())) == list(out.columns)
    described = json.loads((tmp_path / "log_decisions.json").read_text())
    assert list(described) == ["participant_id", *table.columns]
    assert set(table["decision"]) <= set(described["decision"]["Levels"])

    # What nobody knows is not said; the title of the paper that is cited has the word.
    told = page.words.replace("elimination of harmful datasets", "")
    assert not re.search(r"\b(harm\w*|good|bad|mistake|falsely?)\b", told, re.I), told
    assert not re.search(r"\b(nan|None|NaT|undefined)\b", told.replace("None.", "").replace("None was", ""))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    make(folder, rule="evidence", screen=FakeScreen(4), trainer=RandomTrainer(4, harm=12))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def change(path, old, new):
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def test_the_first_screen_tells_the_audit_and_the_last_the_settings(run):
    assert report(run)[0] == 0
    page = Page(run / "log_report.html")
    assert "Audit: consistent. 6 cycles (10 to 15), " in page.words
    assert page.words.index("Audit: consistent") < page.words.index("Every image that was")
    assert "refuse" not in page.words
    assert "in cycles 10 to 15, in batches of 5, with Adam at 0.0001 in cycle 0." in page.words
    assert "revisited 2 cycles later" in page.words
    assert "lowered the AUROC (paired DeLong test" in page.words
    assert "were eliminated at their revisit without a training step" in page.words
    assert "audited: every decision follows" in page.words
    assert "device: CPU; git commit: abc." in page.words
    assert "Python 3.12.1, keras 3.15.1" in page.words
    assert '"rule": "evidence"' in page.words
    assert '"fn_save": "log"' in page.words  # and not its folder
    assert str(run) not in page.source
    for _, attributes in page.tags:  # it loads nothing
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:", "https://doi.org/"))
    assert page.count("img") == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes["href"][1:] in ids for tag, attributes in page.tags if attributes.get("href", "")[:1] == "#")


def test_a_log_that_was_tampered_with_is_refused_in_red(run):
    rows = read_rows(run / "log.csv")
    index = next(i for i, row in enumerate(rows) if row["Eliminated"] == "1")
    rows[index]["Ignored"] = rows[index]["Eliminated"] = "0"
    write_rows(run / "log.csv", rows)
    status, out, err = report(run)
    assert (status, err) == (1, "")
    assert "the audit refuses the log" in out
    assert out.splitlines()[0].endswith("; verdict: do not use")
    page = Page(run / "log_report.html")
    top = page.source[page.source.index("Summary</h2>") :]
    assert top.index("The audit refuses this log: ") < top.index("were flagged")
    assert 'class="refused"' in top
    assert "Verdict: do not use" in top
    assert "The audit refuses the log (" in top
    assert f"<li>log.csv, row {index + 2}: " in page.source
    assert str(run) not in page.source
    assert "refused by its audit" in page.words
    assert "consistent" not in page.words
    assert not list(run.glob("log_decisions*")) + list(run.glob("log_exclude*"))


@pytest.mark.parametrize(
    ("column", "text"),
    [("Subjects", "nobody"), ("Subject", "nobody"), ("Phase", "revisit"), ("Study", "c9"), ("PFP", "7")],
)
@pytest.mark.parametrize("row", [0, 60])
def test_whatever_was_tampered_with_there_is_a_page(run, row, column, text):
    rows = read_rows(run / "log.csv")
    rows[row][column] = text
    write_rows(run / "log.csv", rows)
    assert report(run)[0] == 1
    assert "The audit refuses this log" in Page(run / "log_report.html").words


def test_a_log_without_the_columns_of_its_rule_is_refused(run):
    rows = [{name: cell for name, cell in row.items() if name != "P_FP"} for row in read_rows(run / "log.csv")]
    write_rows(run / "log.csv", rows)
    assert report(run)[0] == 1
    assert "log.csv, row 1: columns are" in Page(run / "log_report.html").words


def test_a_page_shows_the_tables_that_come_with_a_run(run):
    files = (run / name for name in ("log.csv", "train.csv", "test.csv", "log_subjects.csv", "page.html"))
    view = pd.DataFrame({"model": ["last"], "AUROC": ["0.91"]})
    write_report(read_run_record(run / "log_run" / "run.json"), *files, further=[("Of a hold-out set", view)])
    assert Page(run / "page.html").tables["Of a hold-out set"] == view.to_dict("records")


def test_names_that_are_markup_stay_text(run):
    (name,) = [line for line in (run / "log_subjects.csv").read_text().splitlines() if ",1," in line][:1]
    name = name.partition(",")[0]
    for file in ("train.csv", "log.csv", "log_subjects.csv"):
        path = run / file
        path.write_text(re.sub(rf"\b{name}\b(?!\.nii)", f"<b>{name}</b>{{{{ 7 * 7 }}}}", path.read_text()))
    assert report(run)[0] == 0
    page = Page(run / "log_report.html")
    assert page.count("b") == 0
    assert f"<b>{name}</b>{{{{ 7 * 7 }}}}" in page.words
    assert page.count("script") == page.count("style") == 1


def with_images(run):
    """Write small images for the run and its test set, half of which are twice as bright."""
    test_set = pd.read_csv(run / "test.csv")
    test_set["Path"] = [f"test{number % 2}.nii.gz" for number in test_set.index]
    test_set.to_csv(run / "test.csv", index=False)
    ramp = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    for number in range(2):
        write_image(run / f"test{number}.nii.gz", ramp * (1 + number))
    for number, name in enumerate(pd.read_csv(run / "train.csv")["Path"]):
        write_image(run / name, ramp * (1 + number / 100))


def test_images_are_opened_and_shown_only_on_demand(run, monkeypatch):
    with_images(run)
    drawn, opened, mean = [], [], 1.5 * read_upright(run / "test0.nii.gz")
    monkeypatch.setattr(slices, "read_upright", lambda path: opened.append(path) or mean)
    assert report(run)[0] == 0
    assert Page(run / "log_report.html").count("img") == 1
    assert opened == []
    monkeypatch.setattr(slices, "read_upright", read_upright)
    monkeypatch.setattr(pages, "render", drawing.render)
    monkeypatch.setattr(slices, "show", lambda axes, shown, title: drawn.append((title, shown[0])))
    assert report(run, "--with-images", "--output-folder", run / "there")[0] == 0
    assert (run / "there" / "log_exclude.tsv").is_file()
    page = Page(run / "there" / "log_report.html")
    flagged = [row["image"] for row in page.tables["Every image that was flagged or eliminated"]]
    assert page.count("img") == 1 + len(flagged)
    assert [title for title, _ in drawn] == ["the image", "mean of the test set"] * len(flagged)
    assert all(np.allclose(shown, mean[1]) for title, shown in drawn if title == "mean of the test set")
    assert "and slices of images" in page.words


def brain(seed):
    """A grainy ball in the middle of 20 x 22 x 24 voxels (z, y, x), darker in front and above."""
    z, y, x = np.indices((20, 22, 24)) - np.array([9.5, 10.5, 11.5])[:, None, None, None]
    inside = z**2 + y**2 + x**2 < 81
    return inside * (2 - 0.03 * y - 0.02 * z + 0.1 * np.random.default_rng(seed).normal(size=inside.shape))


def without(axis, last):
    """Takes half of an image away."""

    def lose(image):
        image = image.copy()
        half = [slice(None)] * 3
        half[axis] = slice(image.shape[axis] // 2, None) if last else slice(image.shape[axis] // 2)
        image[tuple(half)] = 0
        return image

    return lose


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda image: image, ""),
        (lambda image: gaussian_filter(image, 2), "blurred: fine detail is missing"),
        (lambda image: image + np.random.default_rng(5).normal(0, 1, image.shape), "noisy or striped"),
        (without(2, False), "half of the brain is missing on the left"),
        (without(2, True), "half of the brain is missing on the right"),
        (without(0, False), "half of the brain is missing below"),
        (without(0, True), "half of the brain is missing above"),
        (without(1, False), "half of the brain is missing at the back"),
        (without(1, True), "half of the brain is missing in front"),
        (lambda image: 255 * image, "brighter than usual"),
        (lambda image: image.max() - image, "light and dark are swapped"),
    ],
)
def test_what_is_to_be_seen_is_said(spoil, words, tmp_path, monkeypatch):
    images = {f"t{seed}": brain(seed) for seed in range(8)} | {"x": spoil(brain(9))}
    table = pd.DataFrame({"Path": list(images)}, index=list(images))
    monkeypatch.setattr(slices, "read_upright", images.__getitem__)
    shown = slices.Slices(table, tmp_path, table[:8], tmp_path)
    ((name, picture, told),) = shown.of(["x"])
    assert name == "x"
    assert told.startswith(words)
    assert bool(told) == bool(words)
    assert drawing.render(picture).startswith(b"\x89PNG")


def rated(path, ratings):
    rows = "".join(f"{name}\t{rating}\tn/a\n" for name, rating in ratings.items())
    path.write_text(f"participant_id\trating\tnote\n{rows}")
    return path


def test_ratings_are_kept_and_compared_with_the_decisions(run, tmp_path):
    assert report(run)[0] == 0
    assert "Your ratings" not in " ".join(Page(run / "log_report.html").tables)
    decisions = pd.read_csv(run / "log_decisions.tsv", sep="\t").set_index("participant_id")["decision"]
    of = {name: list(decisions.index[decisions == name]) for name in ("eliminated", "waiting", "came_back", "kept")}
    ratings = dict.fromkeys(of["eliminated"][:1] + of["kept"][:1], "leave out") | {of["eliminated"][1]: "redo"}
    first = rated(tmp_path / "first.tsv", dict.fromkeys(ratings, "keep"))
    others = {"who is not in this run": "keep"} | dict.fromkeys(of["kept"][1:4] + of["waiting"][:1], "keep")
    second = rated(tmp_path / "second.tsv", ratings | others)
    assert report(run, "--ratings", first)[0] == 0
    assert report(run, "--ratings", second)[0] == 0  # who rates again has changed his mind
    assert report(run)[0] == 0  # they are kept
    page = Page(run / "log_report.html")
    keep, leave_out, redo = page.tables["Your ratings and the decisions"]
    waiting = len(of["waiting"][:1])
    assert [row["rated"] for row in (keep, leave_out, redo)] == ["keep", "leave out", "redo"]
    assert [keep["eliminated"], keep["waits for its revisit"], keep["kept"]] == ["0", str(waiting), "3"]
    assert [leave_out["eliminated"], leave_out["kept"], leave_out["share eliminated"]] == ["1", "1", "50%"]
    assert [redo["eliminated"], redo["share eliminated"]] == ["1", "100%"]
    # 5 of 6 agree; by chance 1/2 x 1/3 + 1/2 x 2/3 would: (5/6 - 1/2) / (1/2)
    assert "agree for 5 of 6 images (83%); Cohen's kappa is 0.67." in page.words
    ticked = [attributes for tag, attributes in page.tags if tag == "input" and "checked" in attributes]
    names = {attributes["name"].removeprefix("rating of "): attributes["value"] for attributes in ticked}
    assert names == {name: rating for name, rating in {**ratings, **dict.fromkeys(of["waiting"][:1], "keep")}.items()
                     if decisions[name] != "kept"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nc0_1\tkeep\n", "no column participant_id"),
        ("participant_id\trating\tnote\nnobody\tkeep\t\n", "tells of none of the"),
    ],
)
def test_ratings_that_are_none_are_one_line(run, text, message):
    (run / "mine.tsv").write_text(text)
    status, out, err = report(run, "--ratings", run / "mine.tsv")
    assert (status != 0, out, err.count("\n")) == (True, "", 1)
    assert f"mine.tsv, {message}" in err.replace("mine.tsv: ", "mine.tsv, ")
    assert not list(run.glob("log_r*.*"))


@in_a_browser
def test_ticks_are_saved_as_ratings(run, tmp_path):
    assert report(run)[0] == 0
    page = run / "log_report.html"
    name = Page(page).tables["Every image that was flagged or eliminated"][1]["image"]
    driver = f"""<script>
    HTMLAnchorElement.prototype.click = function () {{ document.title = this.download + "|" + this.href; }};
    document.querySelector('tr[data-subject="{name}"] input[value="leave out"]').click();
    document.querySelectorAll("th button")[1].click(); // sorting loses nothing
    document.querySelector('tr[data-subject="{name}"] input[type="text"]').value = 'a "note"';
    document.querySelector("#export").click();
    </script></body>"""
    copy = tmp_path / "driven.html"
    content = re.sub("<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    copy.write_text(content.replace("</body>", driver), encoding="utf-8")
    dom, console = browse(copy, "--dump-dom", folder=tmp_path / "profile")
    assert console == []
    file, address = re.search("<title>(.*?)</title>", dom)[1].split("|")
    assert file == "ratings.tsv"
    (run / file).write_text(unquote(address.partition(",")[2]))
    assert (run / file).read_text() == f'participant_id\trating\tnote\n{name}\tleave out\t"a ""note"""\n'
    assert report(run, "--ratings", run / file)[0] == 0


def test_what_nobody_examined_is_said(run, tmp_path):
    assert report(run)[0] == 0
    assert "Not examined: Labels: --label-screen is off." in Page(run / "log_report.html").words
    make(tmp_path / "labels", screen=FakeScreen(3, labels=True))
    assert report(tmp_path / "labels")[0] == 0
    told = Page(tmp_path / "labels" / "log_report.html").words.partition("Not examined: ")[2]
    assert told.startswith("Labels in cycle 14: the model knew too little to doubt any (AUROC < 0.8).")  # FakeScreen
    assert "Labels of 2 centers with fewer than 3 usable images." in told


def test_a_record_that_tells_the_options_alone_is_enough(run):
    path = run / "log_run" / "run.json"
    options = json.loads(path.read_text())["options"]
    path.write_text(json.dumps({"options": options, "sessions": [], "finished": True}))
    assert report(run)[0] == 0
    assert "device: not known" in Page(run / "log_report.html").words
    path.unlink()
    status, _, err = report(run)
    assert (status, "log.csv: found no run.json of its run" in err) == (2, True)


def test_a_record_beside_the_log_counts_only_if_it_is_its_own(run):
    shutil.move(run / "log_run" / "run.json", run / "run.json")
    assert report(run)[0] == 0
    record = json.loads((run / "run.json").read_text())
    record["options"]["fn_save"] = "another"
    (run / "run.json").write_text(json.dumps(record))
    assert report(run)[0] == 2
    assert report(run, "--record", run / "run.json")[0] == 0  # where the user says so


def test_an_unfinished_run_and_one_that_has_not_begun(run):
    rows = read_rows(run / "log.csv")
    (run / "log_subjects.csv").unlink()
    write_rows(run / "log.csv", rows[:-3])
    assert report(run)[0] == 1
    change_record(run, finished=None)
    assert report(run)[0] == 0
    assert "ends in the middle of cycle 15" in Page(run / "log_report.html").words
    write_rows(run / "log.csv", rows[:1])
    assert report(run)[0] == 0
    words = Page(run / "log_report.html").words
    assert "No cycle has begun." in words
    assert "None was flagged." in words
    assert len((run / "log_exclude.tsv").read_text().splitlines()) == 1  # no rows


def test_a_federation_with_pseudonyms_and_failed_visits(tmp_path):
    make(tmp_path, screen=FakeScreen(1, fails=0.3), verify_every=4)
    order = list(dict.fromkeys(pd.read_csv(tmp_path / "log_subjects.csv")["Study"]))
    change_record(tmp_path, centers=order)
    assert "a run between hospitals" in report(tmp_path, "--with-images", train="log_subjects.csv")[2]
    for centers, expected in ((order[::-1], 1), (order, 0)):  # a server's record names them
        change_record(tmp_path, centers=centers)
        status, _, err = report(tmp_path, train="log_subjects.csv")
        assert (status, err) == (expected, "")
    page, rows = Page(tmp_path / "log_report.html"), read_rows(tmp_path / "log.csv")
    failed = Counter(row["Study"] for row in rows if row["Phase"] == "unreachable")
    shown = page.tables["Visits to centers that failed"]
    assert {row["center"]: int(row["times"]) for row in shown} == failed
    assert "The training set does not tell them." in page.words
    assert "HC" not in page.tables["Every image that was flagged or eliminated"][0].values()
    assert "Up to 4 batches were trained" in page.words


PARTS = {  # of the paragraph for a paper: what tells each, and an option with which it ran
    "raised FPR or FNR by more than 0.07 per image was rejected": {"rule": "published"},
    "a step that lowered the AUROC (paired DeLong test, one-sided p < 0.01), or raised FPR or FNR by more than 0.07 "
    "per image with more new misdiagnoses": {"rule": "evidence"},
    "verified every training step": {"verify_every": 1},
    "Up to 9 batches were trained before the test set was evaluated; where they together did so": {"verify_every": 9},
    "with a stated probability of 0.03": {"screen": True},
    "The p-value of a label was that of its log-odds": {"label_screen": True},
}


@pytest.mark.parametrize("rule", ["published", "evidence"])
@pytest.mark.parametrize("verify_every", [1, 9])
@pytest.mark.parametrize(("screened", "labels"), [(False, False), (True, False), (True, True)])
def test_the_methods_for_a_paper_are_those_that_ran(rule, verify_every, screened, labels):
    options = {
        "protocol": "published", "rule": rule, "error": 0.07, "revisit": 1, "verify_every": verify_every,
        "screen": screened, "label_screen": labels, "false_alarms": 0.03,
    }  # fmt: skip
    used = {"screen": ("screen", "false_alarms"), "label_screen": ("label_screen",)}
    given = {name: options[name] for name in ("rule", "verify_every")}
    given |= {name: options[name] for switch, names in used.items() if options[switch] for name in names}
    settings = settings_of(**given, **{name: options[name] for name in ("protocol", "error", "revisit")})
    told = methods(settings, settings.extensions)
    assert {words for words in PARTS if words in told} == {
        words for words, option in PARTS.items() if option.items() <= options.items()
    }
    assert "(protocol 'published')" in told
    assert "revisited 1 cycle later" in told
    assert (" at p < 0.05" in told) == (rule == "evidence" and verify_every > 1)
    assert all((look.words in told) == screened for look in LOOKS.values())
    assert "  " not in told
    assert re.search(r"[a-z0-9)]\.$", told)


def test_the_methods_follow_the_numbers_of_the_code(monkeypatch):
    monkeypatch.setattr(screen_labels, "ALPHA", 0.0125)
    monkeypatch.setattr(measured, "LOOKS", {"grain": LOOKS["up_down"]._replace(words="how grainy it is", sure=7.5)})
    settings = settings_of(screen=True, label_screen=True)
    told = methods(settings, settings.extensions)
    assert "by 1 look: (1) how grainy it is. Its" in told
    assert "above its own limit of 7.5 (1), or with left and right" in told
    assert "below 0.0125 divided by the number of centers" in told


def test_a_lock_up_is_told(tmp_path):
    everybody = [f"c{center}_{number}" for center in range(8) for number in range(12)]
    control = make(tmp_path, wait=1, cycles=[10], trainer=RandomTrainer(0, bad=everybody, often=1.0))
    assert report(tmp_path)[0] == 0
    told = control.locked_up(10).split("lock-up: ")[1].partition(" rejected.")[0]
    words = Page(tmp_path / "log_report.html").words
    assert f"Lock-up: {told} rejected; what was flagged then says little about the images" in words
    assert "Verdict: do not use" in words


def without_an_image(run):
    with_images(run)
    for path in run.glob("*_*.nii.gz"):
        path.unlink()


def with_another_shape(run):
    with_images(run)
    write_image(run / "test1.nii.gz", np.ones((3, 4, 6), np.float32))


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (lambda run: (run / "log.csv").write_text("a,b\n1,2\n"), [], "log.csv: missing column"),
        (lambda run: change(run / "train.csv", ",50,", ",fifty,"), [], "train.csv, row 2: Age is not a number"),
        (lambda run: None, ["--with-images"], "test.csv has no column Path"),
        (without_an_image, ["--with-images"], ".nii.gz"),
        (with_another_shape, ["--with-images"], "test1.nii.gz: has 6 x 4 x 3 voxels"),
        (lambda run: (run / "there").touch(), ["--output-folder", "there"], "there"),
    ],
)
def test_bad_input_is_one_line(run, damage, options, message, monkeypatch):
    monkeypatch.setattr(pages, "render", drawing.render)
    monkeypatch.chdir(run)
    damage(run)
    status, out, err = report(run, *options)
    assert status in (1, 2)
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (run / "log_report.html").exists()


def test_numbers_of_rows_are_those_of_the_file_whatever_lines_are_empty(run):
    report(run)
    before = Page(run / "log_report.html").tables
    lines = (run / "log.csv").read_text().splitlines()
    (run / "log.csv").write_text("\n".join([lines[0], "", *lines[1:]]) + "\n")
    assert report(run)[0] == 0
    after = Page(run / "log_report.html").tables
    (caption,) = [caption for caption in before if caption.startswith("Rows of the log")][:1]
    rows = [[int(row["log row"]) for row in tables[caption]] for tables in (before, after)]
    assert [number + 1 for number in rows[0]] == rows[1]


def test_every_run_of_a_study_has_its_page(run, tmp_path):
    sys.path.insert(0, str(REPRODUCE))
    from evaluation.records import read_study
    from evaluation.report import evaluate

    folder = tmp_path / "study" / "clean" / "quality_control_evidence_screen"
    folder.mkdir(parents=True)
    for file in ("log.csv", "log_subjects.csv"):
        shutil.copy(run / file, folder)
    record = json.loads((run / "log_run" / "run.json").read_text())
    record["options"] |= {"fn_train": str(run / "train.csv"), "fn_test": str(run / "test.csv")}
    (folder / "run.json").write_text(json.dumps(record))
    study = read_study(tmp_path / "study")
    evaluate(study, tmp_path / "out", resamples=99)
    place = "clean/quality_control_evidence_screen/report.html"
    page = Page(tmp_path / "out" / place)
    assert "Audit: consistent" in page.words
    assert not re.search(r"\b(harmful|good)\b", page.words.replace("elimination of harmful", ""))
    links = [attributes.get("href") for _, attributes in Page(tmp_path / "out" / "report.html").tags]
    assert links.count(place) == 1
    (run / "test.csv").unlink()  # then nothing was audited
    evaluate(read_study(tmp_path / "study"), tmp_path / "other", resamples=99)
    assert not (tmp_path / "other" / "clean").exists()
