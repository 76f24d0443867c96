"""The raw records of a study: what tables, figures and report are made from.

A study folder is laid out as docs/study.md tells; no image is opened. What is missing is named in
:attr:`Study.notes`; what contradicts itself, or is a log that the audit refuses, raises InputError.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import layout
from evaluation.layout import CLEAN, CONTROL_FOLDERS, DIRTY, HARM, PUBLISHED, SETTINGS
from travelling.errors import InputError
from travelling.method.performance import performance
from travelling.method.verification_log import SEPARATOR
from travelling.option import fields_of
from travelling.runs.extensible import Extensible
from travelling_quality_control.auditing import audit_log
from travelling_quality_control.auditing.run_record import read_run_record, settings_of
from travelling_quality_control.auditing.tables import read_table, refuse_rows
from travelling_quality_control.judging.logged_run import LoggedRun, read_images, read_log

LOG = "log.csv"  # in the folder of a run of quality control
TESTS = ("inference", "holdout")  # on the test set, which decides, and on the hold-out set, which does not
FOLDERS = (HARM, DIRTY, *CONTROL_FOLDERS)


@dataclass
class TrainedModel:
    """One run that trained, and the inference on its models.

    ``seed`` is the name of its seed folder, "" where there is none; ``experiment`` and ``kind`` are "" for the clean
    model; ``key`` is what a model is, whatever its seed. ``record`` is its ``run.json``. ``predictions`` has one row
    per cycle and test subject (None: no inference), ``holdout`` those of the hold-out set, ``metrics`` the METRICS
    by cycle.
    """

    seed: str
    experiment: str
    kind: str
    name: str
    folder: Path
    record: dict
    predictions: pd.DataFrame | None
    holdout: pd.DataFrame | None
    metrics: pd.DataFrame | None

    def __post_init__(self) -> None:
        """What follows from the fields."""
        self.key = self.experiment, self.kind, self.name
        self.options = self.record["options"]


@dataclass
class ControlRun(TrainedModel, LoggedRun):
    """A finished run of quality control and the truth about its images.

    ``images`` tells Harmful, Source (of a harmful image) and Center_images (how many its center has), too; ``harmful``
    and ``good`` are parts of it.
    """

    def __post_init__(self) -> None:
        """What follows from the fields."""
        TrainedModel.__post_init__(self)
        LoggedRun.__post_init__(self)
        self.setting = CONTROL_FOLDERS[self.name]
        self.place: tuple = self.experiment, self.kind, self.seed
        self.words = in_words(self.experiment, self.kind, "" if self.setting == PUBLISHED else self.setting, self.seed)
        self.harmful, self.good = self.images[self.images["Harmful"]], self.images[~self.images["Harmful"]]


@dataclass
class Study:
    """All that is known of a study; ``records`` maps files to run records, ``notes`` says what is not there.

    ``keys`` are (experiment, kind, model), ``conditions`` (experiment, kind), both in the paper's order and whichever
    seeds have them; ``settings`` those of quality control, of which ``main_setting`` is shown where there is place for
    one only: the published one, if the study has it. ``controls`` are the finished runs of quality control,
    ``shown_controls`` those of that setting.
    """

    folder: Path
    seeds: list
    models: list
    records: dict
    notes: list

    def __post_init__(self) -> None:
        """What follows from the fields."""
        self.keys = list(dict.fromkeys(model.key for model in self.models))
        self.conditions = list(dict.fromkeys(key[:2] for key in self.keys if key[0]))
        names = {model.name for model in self.models}
        self.settings = [setting for folder, setting in CONTROL_FOLDERS.items() if folder in names]
        self.main_setting = next(iter(self.settings), PUBLISHED)
        self.controls = [model for model in self.models if isinstance(model, ControlRun)]
        self.shown_controls = [run for run in self.controls if run.setting == self.main_setting]

    def runs(self, condition: tuple, setting: str | None = None) -> list:
        """The runs of an (experiment, kind) in a setting (None: the one that is shown), one per seed."""
        setting = setting or self.main_setting
        return [run for run in self.controls if run.key[:2] == condition and run.setting == setting]


def in_words(*parts: str) -> str:
    """A name for readers: ``whole centers, noise``."""
    return ", ".join(part.replace("_", " ") for part in parts if part)


def read_study(folder: Path) -> Study:
    """Read a study folder.

    Raises InputError where there is no such study or where its records are damaged or contradict each other.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    seeds = sorted(filter(Path.is_dir, folder.glob("seed_*")), key=lambda path: (len(path.name), path.name))
    if seeds and ((folder / CLEAN).is_dir() or _conditions(folder)):
        raise InputError(f"{folder}: has seed folders ({seeds[0].name}, ...) and runs of its own; which is the study?")
    places = seeds or [folder]
    found = {name for place in places for path, *_ in _conditions(place) for name in FOLDERS if (path / name).is_dir()}
    # What no experiment has was not asked for; but there is no study without quality control.
    expected = [name for name in (DIRTY, *CONTROL_FOLDERS) if name in found]
    if not found & set(CONTROL_FOLDERS):
        expected.append(layout.CONTROLLED)
    reader = _Reader(folder)
    models = [model for place in places for model in reader.seed(place, place.name if seeds else "", expected)]
    study = Study(folder, [path.name for path in seeds] or [""], models, reader.records, reader.notes)
    if not models:
        parts = ", ".join(FOLDERS[:3])
        raise InputError(f"{folder}: not a study: neither clean/ nor <experiment>_<kind>/ with {parts}")
    if study.conditions and DIRTY not in expected:
        study.notes.append("no dirty baseline, so nothing is known of what harm does without quality control")
    for condition in study.conditions:
        for path in [place / layout.condition_name(*condition) for place in seeds]:
            if not path.is_dir():
                reader.note(path, "missing")
    return study


def _conditions(folder):
    """The folders of experiments, in the paper's order: [(folder, experiment, kind)]."""
    found = []
    for experiment, kind in layout.conditions_of(layout.EXPERIMENTS, layout.KINDS):
        path = folder / layout.condition_name(experiment, kind)
        if any((path / part).is_dir() for part in (CONTROL_FOLDERS if experiment == CLEAN else FOLDERS)):
            found.append((path, experiment, kind))
    return found


@dataclass
class _Reader:
    """Reads the runs of a study, and collects records and notes."""

    folder: Path
    records: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    def note(self, path, text, of=None):
        """Note what is not there; of what was outside the study no reader needs to know where, only for which run."""
        if of and not path.is_relative_to(self.folder):
            path, text = of, f"its {path.name} is {text}"
        self.notes.append(f"{path.relative_to(self.folder)}: {text}")

    def seed(self, folder, seed, expected):
        """The models in one seed's folder; ``expected`` are the parts that every experiment should have."""
        models = []
        if (folder / CLEAN).is_dir():
            models.append(self.model(folder / CLEAN, seed, "", "", CLEAN))
        else:
            self.note(folder / CLEAN, "missing, so nothing can be compared with a clean model")
        for place, experiment, kind in _conditions(folder):
            for part in expected:
                if (experiment, part) == (CLEAN, DIRTY):
                    continue
                if (place / part).is_dir():
                    models.append(self.model(place / part, seed, experiment, kind, part))
                else:
                    self.note(place / part, "missing")
            self.record(place / HARM / "run.json")
        self.record(folder / "pretrained" / "run.json")
        for name in ("predictions", "holdout"):
            tested = [model for model in models if getattr(model, name) is not None]
            for model in tested[1:]:  # no pairs, no comparison
                if _labels(getattr(model, name)) != _labels(getattr(tested[0], name)):
                    raise InputError(f"{model.folder}: tested on other subjects or labels than {tested[0].folder}")
        return models

    def model(self, folder, seed, experiment, kind, name):
        record = self.record(folder / "run.json")
        for test in TESTS:
            self.record(folder / f"{test}_run.json")
        predictions, holdout = (_read_predictions(folder / f"{name}_predictions.csv") for name in TESTS)
        metrics = None if predictions is None else _metrics(predictions)
        model = TrainedModel(seed, experiment, kind, name, folder, record, predictions, holdout, metrics)
        if not model.record["finished"]:
            self.note(folder, "not finished")
        if predictions is None:
            self.note(folder / "inference_predictions.csv", "missing, so its diagnoses are not known")
        return self.control(model) if name in CONTROL_FOLDERS else model

    def record(self, path):
        """The record of a run as a dict, an empty one where there is none; it is added to those of the self."""
        if not path.is_file():
            return {"options": {}, "sessions": [], "finished": None}
        self.records[path] = read_run_record(path)
        return self.records[path]

    def control(self, model):
        """A :class:`ControlRun`, or the model as it is (noted) where the run is not complete."""
        options = model.options
        harm, log_csv = model.folder.parent / HARM, model.folder / LOG
        truth_csv, training_csv = harm / "truth.csv", harm / "training_set.csv"
        if model.experiment == CLEAN:
            truth_csv, training_csv = None, self.folder / options.get("fn_train", "training_set.csv")
        missing = [path for path in (truth_csv, training_csv, log_csv) if path and not path.is_file()]
        for path in missing:
            self.note(path, "missing, so what was found is not known", model.folder)
        if missing or not model.record["finished"]:
            return model
        settings = settings_of(model.record, model.folder / "run.json")
        setting = SETTINGS[CONTROL_FOLDERS[model.name]]
        defaults = {field.name: field.default for field in fields_of(Extensible.whole())}
        names = {name for one in SETTINGS.values() for name in one} - {"verify_every"}  # goes with any of them
        if any(options.get(name, defaults[name]) != setting.get(name, defaults[name]) for name in names):
            raise InputError(f"{model.folder / 'run.json'}: made by another setting than that of its folder")
        outcome = self.audit(model, log_csv, training_csv)
        images = _read_images(training_csv, truth_csv, model.experiment, model.kind)
        log = read_log(log_csv, settings.extensions)
        if log["Phase"].iloc[0] != "baseline" or len(log) < 2:
            raise InputError(
                f"{log_csv}: not the log of a run: the first row must be the baseline, and others must follow"
            )
        unknown = set(SEPARATOR.join(log["Subjects"]).split(SEPARATOR)) - {""} - set(images.index)
        if unknown:
            raise InputError(f"{log_csv}: trained {min(unknown)}, who is not in {training_csv}")
        known = {one.name: getattr(model, one.name) for one in fields(model)}
        return ControlRun(
            **known, settings=settings, extensions=settings.extensions, table=log, images=images, outcome=outcome
        )

    def audit(self, model, log_csv, training_csv):
        """Raise InputError for a log that the audit refuses; note where the audit cannot be made (None)."""
        test_csv = self.folder / model.options.get("fn_test", "test_set.csv")
        subjects_csv = model.folder / "log_subjects.csv"
        if not test_csv.is_file():
            self.note(test_csv, "missing, so its log was not audited", model.folder)
            return None
        subjects_csv = subjects_csv if subjects_csv.is_file() else None
        found = audit_log(log_csv, training_csv, test_csv, model.record, subjects_csv)
        if found.violations:
            raise InputError(found.violations[0])
        return found


def _labels(predictions):
    cycle = predictions[predictions["cycle"] == predictions["cycle"].min()]
    return dict(zip(cycle["Subject"], cycle["ground_truth"], strict=True))


def _read_predictions(path):
    """The predictions of a model, of every cycle; None where there are none."""
    if not path.is_file():
        return None
    numeric = ("cycle", "ground_truth", "preds_raw", "Age")
    table = read_table(path, ("cycle", "ground_truth", "preds_raw", "Subject", "Sex"), numeric)
    if "Age" not in table.columns:
        table["Age"] = np.nan
    refuse_rows(path, ~table["ground_truth"].isin([0, 1]), "ground_truth is not 0 or 1")
    refuse_rows(path, table["cycle"] % 1 != 0, "cycle is not a whole number")
    refuse_rows(path, table.duplicated(["cycle", "Subject"]), "this Subject of this cycle appears before, too")
    table = table.astype({"cycle": int, "ground_truth": int})
    sizes = table.groupby("cycle").size()
    if sizes.nunique() > 1:
        raise InputError(f"{path}: cycle {sizes.idxmin()} has {sizes.min()} subjects, others {sizes.max()}")
    return table


def _metrics(predictions):
    """The METRICS of every cycle."""
    rows = {cycle: performance(of["ground_truth"], of["preds_raw"]) for cycle, of in predictions.groupby("cycle")}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("cycle")


def _read_images(training_csv, truth_csv, experiment, kind):
    """The training images and the truth about them; without ``truth_csv`` all are good."""
    images = read_images(training_csv, ("Path", "Group_bin", "Sex"))
    sources: dict[str, str] = {}
    if truth_csv:
        truth = read_table(truth_csv, ("Subject", "Study", "Kind", "Experiment", "Source"))
        if set(truth["Kind"]) != {kind} or set(truth["Experiment"]) != {experiment}:
            raise InputError(f"{truth_csv}: its Experiment or Kind is not that of its folder ({experiment}, {kind})")
        refuse_rows(truth_csv, truth["Subject"].duplicated(), "Subject appears before, too")
        refuse_rows(truth_csv, ~truth["Subject"].isin(images.index), f"Subject is not in {training_csv}")
        sources = dict(zip(truth["Subject"], truth["Source"], strict=True))
    images["Harmful"] = images.index.isin(list(sources))
    images["Source"] = images.index.map(sources.get)
    images["Center_images"] = images.groupby("Study")["Study"].transform("size")
    return images
