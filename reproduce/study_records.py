"""The raw records of a study, read and checked: what tables, figures and report are made from.

A study folder holds, as reproduce/reproduce.py lays them out, ``clean/`` and, for every experiment and kind of harm,
``<experiment>_<kind>/`` with ``harmful/``, ``dirty_baseline/`` and ``quality_control/``, the latter for settings other
than the published one ``quality_control_<setting>/``; in ``clean/``, too, where the clean images were controlled. A
study with several seeds has one such layout in each of ``seed_<N>/``. No image is opened here, so a study can be
evaluated without its images.

What is missing is None and named in :attr:`Study.notes`; what is there but contradicts itself raises InputError.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from study_layout import (
    CLEAN,
    CONTROL_FOLDERS,
    CONTROLLED,
    DIRTY,
    EXPERIMENTS,
    HARM,
    KINDS,
    PUBLISHED,
    SETTINGS,
    condition_name,
    control_folder,
    split_condition,
)

from travelling.cohort import SEPARATOR
from travelling.errors import InputError
from travelling.metrics import performance
from travelling.protocol import PROTOCOLS
from travelling.quality_control import FAILURES
from travelling.rules import EvidenceRule, PublishedRule
from travelling.verification_log import LOG_COLUMNS, log_columns

PARTS = (HARM, DIRTY, *CONTROL_FOLDERS)
# The paper's order, then that of the options; other names follow by alphabet.
ORDERS = (("", *EXPERIMENTS), ("", *KINDS), (CLEAN, DIRTY, *CONTROL_FOLDERS))
SCREEN = "screen"  # the phase of a row that tells of a screened image: nothing was trained
VERIFIED = ("batch", "subject", "revisit")
LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})  (.*)")
TIME = "%Y-%m-%d %H:%M:%S,%f"
CYCLE_LINE = re.compile(r"cycle (\d+): ")
CYCLE_BEGINS_AFTER = ("training set:", "pre-trained model:", "cycle ")  # how the line before a cycle's begins


@dataclass(frozen=True)
class TrainedModel:
    """One run that trained, and the inference on its models.

    ``seed`` is the name of its seed folder, "" where there is none; ``experiment`` and ``kind`` are "" for the clean
    model. ``predictions`` has one row per cycle and test subject (None: no inference), ``metrics`` one of METRICS per
    cycle, indexed by cycle. ``cycle_seconds`` has the duration of every cycle that its log tells, by cycle. ``records``
    are its ``run.json`` and inference's, where they exist.
    """

    seed: str
    experiment: str
    kind: str
    name: str
    folder: Path
    finished: bool
    predictions: pd.DataFrame | None
    metrics: pd.DataFrame | None
    cycle_seconds: dict
    records: dict

    @property
    def key(self):
        """(experiment, kind, name): what a model is, whatever its seed."""
        return self.experiment, self.kind, self.name


@dataclass(frozen=True)
class ControlRun:
    """A finished run of quality control and the truth about its images.

    ``setting`` names its setting (see study_layout). ``log`` is the verification log, the baseline and one row per
    verification, with ``Row`` (in the file; row 1 is the header); ``screening`` has the rows that tell of an image
    without a training step: those of the screen, and revisits of images that it still suspected. ``images`` has one row
    per training image, indexed by Subject: Study, Group_bin, Sex, Age (years), Path (of the image; not checked),
    Harmful, Source (of a harmful image), Center_images (how many its center has), Times_flagged, First_flagged,
    Eliminated, Eliminated_cycle, and Scanner where the training set tells it. ``error`` is the tolerated rise of FPR or
    FNR per image, ``revisit`` the wait in cycles (None where not recorded), ``protocol`` the name of its protocol.
    """

    seed: str
    experiment: str
    kind: str
    folder: Path
    log: pd.DataFrame
    screening: pd.DataFrame
    images: pd.DataFrame
    error: float
    revisit: int | None
    setting: str = PUBLISHED
    protocol: str = "corrected"

    @property
    def name(self):
        """The run in words."""
        return in_words(self.experiment, self.kind, "" if self.setting == PUBLISHED else self.setting, self.seed)

    @property
    def key(self):
        """(experiment, kind, name) of its model."""
        return self.experiment, self.kind, control_folder(self.setting)

    @property
    def by_tolerance(self):
        """Whether -error alone decided, so that its log tells what other values would have done."""
        return "evidence" not in SETTINGS[self.setting]

    @property
    def cycles(self):
        """Its cycles in which anything was verified or screened, in order."""
        return sorted({*self.log["Cycle"][1:], *self.screening["Cycle"]})

    @property
    def locked_up(self):
        """The cycles in which most batches were undone, or most screened images suspected: a list of words."""
        found = []
        for table, phase, outcome in (
            (self.log, "batch", "batches of cycle {} were undone"),
            (self.screening, SCREEN, "images screened in cycle {} were suspected"),
        ):
            counts = table[table["Phase"] == phase].groupby("Cycle")["Ignored"].agg(["size", "sum"])
            found += [
                (cycle, f"{number} of {of} {outcome.format(cycle)}")
                for cycle, of, number in counts.itertuples()
                if 2 * number > of
            ]
        return [words for _, words in sorted(found)]

    @property
    def flags(self):
        """The rows that put an image aside, by verification or by the screen, in the order of the file."""
        tried = self.log[(self.log["Phase"] == "subject") & (self.log["Ignored"] == 1)]
        screened = self.screening[(self.screening["Phase"] == SCREEN) & (self.screening["Ignored"] == 1)]
        return pd.concat([tried, screened]).sort_values("Row")

    @property
    def revisits(self):
        """The rows of revisits, with and without a training step, in the order of the file."""
        rows = pd.concat([table[table["Phase"] == "revisit"] for table in (self.log, self.screening)])
        return rows.sort_values("Row")


@dataclass(frozen=True)
class Study:
    """All that is known of a study; ``notes`` says in words what is not there."""

    folder: Path
    seeds: list
    models: list
    controls: list
    records: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    def note(self, path, text):
        """Note what is not there."""
        self.notes.append(f"{path.relative_to(self.folder)}: {text}")

    @property
    def keys(self):
        """Every (experiment, kind, model) of the study, in the paper's order, whichever seeds have it."""
        return sorted({model.key for model in self.models}, key=_place)

    @property
    def conditions(self):
        """Every (experiment, kind) of the study, in the paper's order."""
        return list(dict.fromkeys(key[:2] for key in self.keys if key[0]))

    @property
    def settings(self):
        """The settings of quality control that the study has, the published one first."""
        names = {model.name for model in self.models}
        return [setting for folder, setting in CONTROL_FOLDERS.items() if folder in names]

    @property
    def main_setting(self):
        """The setting that is shown where there is place for one only: the published one, if the study has it."""
        return next(iter(self.settings), PUBLISHED)

    @property
    def shown_controls(self):
        """The runs of that setting."""
        return [run for run in self.controls if run.setting == self.main_setting]

    def runs(self, condition, setting=None):
        """The runs of an (experiment, kind) in a setting (None: the one that is shown), one per seed."""
        setting = setting or self.main_setting
        return [run for run in self.controls if (run.experiment, run.kind) == condition and run.setting == setting]


def in_words(*parts):
    """A name for readers: ``whole centers, noise``."""
    return ", ".join(part.replace("_", " ") for part in parts if part)


def _place(key):
    """Where an (experiment, kind, name), or the first of these, comes in :data:`ORDERS`."""
    return tuple(
        (order.index(name) if name in order else len(order), name) for order, name in zip(ORDERS, key, strict=False)
    )


def read_study(folder):
    """Read a study folder; returns a :class:`Study`.

    Raises InputError where there is no such study or where its records are damaged or contradict each other.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    seeds = sorted(
        (path for path in folder.glob("seed_*") if path.is_dir()), key=lambda path: (len(path.name), path.name)
    )
    if seeds and ((folder / CLEAN).is_dir() or _conditions(folder)):
        raise InputError(f"{folder}: has seed folders ({seeds[0].name}, ...) and runs of its own; which is the study?")
    study = Study(folder, [path.name for path in seeds] or [""], [], [])
    places = seeds or [folder]
    found = {name for place in places for path, *_ in _conditions(place) for name in PARTS if (path / name).is_dir()}
    # What no experiment has was not asked for; but there is no study without quality control.
    expected = [name for name in (DIRTY, *CONTROL_FOLDERS) if name in found]
    if not set(CONTROL_FOLDERS) & set(expected):
        expected.append(CONTROLLED)
    for place, seed in zip(places, study.seeds, strict=True):
        _read_seed(study, place, seed, expected)
    if not study.models:
        raise InputError(f"{folder}: not a study: neither clean/ nor <experiment>_<kind>/ with {', '.join(PARTS[:3])}")
    if study.conditions and DIRTY not in expected:
        study.notes.append("no dirty baseline, so nothing is known of what harm does without quality control")
    for condition in study.conditions:
        for place in seeds:
            if not (place / condition_name(*condition)).is_dir():
                study.note(place / condition_name(*condition), "missing")
    return study


def _conditions(folder):
    """The folders of experiments, in the paper's order: [(folder, experiment, kind)]."""
    found = []
    for path in folder.iterdir():
        experiment, kind = split_condition(path.name)
        parts = CONTROL_FOLDERS if experiment == CLEAN else PARTS
        if experiment and any((path / part).is_dir() for part in parts):
            found.append((path, experiment, kind))
    return sorted(found, key=lambda condition: _place(condition[1:]))


def _read_seed(study, folder, seed, expected):
    """Add what one seed's folder holds to the study; ``expected`` are the parts that every experiment should have."""
    models = []
    if (folder / CLEAN).is_dir():
        models.append(_read_model(study, folder / CLEAN, seed, "", "", CLEAN))
    else:
        study.note(folder / CLEAN, "missing, so nothing can be compared with a clean model")
    for place, experiment, kind in _conditions(folder):
        for part in expected:
            if (experiment, part) == (CLEAN, DIRTY):
                continue
            if not (place / part).is_dir():
                study.note(place / part, "missing")
                continue
            models.append(_read_model(study, place / part, seed, experiment, kind, part))
            if part in CONTROL_FOLDERS:
                control = _read_control(study, place, seed, experiment, kind, models[-1])
                if control:
                    study.controls.append(control)
    pretrained = folder / "pretrained" / "run.json"
    if pretrained.is_file():
        study.records[pretrained] = read_record(pretrained)
    for model in models:
        study.records.update(model.records)
    _refuse_other_test_sets([model for model in models if model.predictions is not None])
    study.models.extend(models)


def _read_model(study, folder, seed, experiment, kind, name):
    text_log = folder / ("log.log" if name in CONTROL_FOLDERS else "training.log")
    lines = _log_lines(text_log)
    records = {
        path: read_record(path) for path in (folder / "run.json", folder / "inference_run.json") if path.is_file()
    }
    record = records.get(folder / "run.json")
    finished = bool(record["finished"]) if record else bool(lines) and lines[-1][1].startswith("done:")
    if not finished:
        study.note(folder, "not finished")
    predictions = _read_predictions(folder)
    metrics = None
    if predictions is None:
        study.note(folder / "inference_predictions.csv", "missing, so its diagnoses are not known")
    else:
        metrics = _metrics(folder, predictions)
    seconds = _cycle_seconds(lines)
    return TrainedModel(seed, experiment, kind, name, folder, finished, predictions, metrics, seconds, records)


def read_record(path):
    """The record of a run (``run.json``) as a dict; raises InputError where it is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a record of a run ({error})") from None
    whole = isinstance(record, dict) and isinstance(record.get("options"), dict) and "finished" in record
    if not whole or not all(
        isinstance(part, dict) for part in (*record.get("sessions", [""]), record.get("inputs_sha256", {}))
    ):
        raise InputError(f"{path}: not a record of a run")
    return record


def read_table(path, columns, numeric=()):
    """Read a CSV that must have ``columns``; those in ``numeric`` as numbers (empty: NaN), all others as text.

    Raises InputError that names file and row for anything else.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a CSV file ({str(error).strip()})") from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{path}: missing column(s) {', '.join(missing)}")
    if table.empty:
        raise InputError(f"{path}: no rows")
    table = table.fillna("")  # of a row that breaks off
    for column in numeric:
        if column in table.columns:
            numbers = pd.to_numeric(table[column], errors="coerce")
            bad = numbers.isna() & ~table[column].str.lower().isin(["", "nan"])
            if bad.any():
                raise InputError(
                    f"{path}, row {bad.idxmax() + 2}: {column} is not a number ('{table[column][bad.idxmax()]}')"
                )
            table[column] = numbers
    return table


def _read_predictions(folder):
    """The predictions of a run's inference, every cycle, or None where there are none."""
    path = folder / "inference_predictions.csv"
    if not path.is_file():
        return None
    numeric = ("cycle", "ground_truth", "preds_raw", "Age")
    table = read_table(path, ("cycle", "ground_truth", "preds_raw", "Subject", "Sex"), numeric)
    if "Age" not in table.columns:
        table["Age"] = np.nan
    _refuse(path, ~table["ground_truth"].isin([0, 1]), "ground_truth is not 0 or 1")
    _refuse(path, table["cycle"] % 1 != 0, "cycle is not a whole number")
    _refuse(path, table.duplicated(["cycle", "Subject"]), "this Subject of this cycle appears before, too")
    table = table.astype({"cycle": int, "ground_truth": int})
    sizes = table.groupby("cycle").size()
    if sizes.nunique() > 1:
        raise InputError(f"{path}: cycle {sizes.idxmin()} has {sizes.min()} subjects, others {sizes.max()}")
    return table


def _metrics(folder, predictions):
    """The METRICS after every cycle; raises InputError where inference wrote others than its predictions tell."""
    rows = {
        cycle: performance(group["ground_truth"], group["preds_raw"]) for cycle, group in predictions.groupby("cycle")
    }
    metrics = pd.DataFrame.from_dict(rows, orient="index").rename_axis("cycle")
    path = folder / "inference_metrics.csv"
    if path.is_file():
        columns = ("cycle", "accuracy", "AUC_ROC")
        written = read_table(path, columns, columns).set_index("cycle")
        for (cycle, metric), value in metrics[list(columns[1:])].stack(future_stack=True).items():
            there = written[metric].get(cycle, np.nan)
            if not np.isclose(there, value, atol=1e-6, equal_nan=True):
                raise InputError(f"{path}: {metric} of cycle {cycle} is {there:g}, its predictions say {value:g}")
    return metrics


def _refuse(path, bad, reason):
    if bad.any():
        raise InputError(f"{path}, row {bad.idxmax() + 2}: {reason}")


def _refuse_other_test_sets(models):
    """Raise InputError where the models of one seed were not tested on the same subjects: no pairs, no comparison."""
    for model in models[1:]:
        tests = [
            tuple(map(tuple, group[["Subject", "ground_truth"]].sort_values("Subject").to_numpy()))
            for table in (models[0].predictions, model.predictions)
            for _, group in [next(iter(table.groupby("cycle")))]
        ]
        if tests[0] != tests[1]:
            raise InputError(f"{model.folder}: tested on other subjects or labels than {models[0].folder}")


def _log_lines(path):
    """The lines of a plain log: [(time, message)]; none where there is no such file."""
    if not path.is_file():
        return []
    matches = map(LOG_LINE.match, path.read_text(encoding="utf-8", errors="replace").splitlines())
    lines = [(pd.to_datetime(match[1], format=TIME, errors="coerce"), match[2]) for match in matches if match]
    return [(time, message) for time, message in lines if pd.notna(time)]


def _cycle_seconds(lines):
    """Seconds of every cycle that ran in one go, by cycle: a cycle that was interrupted has no known duration."""
    seconds, begin = {}, None
    for time, message in lines:
        cycle = CYCLE_LINE.match(message)
        if cycle and begin is not None:
            seconds[int(cycle[1])] = (time - begin).total_seconds()
        if message.startswith(CYCLE_BEGINS_AFTER):
            begin = time
        elif message.startswith(("command:", "going on")):
            begin = None
    return seconds


def _read_control(study, folder, seed, experiment, kind, model):
    """A run of quality control in an experiment's folder, or None (noted) where it is not complete."""
    setting = CONTROL_FOLDERS[model.name]
    record = model.records.get(model.folder / "run.json", {"options": {}})
    options = record["options"]
    log_csv = model.folder / "log.csv"
    truth_csv, training_csv = (folder / HARM / name for name in ("truth.csv", "training_set.csv"))
    if experiment == CLEAN:
        truth_csv, training_csv = None, study.folder / options.get("fn_train", "training_set.csv")
    missing = [path for path in (truth_csv, training_csv, log_csv) if path and not path.is_file()]
    for path in missing:
        text = "missing, so what was found is not known"
        if path.is_relative_to(study.folder):
            study.note(path, text)
        else:  # a training set that was elsewhere, and no reader needs to know where
            study.note(model.folder, f"its {path.name} is {text}")
    if missing or not model.finished:
        return None
    made_by = _setting_of(options)
    if made_by and made_by != setting:
        raise InputError(f"{model.folder / 'run.json'}: made by the setting '{made_by}', in the folder of '{setting}'")
    images = _read_images(training_csv, truth_csv, experiment, kind)
    protocol = options.get("protocol", "corrected")
    log = read_log(log_csv, setting, protocol)
    harmful_record = folder / HARM / "run.json"
    if harmful_record.is_file():
        study.records[harmful_record] = read_record(harmful_record)
    log_images = set(SEPARATOR.join(log["Subjects"][1:]).split(SEPARATOR))
    if not log_images <= set(images.index):
        raise InputError(f"{log_csv}: trained {min(log_images - set(images.index))}, who is not in {training_csv}")
    centers = log["Subjects"][1:].str.split(SEPARATOR).str[0].map(images["Study"])
    _refuse(log_csv, centers != log["Study"][1:], f"Study is not that of the subject in {training_csv}")
    _add_outcome(images, log)
    _compare_with_subjects(model.folder / "log_subjects.csv", images)
    trained = log["PFP"].notna()
    errors = (log["Tolerance"] / log["Images"])[trained][1:].dropna()
    if "evidence" not in SETTINGS[setting] and len(errors) and not np.allclose(errors, errors.iloc[0]):
        raise InputError(f"{log_csv}: its Tolerance is not the same per image in all rows")
    error = float(errors.iloc[0]) if len(errors) else np.nan
    log, screening = (log[rows].reset_index(drop=True) for rows in (trained, ~trained))
    return ControlRun(
        seed, experiment, kind, model.folder, log, screening, images, error, options.get("revisit"), setting, protocol
    )


def _setting_of(options):
    """The setting that the options of a run's record tell, "" where they do not (they are of an older version)."""
    if "rule" not in options and "screen" not in options:
        return ""
    words = [*(["--rule", "evidence"] if options.get("rule") == "evidence" else [])]
    words += ["--screen"] if options.get("screen") else []
    return next(setting for setting, line in SETTINGS.items() if list(line) == words)


def _read_images(training_csv, truth_csv, experiment, kind):
    """The training images and the truth about them; without ``truth_csv`` all are good."""
    images = read_table(training_csv, ("Subject", "Study", "Path", "Group_bin", "Sex"), ("Group_bin", "Age"))
    _refuse(training_csv, images["Subject"].duplicated(), "Subject appears before, too")
    sources = pd.Series(dtype=object)
    if truth_csv:
        truth = read_table(truth_csv, ("Subject", "Study", "Kind", "Experiment", "Source"))
        if set(truth["Kind"]) != {kind} or set(truth["Experiment"]) != {experiment}:
            raise InputError(f"{truth_csv}: its Experiment or Kind is not that of its folder ({experiment}, {kind})")
        _refuse(truth_csv, truth["Subject"].duplicated(), "Subject appears before, too")
        _refuse(truth_csv, ~truth["Subject"].isin(images["Subject"]), f"Subject is not in {training_csv}")
        sources = truth.set_index("Subject")["Source"]
    if "Age" not in images.columns:
        images["Age"] = np.nan
    images["Path"] = [str((training_csv.parent / path).resolve()) for path in images["Path"]]
    images["Harmful"] = images["Subject"].isin(sources.index)
    images["Source"] = images["Subject"].map(sources)
    images["Center_images"] = images.groupby("Study")["Subject"].transform("size")
    return images.set_index("Subject")


def harms(steps, tolerance, protocol):
    """Whether each step (rows of a log) raised FPR or FNR by more than a tolerance: booleans of shape (steps,)."""
    fpr, fnr = (
        PROTOCOLS[protocol].exceeds(steps[rate], steps[f"Reference_{rate}"], tolerance) for rate in ("PFP", "PFN")
    )
    return (fpr | fnr).to_numpy()


def read_log(path, setting=PUBLISHED, protocol="corrected"):
    """Read a verification log; adds ``Images`` (of the step) and ``Row`` (in the file, whose row 1 is the header).

    ``setting`` and ``protocol`` name those that wrote it. Rows without rates (PFP and PFN) tell of an image that the
    screen judged. In the settings that decide by tolerance every decision is checked, in the others
    ``audit.py`` does that.
    """
    numbers = (
        "Cycle", "ACC", "FP", "FN", "PFP", "PFN", "Ignored", "Tolerance",
        "Reference_PFP", "Reference_PFN", "Eliminated",
    )  # fmt: skip
    screens, weighs = ("--screen" in SETTINGS[setting], "evidence" in SETTINGS[setting])
    columns = log_columns(EvidenceRule if weighs else PublishedRule, screens)
    log = read_table(path, columns, (*numbers, *columns[len(LOG_COLUMNS) :]))
    if log["Phase"][0] != "baseline" or len(log) < 2:
        raise InputError(f"{path}: not the log of a run: the first row must be the baseline, and others must follow")
    log = log[~log["Phase"].isin(FAILURES)]  # a center gave no usable answer: nothing was measured, nothing changed
    _refuse(path, ~log["Phase"].isin(["baseline", *VERIFIED, *([SCREEN] if screens else [])]), "unknown Phase")
    # The screen trains nothing: neither for its own rows nor at the revisit of an image that it still suspects.
    untrained = log["PFP"].isna() & log["PFN"].isna()
    suspect = (log["Phase"] == "revisit") & untrained & (log["Eliminated"] == 1)
    screened = (log["Phase"] == SCREEN) | (suspect & screens)
    log["Subjects"] = log["Subjects"].mask(screened & (log["Subjects"] == ""), log["Subject"])
    for column in ("PFP", "PFN"):
        _refuse(path, log[column].isna() & ~screened, f"{column} is empty")
        _refuse(path, log[column].notna() & (log["Phase"] == SCREEN), f"{column} is not empty, but nothing was trained")
    for column in ("Cycle", "Ignored", "Eliminated"):
        _refuse(path, log[column] % 1 != 0, f"{column} is not a whole number")
    alone = log["Phase"].isin(["subject", "revisit", SCREEN])
    _refuse(path, alone & (log["Subject"] != log["Subjects"]), "Subject and Subjects are not the same")
    _refuse(
        path, log["Eliminated"] != (log["Phase"] == "revisit") * log["Ignored"], "Eliminated is not what Ignored says"
    )
    log["Images"] = log["Subjects"].str.count(SEPARATOR) + 1
    log["Row"] = log.index + 2
    # What the step did to the worse of the two rates, per image: harmful where it is above -error.
    rises = log[["PFP", "PFN"]].to_numpy() - log[["Reference_PFP", "Reference_PFN"]].to_numpy()
    log["Rise"] = rises.max(axis=1) / log["Images"]
    if not weighs:
        _refuse_other_decisions(path, log[~screened], protocol)
    return log.astype({"Cycle": int, "Ignored": int, "Eliminated": int})


def _refuse_other_decisions(path, log, protocol):
    """Raise InputError where a verification was not decided by its rates, its reference and its tolerance."""
    for column in ("Tolerance", "Reference_PFP", "Reference_PFN"):
        _refuse(path, log[column].isna() & (log["Phase"] != "baseline"), f"{column} is empty")
    harmful = harms(log, log["Tolerance"], protocol)
    _refuse(path, harmful != (log["Ignored"] == 1), "Ignored is not what rates, reference and tolerance say")
    accepted = log[["PFP", "PFN"]].where(log["Ignored"] == 0).ffill().shift()[1:]
    chained = np.isclose(log[["Reference_PFP", "Reference_PFN"]][1:], accepted).all(axis=1)
    _refuse(path, pd.Series(~chained, log.index[1:]), "the reference is not the last accepted evaluation")


def _add_outcome(images, log):
    """Add to every image what the log says happened to it."""
    flagged = log["Phase"].isin(["subject", SCREEN]) & (log["Ignored"] == 1)
    flags = log[flagged].groupby("Subject")["Cycle"]
    eliminated = log[log["Eliminated"] == 1].groupby("Subject")["Cycle"].first()
    images["Times_flagged"] = flags.size().reindex(images.index, fill_value=0)
    images["First_flagged"] = flags.min().reindex(images.index).astype("Int64")
    images["Eliminated"] = images.index.isin(eliminated.index)
    images["Eliminated_cycle"] = eliminated.reindex(images.index).astype("Int64")


def _compare_with_subjects(path, images):
    """Raise InputError where the subject file is not what the log says."""
    if not path.is_file():
        return
    columns = ("Subject", "Times_flagged", "Eliminated")
    subjects = read_table(path, columns, columns[1:])
    _refuse(path, subjects["Subject"].duplicated(), "Subject appears before, too")
    subjects = subjects.set_index("Subject")
    for column in columns[1:]:
        bad = subjects[column].reindex(images.index) != images[column]
        if bad.any():
            raise InputError(f"{path}: {column} of {bad.idxmax()} is not what the log says")
