"""What goes beyond the published method: each module or package of this room is an extension, with its options.

A new one is a file here, and nothing else: command lines, log, checkpoints, audit and report find it. It has a subclass
of :class:`ExtensionOptions`, which makes one of :class:`travelling.method.extension.Extension` where it is asked
for. ``--help`` imports all of them, so they import nothing at once that is slow. A run that asks for none imports none.
"""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from travelling.option import Options

if TYPE_CHECKING:
    from travelling.method.extension import Extension


@dataclass(kw_only=True)
class ExtensionOptions(Options):
    """The options of an extension; each has a default, with which it is not used.

    A run that may go beyond the published method has them beside its own, in one object
    (:class:`travelling.runs.extensible.Extensible`).
    """

    def extension(self) -> "Extension | None":
        """The extension, if it is asked for."""
        raise NotImplementedError


def all_options() -> list[type[ExtensionOptions]]:
    """The options of every extension, by the names of their modules."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [
        options
        for module in modules
        for options in vars(module).values()
        if inspect.isclass(options) and issubclass(options, ExtensionOptions) and options.__module__ == module.__name__
    ]
