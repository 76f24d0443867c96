"""HTML pages: numbers in words, and the frame of every page (page.html.jinja), which loads nothing from anywhere."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from travelling.words import some, was
from travelling_quality_control.reporting.drawing import render

FOLDER = Path(__file__).resolve().parent
MISSING = "n/a"


def number_text(value: float, sign: bool = False, digits: int = 3) -> str:
    """A number for readers, n/a where there is none."""
    if pd.isna(value):
        return MISSING
    return f"{np.round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0: no "-0.000"


def make_page(template: str, folder: Path = FOLDER, further_script: str = "", **facts: Any) -> str:
    """A page as HTML text: a template of a folder, which extends ``page.html.jinja`` of this one.

    Everything is escaped: ids and names of centers are text, whatever they contain, and a content security policy lets
    the page run its own script alone and load nothing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, FOLDER]), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"picture": _data_address, "number": number_text, "versions": versions, "json": _json}
    environment.globals |= {"some": some, "was": was}
    environment.tests["known"] = pd.notna
    script = (FOLDER / "page.js").read_text(encoding="utf-8") + further_script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script=script, script_digest=digest, **facts)


def _data_address(picture):
    return f"data:image/png;base64,{base64.b64encode(render(picture)).decode()}"


def versions(session: dict) -> str:
    """The versions that a session of a run's record tells, in words."""
    versions = {"Python": session.get("python")} | session.get("packages", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _json(options):
    """Options for readers: no path of the machine they are from."""
    told = {
        name: Path(value).name if isinstance(value, str) and "/" in value else value for name, value in options.items()
    }
    return json.dumps(told, indent=1, ensure_ascii=False)
