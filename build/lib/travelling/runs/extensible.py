"""Options that may ask for extensions of the published method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from travelling.option import Options, fields_of, from_json

if TYPE_CHECKING:
    from travelling.method.extension import Extension


@dataclass(kw_only=True)
class Extensible(Options):
    """For a run that may go beyond the published method: ``extensions`` are those that its options ask for."""

    extensions: "tuple[Extension, ...]" = field(default=())

    @classmethod
    def more(cls) -> Sequence[type[Options]]:
        """The options of all extensions that there are."""
        from travelling.beyond import all_options

        return all_options()

    def take(self, parts: Sequence[Options], spell: Callable[[str], str]) -> None:
        """As :meth:`Options.take`."""
        from travelling.beyond import extensions_of

        self.extensions = extensions_of(parts, spell)

    def told(self) -> dict[str, Any]:
        """The options of the run, and those of its extensions: one that it does not use is not heard of."""
        told = super().told()
        for extension in self.extensions:
            told |= extension.options.told()
        return told


def extensions_in(told: Mapping[str, Any], path: Path) -> "tuple[Extension, ...]":
    """The extensions of a run by the options in its record, the file ``path``.

    Raises InputError for what no run can have.
    """
    known = {field.name for field in fields_of(*Extensible.more())}
    return from_json(Extensible, path, {name: value for name, value in told.items() if name in known}).extensions
