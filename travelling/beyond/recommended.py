"""The setting that docs/settings.md recommends, in one word."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from travelling.beyond import ExtensionOptions
from travelling.option import BEYOND, option

RECOMMENDED: dict[str, Any] = {"rule": "evidence", "screen": True, "verify_every": 16}


@dataclass(kw_only=True)
class RecommendedOptions(ExtensionOptions):
    """A word for other options: these are what a run has, and what its record tells."""

    recommended: bool = option(
        "the recommended setting: --rule evidence --screen --verify-every 16; what is given beside it goes first",
        None,
        False,
        group=BEYOND,
    )

    @classmethod
    def made_of(cls, values: Mapping[str, Any], spell: Callable[[str], str]) -> Self:
        """As :meth:`Options.made_of`."""
        return super().made_of(RECOMMENDED | dict(values) if values.get("recommended") else values, spell)

    def extension(self) -> None:
        """As :meth:`ExtensionOptions.extension`: none of its own."""
        return
