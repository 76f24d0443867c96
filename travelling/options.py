"""What a run can be told: every option once, with its type, default, unit and words.

A class for each kind of run. From it come the script's command line (:func:`from_command_line`), the configuration file
of a federated site (:func:`from_json`), the record of the run (its fields are what ``run.json`` holds), and the command
lines that ``reproduce.py`` plans (:func:`to_command_line`). Imports nothing that is slow: ``--help`` needs it.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from travelling.command import Parser, number, result_name
from travelling.errors import InputError
from travelling.harm import KINDS, PUBLISHED
from travelling.protocol import PROTOCOLS
from travelling.rules import DEFAULT_RULE, RULES, rule_help

FALSE_ALARMS = 0.01  # of the screen, unless told otherwise
AGE_EDGES = (60.0, 70.0)  # years
CENTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # FLARE makes folders and addresses of them
_REQUIRED = object()
_FILE_OR_FOLDER = "a file (.keras or .h5) or a folder with one for each cycle"
_PUBLISHED = "published options"
_METHOD = "method"
_BEYOND = "beyond the published method (docs/settings.md)"


def option(
    words: str,
    parse: Callable[[str], Any] | None = None,
    default: Any = _REQUIRED,
    *,
    metavar: str | None = None,
    choices: tuple = (),
    many: str = "",
    flag: str | None = None,
    group: str | None = None,
    from_json: Callable[[Any, Path], Any] | None = None,
) -> Any:
    """A field of a class of options.

    ``parse`` makes its value of a text (None: the option is a flag that is there or not), ``many`` tells how many it
    may have (argparse's ``nargs``); ``flag`` is its spelling on the command line where that is not ``--kebab-case``
    (without a dash: the option is told by its place, and needed); ``from_json(value, folder)`` makes its value of what
    a file says, where ``parse`` cannot.
    """
    about = {key: value for key, value in locals().items() if key != "default"}
    if default is _REQUIRED:
        return dataclasses.field(metadata=about)
    return dataclasses.field(default=default, metadata=about)


def published(words: str, flag: str, parse: Callable[[str], Any], default: Any = _REQUIRED, metavar: str = "N") -> Any:
    """An option of the published scripts, with their spelling."""
    return option(words, parse, default, metavar=metavar, flag=flag, group=_PUBLISHED)


def changed(base: Any, name: str, default: Any = _REQUIRED, **about: Any) -> Any:
    """The option of another class, with another default or other words."""
    field = base.__dataclass_fields__[name]
    default = field.default if default is _REQUIRED else default
    options = {**field.metadata, **about}
    return option(default=_REQUIRED if default is dataclasses.MISSING else default, **options)


@dataclass(kw_only=True)
class Options:
    """The base of all."""

    def check(self, spell: Callable[[str], str]) -> None:
        """Refuse (ValueError) what does not go together, and fill in what depends on other options.

        ``spell`` turns the name of an option into what the user calls it.
        """


@dataclass(kw_only=True)
class Orientation(Options):
    """For every script that reads images."""

    reorient: bool = option(
        "turn images whose axes are only permuted or flipped as those of the first one are", None, False
    )


@dataclass(kw_only=True)
class Images(Orientation):
    """For the sites of a federation, which may share a machine."""

    cache_gb: float | None = option(
        "memory for decoded images (default: half of what is free)", number(float, 0), None, metavar="GB"
    )
    cache_dir: Path | None = option(
        "for the decoded images beyond that; it stays and may be shared by runs (default: run_image_cache in the "
        "folder of the results, removed at the end)",
        Path,
        None,
        metavar="FOLDER",
    )


@dataclass(kw_only=True)
class Device(Options):
    """For every script that computes on a GPU where there is one."""

    precision: str = option(
        "of the encoder's arithmetic; weights, their updates and the diagnosis are float32 in any case",
        str,
        "float32",
        choices=("float32", "bfloat16", "float16"),
    )
    deterministic: bool = option(
        "the same results to the last bit in every run on the same GPU; slower (a CPU does it always)", None, False
    )


@dataclass(kw_only=True)
class Overwrite(Options):
    """For every script whose results may be there already."""

    overwrite: bool = option(
        "replace the results of another or of a complete run; an interrupted run goes on", None, False
    )


@dataclass(kw_only=True)
class Training(Orientation, Overwrite):
    """For every run that trains, wherever the images are."""

    cycles: int = published("cycles in all; in each, all centers are visited", "-cycles", number(int, 1), 30)
    batch_size: int = published("images per training step", "-batch_size", number(int, 1), 5)
    protocol: str = option(
        "as the paper describes it, or as its published code does it (docs/protocols.md)",
        str,
        "corrected",
        choices=tuple(PROTOCOLS),
        group=_METHOD,
    )
    learning_rate: float = option(
        "Adam's learning rate in cycle 0", number(float, 0), 1e-4, metavar="RATE", group=_METHOD
    )
    seed: int = option(
        "of the travelling order; where training begins anew, of the weights and the dropout, too",
        number(int, 0, 2**31),
        42,
        group=_METHOD,
    )
    output_folder: Any = option("for the models of every cycle", Path, metavar="FOLDER")  # a Path, after check()


@dataclass(kw_only=True)
class TrainingSet(Options):
    """For every script that reads the training images itself."""

    fn_train: Path = published("training set", "-fn_train", Path, metavar="CSV")


@dataclass(kw_only=True)
class Epochs(Options):
    """For training without quality control."""

    epochs: int = published("epochs per visit to a center", "-epochs", number(int, 1), 1)


@dataclass(kw_only=True)
class Pretrained(Options):
    """For every run that goes on from a pre-trained model."""

    en: Path = published(f"encoder to go on from, {_FILE_OR_FOLDER}", "-en", Path, metavar="PATH")
    pd: Path = published("its classifier, likewise", "-pd", Path, metavar="PATH")
    first_cycle: int | None = option(
        "first cycle of this run (default: the one after the pre-trained model's, which is the last one of a folder)",
        number(int, 0),
        None,
        metavar="CYCLE",
        group=_METHOD,
    )


@dataclass(kw_only=True)
class FromScratch(Training, Epochs):
    """The standard travelling model."""

    seed: int = changed(Training, "seed", 40)
    width: float = option(
        "filters of every convolution, relative to the published network",
        number(float, 0.01, 8),
        1.0,
        metavar="FACTOR",
        group=_METHOD,
    )


@dataclass(kw_only=True)
class StandardModel(FromScratch, TrainingSet, Device):
    """The standard travelling model, on this machine."""

    output_folder: Path = changed(Training, "output_folder", Path("standard_travelling_model_run"))


@dataclass(kw_only=True)
class DirtyBaseline(Training, Epochs, Pretrained, TrainingSet, Device):
    """The dirty baseline."""

    output_folder: Path = changed(Training, "output_folder", Path("dirty_baseline_run"))


@dataclass(kw_only=True)
class QualityControl(Training, Pretrained):
    """Quality control, wherever the training images are."""

    batch_size: int = changed(Training, "batch_size", flag="--batch-size", group=_METHOD)
    fn_test: Path = published("test set, which only home holds", "-fn_test", Path, metavar="CSV")
    revisit: int = published(
        "cycles that a flagged image waits; it is revisited at the end of the last of them",
        "-revisit",
        number(int, 1),
        2,
        "CYCLES",
    )
    error: float = published(
        "tolerated rise of FPR or FNR, as a fraction of 1, per image of a training step",
        "-error",
        number(float, 0, 1),
        0.02,
        "RATE",
    )
    fn_save: Path = published("results, without '.csv'", "-fn_save", result_name, metavar="NAME")
    allow_saturated: bool = option(
        "go on where the pre-trained model errs so much that verification cannot see harm", None, False, group=_METHOD
    )
    rule: str = option(
        rule_help(),
        str,
        DEFAULT_RULE,
        choices=tuple(RULES),
        group=_BEYOND,
    )
    verify_every: int = option(
        "batches that are trained before the test set is evaluated; a group that harms is searched by halves "
        "(advised: 16 with --rule evidence)",
        number(int, 1),
        1,
        metavar="BATCHES",
        group=_BEYOND,
    )
    screen: bool = option(
        "put images aside that look like nothing the model has learned of", None, False, group=_BEYOND
    )
    label_screen: bool = option(
        "with --screen: put centers aside, too, whose labels all together contradict the model",
        None,
        False,
        group=_BEYOND,
    )
    false_alarms: float | None = option(
        f"share of good images that --screen may suspect at a look (default: {FALSE_ALARMS})",
        number(float, 1e-6, 0.5),
        None,
        metavar="RATE",
        group=_BEYOND,
    )
    output_folder: Any = changed(
        Training, "output_folder", None, words="for the models of every cycle (default: <fn_save>_run)"
    )

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`Options.check`."""
        if self.false_alarms is not None and not self.screen:
            raise ValueError(f"{spell('false_alarms')}: is an option of {spell('screen')}")
        if self.label_screen and not self.screen:
            raise ValueError(f"{spell('label_screen')}: is an option of {spell('screen')}")
        if self.screen and self.false_alarms is None:
            self.false_alarms = FALSE_ALARMS
        if self.output_folder is None:
            self.output_folder = self.fn_save.with_name(f"{self.fn_save.name}_run")


@dataclass(kw_only=True)
class LocalQualityControl(QualityControl, TrainingSet, Device):
    """Quality control, on this machine."""


@dataclass(kw_only=True)
class Inference(Orientation, Overwrite):
    """Evaluating the models of every cycle."""

    fn: Path = published("test set", "-fn", Path, metavar="CSV")
    en: Path = published(f"encoder, {_FILE_OR_FOLDER}", "-en", Path, metavar="PATH")
    pd: Path = published("classifier, likewise", "-pd", Path, metavar="PATH")
    o: Path = published("results, without '_metrics.csv'", "-o", result_name, metavar="NAME")
    first_cycle: int | None = option(
        "first cycle to evaluate (default: first found)", number(int, 0), None, metavar="CYCLE", group="evaluation"
    )
    last_cycle: int | None = option(
        "last cycle to evaluate (default: last found)", number(int, 0), None, metavar="CYCLE", group="evaluation"
    )


@dataclass(kw_only=True)
class HarmfulSamples(Overwrite):
    """Making harmful images, or an experiment of them."""

    i: tuple = option("T1 images (NIfTI); or", Path, None, metavar="IMAGE", many="+", flag="-i", group="source")
    fn_train: Path | None = option(
        "training set to build an experiment from", Path, None, metavar="CSV", flag="-fn_train", group="source"
    )
    kind: str = option(
        "an experiment takes one; 'both' (inverted and noise) is for -i only",
        str,
        "both",
        choices=(*KINDS, "both"),
        group="harm",
    )
    experiment: str = option("with -fn_train", str, "whole_centers", choices=("whole_centers", "single"), group="harm")
    centers: int = option("centers with harmful images", number(int, 1), 5, metavar="N", group="harm")
    images: int = option("harmful images per new center (whole_centers)", number(int, 1), 5, metavar="K", group="harm")
    maximum: float = option(
        "of inverted and noise: intensities are from 0 to this; inverted is maximum - x, noise is clipped to it",
        number(float, 1e-6),
        255.0,
        metavar="INTENSITY",
        group="harm",
    )
    seed: int = option("of the choice and of the noise", number(int, 0), 42, group="harm")
    output_folder: Path = option("for images and CSVs", Path, Path("harmful_samples"), metavar="FOLDER")
    overwrite: bool = changed(Overwrite, "overwrite", words="replace the results of an earlier run")

    @property
    def kinds(self) -> tuple:
        """The kinds of harm that ``--kind`` names."""
        return PUBLISHED if self.kind == "both" else (self.kind,)

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`Options.check`."""
        if (self.i is None) == (self.fn_train is None):
            raise ValueError(f"one of {spell('i')} and {spell('fn_train')} is needed, and not both")
        if self.fn_train and self.kind == "both":
            raise ValueError(f"{spell('kind')}: an experiment needs one kind: {', '.join(KINDS)}")
        if self.i and self.kind == "swapped_label":
            raise ValueError(
                f"{spell('kind')} swapped_label: an image has no label; it needs an experiment ({spell('fn_train')})"
            )


def _center_names(value, folder):
    if not isinstance(value, list) or not all(isinstance(name, str) and CENTER_NAME.fullmatch(name) for name in value):
        raise ValueError("a list of names of letters, digits, '-' and '_' is needed, as FLARE knows the centers")
    if len(value) < 2:
        raise ValueError(f"the model cannot travel: two centers at least are needed, not {len(value)}")
    if len(set(value)) < len(value):
        raise ValueError("a center is named twice")
    return value


def _shape(value, folder):
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(size, int) and size > 0 for size in value):
        raise ValueError("three numbers of voxels are needed: x, y, z")
    return tuple(reversed(value))


@dataclass(kw_only=True)
class Centers(Options):
    """For a server: who is visited."""

    centers: list = option("names of the centers, as FLARE knows them", from_json=_center_names)


@dataclass(kw_only=True)
class QualityControlServer(QualityControl, Centers, Images):
    """Quality control, with the training images at the centers."""


@dataclass(kw_only=True)
class StandardModelServer(FromScratch, Centers, Images):
    """The standard travelling model, with the images at the centers."""

    shape: tuple = option("voxels of every image: x, y, z", from_json=_shape)


@dataclass(kw_only=True)
class CenterSite(Images):
    """A center of a federation."""

    training_set: Path = option("its subjects", Path, metavar="CSV")
    private_folder: Path = option("for what must not leave the center", Path, metavar="FOLDER")
    cache_dir: Path | None = changed(
        Images,
        "cache_dir",
        words="for the decoded images beyond that (default: image_cache in the private folder; it stays there)",
    )


@dataclass(kw_only=True)
class Jobs(Options):
    """How FLARE runs the jobs."""

    task_timeout: int = option(
        "a center that has not answered by then is left alone until the next cycle",
        number(int, 1),
        600,
        metavar="SECONDS",
    )
    cycles_per_job: int = option("a center that restarts is back in the next job", number(int, 1), 1, metavar="N")
    poll: float = option("how often centers ask whether there is work", number(float, 0.01, 60), 0.5, metavar="SECONDS")


@dataclass(kw_only=True)
class Simulation(QualityControl, TrainingSet, Jobs, Images):
    """Quality control in FLARE's simulator."""


def flag_of(field: dataclasses.Field) -> str:
    """What an option is called on the command line."""
    return field.metadata["flag"] or f"--{field.name.replace('_', '-')}"


def _place(group):
    """Where a group of options comes: the published ones first, those without a name last."""
    return 0 if group == _PUBLISHED else 2 if group is None else 1


def add_to_parser(parser: argparse.ArgumentParser, options: type) -> None:
    """Give a parser the options of a class, the published ones first, and a usage that names what is needed."""
    groups: dict[str | None, Any] = {}
    needed: list[str] = []
    fields = sorted(dataclasses.fields(options), key=lambda field: _place(field.metadata["group"]))
    for field in fields:
        about = field.metadata
        if about["group"] not in groups:
            named = about["group"] or ("other options" if groups else None)
            groups[about["group"]] = parser.add_argument_group(named) if named else parser
        given = {"dest": field.name, "help": about["words"]}
        if not flag_of(field).startswith("-"):
            del given["dest"]  # told by its place; it is needed
        elif field.default is dataclasses.MISSING:
            given["required"] = True
        else:
            given["default"] = field.default
        if about["parse"] is None:
            given["action"] = "store_true"
        else:
            given |= {"type": about["parse"], "metavar": about["metavar"]}
            if about["choices"]:
                given["choices"] = about["choices"]
            if about["many"]:
                given["nargs"] = about["many"]
            if about["many"] and about["choices"]:  # named once, and not four times
                given["help"] += f"; of {', '.join(about['choices'])}"
        action = groups[about["group"]].add_argument(flag_of(field), **given)
        if action.required:
            needed += [*action.option_strings, str(action.metavar)]
    parser.usage = " ".join(["%(prog)s", *needed, "[options]"])  # those that may be left out stand below


def from_command_line(options: type, text: str) -> Any:
    """The options of a class as this process's command line gives them; ``text`` begins what ``--help`` says.

    Ends the program in one line where they are wrong.
    """
    parser = Parser(text)
    add_to_parser(parser, options)
    found = options(**vars(parser.parse_args()))
    flags = {field.name: flag_of(field) for field in dataclasses.fields(options)}
    try:
        found.check(flags.get)
    except ValueError as error:
        parser.error(str(error))
    return found


def from_json(options: type, path: Path, content: dict) -> Any:
    """The options of a class as a file's JSON object gives them; paths in it are relative to the file.

    Raises InputError for anything that is missing, unknown or wrong.
    """
    fields = {field.name: field for field in dataclasses.fields(options)}
    unknown = content.keys() - fields.keys()
    if unknown:
        raise InputError(f"{path}: {sorted(unknown)[0]} is not known; known are {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        value = content.get(name)
        if value is None:
            if field.default is dataclasses.MISSING:
                raise InputError(f"{path}: {name} is missing")
            continue
        try:
            values[name] = _from_json(field.metadata, value, Path(path).parent)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise InputError(f"{path}: {name}: {error}") from None
    found = options(**values)
    try:
        found.check(lambda name: name)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return found


def _from_json(about, value, folder):
    if about["from_json"]:
        return about["from_json"](value, folder)
    choices = about["choices"] or ((False, True) if about["parse"] is None else ())
    if choices:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
            raise ValueError(f"{json.dumps(value)} is not one of {', '.join(map(str, choices))}")
        return value
    if about["parse"] in (Path, result_name):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{json.dumps(value)} is not a path")
        return (folder / value).absolute()
    return about["parse"](json.dumps(value))


def to_json(options: type, given: Any) -> dict:
    """The options of a class, as plain values for a file, from an object that has them and perhaps others.

    Those that it has not are left out; paths are absolute.
    """
    names = [field.name for field in dataclasses.fields(options) if hasattr(given, field.name)]
    values = {name: getattr(given, name) for name in names}
    return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}


def to_command_line(options: type, **values: Any) -> list:
    """The words of a command line that give some options of a class; None and False are left out.

    Raises TypeError for a name that is not an option.
    """
    fields = {field.name: field for field in dataclasses.fields(options)}
    words = []
    for name, value in values.items():
        if name not in fields:
            raise TypeError(f"{options.__name__} has no option {name}")
        if value is None or value is False:
            continue
        words.append(flag_of(fields[name]))
        if value is not True:
            words += [str(item) for item in value] if fields[name].metadata["many"] else [str(value)]
    return words
