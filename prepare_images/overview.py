"""The page to look at: a picture of each scan, raw and prepared, and a tick for each (overview.html.jinja)."""

import base64
import hashlib
import io
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
import SimpleITK as sitk
from matplotlib.figure import Figure

from prepare_images.registration import FAILED, LOOK, PREPARED, reference
from travelling.images import ratings
from travelling.images.itk import to_array

TEMPLATE = Path(__file__).with_suffix(".html.jinja")
PICTURES = "pictures"  # their folder, beside the page
WIDTH, HEIGHT, DPI = 12, 4, 100  # inches of three planes beside each other; a picture has one or two such rows
BRAIN, STANDARD = "#ffd400", "#ff4040"  # outlines: the scan's brain mask, and the template


def draw(scan: sitk.Image, brain: sitk.Image | None, image: sitk.Image | None) -> bytes:
    """A JPEG: three planes of a scan with the outline of its brain mask and, below, of what was prepared of it.

    ``brain`` (0, 1) has the scan's grid; ``image`` is drawn with the outlines of the template's brain and white matter.
    None: there is none.
    """
    parts = [(scan, [] if brain is None else [brain], BRAIN)]
    if image is not None:
        parts.append((image, [sitk.Resample(part, image) >= 0.5 for part in reference()[1:]], STANDARD))
    figure = Figure(figsize=(WIDTH, HEIGHT * len(parts)), dpi=DPI, facecolor="black")
    figure.subplots_adjust(0, 0, 1, 1, 0, 0)
    for axes, part in zip(figure.subplots(len(parts), 3, squeeze=False), parts, strict=True):
        _draw_planes(axes, *part)
    file = io.BytesIO()
    figure.savefig(file, format="jpg", pil_kwargs={"quality": 85})
    return file.getvalue()


def _draw_planes(axes, image, masks, color):
    """Axial, coronal and sagittal, through the middle of the first mask; the patient's right is at the right."""
    voxels, *masks = (to_array(sitk.DICOMOrient(part, "RAS")) for part in (image, *masks))  # z, y, x
    size = np.array(sitk.DICOMOrient(image, "RAS").GetSpacing())[::-1]
    inside = np.argwhere(masks[0] if masks and masks[0].any() else np.ones(voxels.shape, bool))
    middle = (inside.min(axis=0) + inside.max(axis=0)) // 2
    low, high = np.percentile(voxels[::2, ::2, ::2], (1, 99.5))
    for axis, (plane, place) in enumerate(zip(axes, middle, strict=True)):
        height, width = np.delete(voxels.shape * size, axis)  # mm
        about = {"origin": "lower", "extent": (0, width, 0, height)}
        plane.imshow(voxels.take(place, axis), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), **about)
        for mask in masks:
            if len(np.unique(part := mask.take(place, axis))) == 2:
                plane.contour(part, [0.5], colors=color, linewidths=1, **about)
        plane.set_axis_off()


def overview_page(scans: pd.DataFrame, folder: Path) -> str:
    """The page as HTML text: rows of registration.csv with ``Rating`` and ``Note`` and, in ``Picture``, their files.

    Files are relative to ``folder``, that of the page; those that are not there are left out.
    """
    need = {FAILED: 0, LOOK: 1, PREPARED: 2}
    rows, seen = [], hashlib.sha256()
    for row in scans.assign(need=scans["Status"].map(need)).sort_values(["need", "Similarity"]).to_dict("records"):
        file = folder / row["Picture"]
        likeness = "" if pd.isna(row["Similarity"]) else f"similarity {row['Similarity']:.2f}"
        row["about"] = "; ".join(filter(None, [row["Study"], likeness, row["Reason"], row["Notices"]]))
        row["picture"] = quote(row["Picture"]) if file.is_file() else ""
        seen.update(repr([row["Subject"], row["Rating"], row["Note"]]).encode())
        seen.update(file.read_bytes() if row["picture"] else b"")
        rows.append(row | {"rows": 1 + (row["Status"] != FAILED)})
    script = ratings.SCRIPT.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    numbers = scans["Status"].value_counts()
    return environment.get_template(TEMPLATE.name).render(
        rows=rows, page=seen.hexdigest()[:16], size=[n * DPI for n in (WIDTH, HEIGHT, 2 * HEIGHT)], pictures=PICTURES,
        ratings=ratings.RATINGS, script=script,
        counts=", ".join(f"{numbers.get(status, 0)} {status}" for status in need),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def picture_of(target: str) -> str:
    """The picture's file of a prepared image's (:func:`prepare_images.scans.targets`); both relative to one folder."""
    return f"{PICTURES}/{Path(target).name.partition('_space-')[0]}.jpg"
