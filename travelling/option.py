"""What an option is: a field of a dataclass, with its type, default, unit and words.

From such a class come a script's command line (:func:`from_command_line`) and the record of the run
(:meth:`Options.values`); :mod:`travelling.option_values` makes and reads files and other command lines of it. Imports
nothing that is slow: ``--help`` answers at once.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

_REQUIRED = object()
PUBLISHED = "published options"  # the groups of --help
METHOD = "method"
BEYOND = "beyond the published method (docs/settings.md)"
_GROUPS = {PUBLISHED: 0, None: 2}  # where they come; all others between them


def option(
    words: str,
    parse: Callable[[str], Any] | None = None,
    default: Any = _REQUIRED,
    *,
    metavar: str | None = None,
    choices: tuple = (),
    many: str | int | None = None,
    flag: str | None = None,
    group: str | None = None,
    from_json: Callable[[Any], Any] | None = None,
) -> Any:
    """A field of a class of options.

    ``parse`` makes its value of a text (None: the option is a flag that is there or not), ``many`` tells how many it
    may have (argparse's ``nargs``); ``flag`` is its spelling on the command line where that is not ``--kebab-case``
    (without a dash: the option is told by its place, and needed unless ``many`` is "*"); ``from_json`` makes its value
    of what a file says, where ``parse`` cannot.
    """
    about = {key: value for key, value in locals().items() if key != "default"}
    if default is _REQUIRED:
        return dataclasses.field(metadata=about)
    return dataclasses.field(default=default, metadata=about)


def published(words: str, flag: str, parse: Callable[[str], Any], default: Any = _REQUIRED, metavar: str = "N") -> Any:
    """An option of the published scripts, with their spelling."""
    return option(words, parse, default, metavar=metavar, flag=flag, group=PUBLISHED)


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

    @classmethod
    def whole(cls) -> type[Self]:
        """This class with all that a user may give as well: what is not in this one is looked for there."""
        return cls

    @classmethod
    def knowing(cls, names: Iterable[str]) -> type[Self]:
        """This class if it has all these options, else :meth:`whole`."""
        return cls if {field.name for field in fields_of(cls)}.issuperset(names) else cls.whole()

    @classmethod
    def made_of(cls, values: Mapping[str, Any], spell: Callable[[str], str]) -> Self:
        """The checked options that ``values`` give by name; what is left out has its default."""
        found = cls(**values)
        found.check(spell)
        return found

    def values(self) -> dict[str, Any]:
        """The value of every option, by name."""
        return {field.name: getattr(self, field.name) for field in fields_of(type(self))}


Told = TypeVar("Told", bound=Options)


def fields_of(options: type[Options]) -> list[dataclasses.Field]:
    """The options of a class."""
    return [field for field in dataclasses.fields(options) if "words" in field.metadata]


def flag_of(field: dataclasses.Field) -> str:
    """What an option is called on the command line."""
    return field.metadata["flag"] or f"--{field.name.replace('_', '-')}"


def add_to_parser(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Give a parser the options of a class, the published ones first, and a usage that names what is needed."""
    groups: dict[str | None, Any] = {}
    needed: list[str] = []
    # Those of no group come last.
    for field in sorted(fields_of(options), key=lambda field: _GROUPS.get(field.metadata["group"], 1)):
        about = field.metadata
        if about["group"] not in groups:
            named = about["group"] or ("other options" if groups else None)
            groups[about["group"]] = parser.add_argument_group(named) if named else parser
        given = {"dest": field.name, "help": about["words"]}
        if not flag_of(field).startswith("-"):
            del given["dest"]  # told by its place
        elif field.default is dataclasses.MISSING:
            given["required"] = True
        if field.default is not dataclasses.MISSING:
            given["default"] = field.default
        if about["parse"] is None:
            given["action"] = "store_true"
        else:
            given |= {"type": about["parse"], "metavar": about["metavar"], "nargs": about["many"]}
            given["choices"] = about["choices"] or None
            if about["many"] and about["choices"]:  # named once, and not four times
                given["help"] += f"; of {', '.join(about['choices'])}"
        action = groups[about["group"]].add_argument(flag_of(field), **given)
        if action.required:
            needed += [*action.option_strings, str(action.metavar)]
    parser.usage = " ".join(["%(prog)s", *needed, "[options]"])  # those that may be left out stand below


def from_command_line(options: type[Told], text: str | None) -> Told:
    """The options of a class as this process's command line gives them; ``text`` begins what ``--help`` says.

    Ends the program in one line where they are wrong.
    """
    words = sys.argv[1:]
    parser = Parser(text)
    add_to_parser(parser, options)
    if {"-h", "--help"} & set(words) or parser.parse_known_args(words)[1]:
        options, parser = options.whole(), Parser(text)
        add_to_parser(parser, options)
    flags = {field.name: flag_of(field) for field in fields_of(options)}
    blank = argparse.Namespace(**dict.fromkeys(flags, _REQUIRED))  # or what is not given would have its default here
    values = {name: value for name, value in vars(parser.parse_args(words, blank)).items() if value is not _REQUIRED}
    try:
        return options.made_of(values, flags.__getitem__)
    except ValueError as error:
        parser.error(str(error))


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults, and one line instead of its usage where an option is wrong."""

    def __init__(self, description: str | None, prog: str | None = None):
        description = (description or "").strip()  # none under PYTHONOPTIMIZE=2
        super().__init__(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        print(" ".join(f"error: {message} (--help lists the options)".split()), file=sys.stderr)
        sys.exit(2)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        if action.default in (None, False):  # nothing to show: a required option, a flag, or said in words
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def number(kind: type[int] | type[float], low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: an int or a float within [low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            word = "a whole number" if kind is int else "a number"
            bounds = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(f"'{text}' is not {word} {bounds}")
        return value

    return parse


def result_name(text: str) -> Path:
    """An argparse type: a path whose last part begins the names of the results."""
    if not Path(text).name or text.endswith(("/", "..")):
        raise argparse.ArgumentTypeError(f"'{text}' is not a file name")
    return Path(text)
