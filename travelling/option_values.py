"""Options that are not of this process's command line: from files, for files, and as other command lines."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from travelling.errors import InputError
from travelling.option import Options, Told, fields_of, flag_of, result_name


def from_json(options: type[Told], path: Path, content: dict) -> Told:
    """The options of a class as a file's JSON object gives them; paths in it are relative to the file.

    Raises InputError for anything that is missing, unknown or wrong.
    """
    options = options.knowing(content)
    fields = {field.name: field for field in fields_of(options)}
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
    try:
        return options.made_of(values, str)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _from_json(about, value, folder):
    if about["from_json"]:
        return about["from_json"](value)
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


def to_json(options: type[Options], given: Mapping[str, Any]) -> dict:
    """The options of a class, as plain values for a file; what else is given is left out, and paths are absolute."""
    names = [field.name for field in fields_of(options.knowing(given)) if field.name in given]
    return {name: str(given[name].absolute()) if isinstance(given[name], Path) else given[name] for name in names}


def to_command_line(options: type[Options], **values: Any) -> list:
    """The words of a command line that give some options of a class; None and False are left out.

    Raises TypeError for a name that is not an option.
    """
    fields = {field.name: field for field in fields_of(options.knowing(values))}
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
