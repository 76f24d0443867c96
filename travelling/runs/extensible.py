"""Options that may ask for extensions of the published method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from travelling.option import Options, fields_of

if TYPE_CHECKING:
    from travelling.method.extension import Extension


@dataclass(kw_only=True)
class Extensible(Options):
    """For a run that may go beyond the published method: ``extensions`` are those that its options ask for."""

    extensions: "tuple[Extension, ...]" = field(default=())
    parts: ClassVar[list[type[Any]]] = []  # the options of extensions that it has, too

    @classmethod
    def whole(cls) -> type[Self]:
        """As :meth:`Options.whole`: with the options of all extensions that there are."""
        from travelling.beyond import all_options

        parts = all_options()
        own = {"parts": parts, "check": cls.check}  # that of a part is asked by made_of()
        return make_dataclass(cls.__name__, (), bases=(*parts[::-1], cls), namespace=own, kw_only=True)

    @classmethod
    def made_of(cls, values: Mapping[str, Any], spell: Callable[[str], str]) -> Self:
        """As :meth:`Options.made_of`, together with the extensions."""
        found = super().made_of(values, spell)
        for part in cls.parts:
            part.check(found, spell)
        found.extensions = tuple(filter(None, (part.extension(found) for part in cls.parts)))
        for extension in found.extensions:
            extension.check(found.extensions, spell)
        return found

    def values(self) -> dict[str, Any]:
        """The options of the run, and those of its extensions: one that it does not use is not heard of."""
        untold = {field.name for part in self.parts if not part.extension(self) for field in fields_of(part)}
        return {name: value for name, value in super().values().items() if name not in untold}
