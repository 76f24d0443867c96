"""Slices of flagged images beside the test set, and in words what is to be seen in them. Nothing here decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from travelling.console import progress_bar
from travelling.errors import InputError
from travelling.images.nifti import read_upright, shape_in_words
from travelling_quality_control.auditing.tables import refuse_rows
from travelling_quality_control.reporting.drawing import Picture, middle_slices, show

FAR = 6.0  # standard deviations of the test set: what lies farther away is said
LEAST = 0.02  # of any measure, relative to its mean: the least standard deviation that a small test set is believed
LOST = 0.2  # of all intensity, in one half of the image: what is less is half a brain that is missing
# Measure -> what it means where it is less than in the test set, and where it is more. The largest deviation is said.
WORDS = {
    "detail": ("blurred: fine detail is missing", "noisy or striped: there is more fine detail than usual"),
    "roughness": ("blurred: fine detail is missing", "noisy or striped: neighbouring voxels differ more than usual"),
    "left": ("{} of the brain is missing on the left", "{} of the brain is missing on the right"),
    "lower": ("{} of the brain is missing below", "{} of the brain is missing above"),
    "back": ("{} of the brain is missing at the back", "{} of the brain is missing in front"),
    "level": ("darker than usual, or much of it is missing", "brighter than usual, or another scale of intensities"),
}


class Slices:
    """What a report shows of images: pictures beside the mean of the test set, and words.

    ``images`` and ``test_set`` are those of two CSVs, whose paths are given for the messages. Raises InputError for
    files that cannot be read, or of another shape.
    """

    def __init__(self, images: pd.DataFrame, train_csv: Path, test_set: pd.DataFrame, test_csv: Path):
        for path, table in ((train_csv, images), (test_csv, test_set)):
            if "Path" not in table.columns:
                raise InputError(f"--with-images: {path} has no column Path")
            refuse_rows(path, table["Path"].reset_index(drop=True) == "", "Path is empty")
        self._paths = images["Path"]
        self._first = test_set["Path"].iloc[0]
        self._shape: tuple = ()
        total, measured = np.zeros(1), []
        bar = progress_bar(test_set["Path"], desc="reading the test set", unit="image", leave=False, disable=None)
        for volume in map(self._read, bar):  # none where there is no terminal
            total = total + volume
            measured.append(measures(volume))
        self.mean = total / len(test_set)
        usual = pd.DataFrame(measured)
        self._usual = usual.mean()
        self._unit = usual.std().fillna(0).clip(lower=LEAST * self._usual).replace(0.0, 1.0)

    def _read(self, path):
        volume = read_upright(path)
        self._shape = self._shape or volume.shape
        if volume.shape != self._shape:
            shapes = [shape_in_words(shape) for shape in (volume.shape, self._shape)]
            raise InputError(f"{path}: has {shapes[0]} voxels, {self._first} has {shapes[1]}")
        return volume

    def of(self, subjects: list[str]) -> Iterator[tuple[str, Picture, str]]:
        """Each subject with its picture and, in words, how it differs most from the test set ("": not much)."""
        for subject in subjects:
            volume = self._read(self._paths[subject])
            yield subject, _beside(subject, volume, self.mean), self.difference(volume)

    def difference(self, volume: np.ndarray) -> str:
        """In words, how an image (z, y, x: up, front, right) differs most from the test set."""
        inside = (self.mean > 0) & (volume != 0)
        with np.errstate(all="ignore"):  # of an image without any contrast
            alike = np.corrcoef(volume[inside], self.mean[inside])[0, 1] if inside.any() else 1
        if alike < 0:
            return "light and dark are swapped"
        found = measures(volume)
        away = {name: (value - self._usual[name]) / self._unit[name] for name, value in found.items()}
        name = max(away, key=lambda one: abs(away[one]))
        if abs(away[name]) < FAR:
            return ""
        much = "half" if min(found[name], 1 - found[name]) < LOST else "part"
        return WORDS[name][int(away[name] > 0)].format(much)


def measures(volume: np.ndarray) -> dict[str, float]:
    """What is measured of an image (z, y, x: up, front, right): see ``WORDS``.

    Detail is the mean second difference of neighbouring voxels by the mean first one: little where an image is smooth.
    Roughness is the latter in standard deviations of the image. Left, lower and back are the shares of its intensity in
    that half of it.
    """
    halves = {"left": 2, "lower": 0, "back": 1}
    total = np.abs(volume).sum() or 1.0
    shares = {
        name: float(np.abs(np.take(volume, range(volume.shape[axis] // 2), axis)).sum() / total)
        for name, axis in halves.items()
    }
    first, second = (float(sum(np.abs(np.diff(volume, times, axis)).mean() for axis in range(3))) for times in (1, 2))
    told = {"detail": second / (first or 1.0), "roughness": first / (float(volume.std()) or 1.0)}
    return told | {"level": float(volume.mean())} | shares


def _beside(subject, volume, mean):
    """Axial and sagittal middle slices of an image, above those of the mean of the test set."""
    shown = [("the image", middle_slices(volume)), ("mean of the test set", middle_slices(mean))]

    def draw(figure, colors):
        for pair, (title, slices) in zip(figure.subplots(2, 2), shown, strict=True):
            show(pair, slices, title)

    caption = "Above the image, below the mean of the test set; each from its smallest to its largest intensity."
    alternative = f"Axial and sagittal slices of {subject} above those of the mean of the test set."
    return Picture("slices", subject, caption, alternative, (3.4, 3.4), draw)
