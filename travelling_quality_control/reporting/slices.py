"""Slices of flagged images beside the test set. Nothing here decides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from travelling.console import progress_bar
from travelling.errors import InputError
from travelling.images.nifti import read_upright, shape_in_words
from travelling_quality_control.auditing.tables import refuse_rows
from travelling_quality_control.reporting.drawing import Picture, middle_slices, show


class Slices:
    """What a report shows of images: pictures beside the mean of the test set.

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
        bar = progress_bar(test_set["Path"], desc="reading the test set", unit="image", leave=False, disable=None)
        self.mean = sum(map(self._read, bar), np.zeros(1)) / len(test_set)  # no bar where there is no terminal

    def _read(self, path):
        volume = read_upright(path)
        self._shape = self._shape or volume.shape
        if volume.shape != self._shape:
            shapes = [shape_in_words(shape) for shape in (volume.shape, self._shape)]
            raise InputError(f"{path}: has {shapes[0]} voxels, {self._first} has {shapes[1]}")
        return volume

    def of(self, subjects: Iterable[str]) -> dict[str, Picture]:
        """The picture of each subject."""
        return {subject: _beside(subject, self._read(self._paths[subject]), self.mean) for subject in subjects}


def _beside(subject, volume, mean):
    """Axial and sagittal middle slices of an image, above those of the mean of the test set."""
    shown = [("the image", middle_slices(volume)), ("mean of the test set", middle_slices(mean))]

    def draw(figure, colors):
        for pair, (title, slices) in zip(figure.subplots(2, 2), shown, strict=True):
            show(pair, slices, title)

    caption = "Above the image, below the mean of the test set; each from its smallest to its largest intensity."
    alternative = f"Axial and sagittal slices of {subject} above those of the mean of the test set."
    return Picture("slices", subject, caption, alternative, (3.4, 3.4), draw)
