"""Image quality metrics of the foreground: without a model, a label or tissue classes.

Names and definitions are MRIQC's where it has them (Esteban et al., PLoS ONE 12 (2017), e0184661). What it measures of
the air around a head is left out: preparation makes that 0. The others tell of sharpness, noise and repetition along
each axis, and of where the foreground lies.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from travelling.files import write_whole

AXES = "zyx"
PERCENTILES = (5, 25, 75, 95)  # of intensities
STEEPNESS = (10, 50, 90, 99)  # percentiles of gradients
LAGS = {"1": 1, "2": 2, "4": 4, "quarter": 0.25}  # in voxels, or of the field of view, where ghosts lie
FEWEST = 100  # voxels of a foreground
_TINY = 1e-4

_FG = "of the foreground's intensities"
MEANINGS = {  # what is measured, for the sidecar of the table
    "summary_fg_stdv": f"standard deviation {_FG}; the unit of what is 'standardised' below",
    "summary_fg_median": f"median {_FG}",
    "summary_fg_mad": f"median absolute deviation {_FG}, times 1.4826",
    "summary_fg_k": f"excess kurtosis {_FG}",
    **{f"summary_fg_p{share:02}": f"{share}th percentile {_FG}" for share in PERCENTILES},
    "cv": f"standard deviation by mean {_FG}: the inverse of MRIQC's snr",
    "efc": "entropy focus criterion (Atkinson et al. 1997) of the foreground",
    **{
        f"variogram_{axis}_{lag}": f"log of half the mean squared difference of voxels {lag} apart along {axis}, "
        "standardised (quarter: of the field of view)"
        for axis in AXES
        for lag in LAGS
    },
    **{f"curvature_{axis}": f"log mean square of second differences along {axis}, standardised" for axis in AXES},
    **{f"curvature_{axis}_median": f"log median of their absolute values along {axis}" for axis in AXES},
    "noise_laplacian": "log of the median absolute Laplacian in the eroded foreground, by the median intensity",
    "noise_mean": "the same of the difference from the mean of 3 x 3 x 3 voxels",
    "laplacian": "log of the Laplacian's standard deviation there, standardised",
    **{f"gradient_p{share}": f"log of the gradient's {share}th percentile there, standardised" for share in STEEPNESS},
    "volume": "log of the foreground's share of the field of view",
    **{f"extent_{axis}": f"length of the foreground along {axis}, by that of the field of view" for axis in AXES},
    **{f"middle_{axis}": f"where the middle of that length is along {axis}, from 0 to 1" for axis in AXES},
    **{f"center_{axis}": f"center of mass of the foreground, filled evenly, along {axis}" for axis in AXES},
    **{f"weight_{axis}": f"how far that of the intensities is from it along {axis}" for axis in AXES},
    **{f"spread_{axis}": f"standard deviation of the foreground's places along {axis}" for axis in AXES},
    **{f"tilt_{pair}": f"correlation of the foreground's places along {pair[0]} and {pair[1]}" for pair in
       ("zy", "zx", "yx")},
}  # fmt: skip


def image_metrics(image: np.ndarray) -> np.ndarray:
    """Those of :data:`MEANINGS`, in its order, of an image (z, y, x); NaN where it has no foreground.

    The foreground is what is above the lowest intensity, without holes.
    """
    from scipy import ndimage

    inside = ndimage.binary_fill_holes(image > image.min())
    if inside.sum() < FEWEST:
        return np.full(len(MEANINGS), math.nan)
    found = _summary(image[inside].astype(float))
    unit, middle = found["summary_fg_stdv"], abs(found["summary_fg_median"]) + _TINY
    standard = np.where(inside, (image - image[inside].mean()) / (unit + _TINY * middle), 0).astype(np.float32)
    for axis, name in enumerate(AXES):
        found |= _along(name, np.moveaxis(standard, axis, 0), np.moveaxis(inside, axis, 0))
    core = ndimage.binary_erosion(inside, iterations=2)
    core = core if core.sum() >= FEWEST else inside
    laplacian = ndimage.laplace(standard)[core]
    rest = (standard - ndimage.uniform_filter(standard, 3))[core]
    for name, values in (("noise_laplacian", laplacian), ("noise_mean", rest)):
        found[name] = _log(np.median(np.abs(values)) * unit / middle)
    found["laplacian"] = _log(laplacian.std())
    gradient = np.sqrt(sum(np.square(ndimage.sobel(standard, axis)[core]) for axis in range(3)))
    found |= {f"gradient_p{share}": _log(np.percentile(gradient, share)) for share in STEEPNESS}
    found |= _geometry(inside, image - image.min())
    return np.array([found[name] for name in MEANINGS])


def _summary(intensities):
    """Of the intensities of a foreground, (voxels,)."""
    mean, sd, median = intensities.mean(), intensities.std(), np.median(intensities)
    share = np.abs(intensities) / (np.sqrt(np.square(intensities).sum()) + np.finfo(float).tiny)
    share, root = share[share > 0], math.sqrt(len(intensities))
    percentiles = np.percentile(intensities, PERCENTILES)
    return {
        "summary_fg_stdv": sd,
        "summary_fg_median": median,
        "summary_fg_mad": 1.4826 * np.median(np.abs(intensities - median)),
        "summary_fg_k": np.mean((intensities - mean) ** 4) / (sd**4 + np.finfo(float).tiny) - 3,
        **{f"summary_fg_p{share:02}": value for share, value in zip(PERCENTILES, percentiles, strict=True)},
        "cv": sd / (abs(mean) + _TINY),
        "efc": -(share * np.log(share)).sum() / (root * math.log(root)),
    }


def _along(name, standard, inside):
    """Along the first axis of a standardised image and its foreground."""
    found = {}
    for lag, length in LAGS.items():
        apart = round(length * len(inside)) if length < 1 else length
        both = inside[apart:] & inside[:-apart]
        found[f"variogram_{name}_{lag}"] = _log(_mean_square((standard[apart:] - standard[:-apart])[both]) / 2)
    second = (standard[2:] + standard[:-2] - 2 * standard[1:-1])[inside[2:] & inside[1:-1] & inside[:-2]]
    found[f"curvature_{name}"] = _log(_mean_square(second))
    found[f"curvature_{name}_median"] = _log(np.median(np.abs(second)) if len(second) else 0)
    return found


def _geometry(inside, weight):
    """Of the place of a foreground, by which its intensities above the lowest weigh; all of shape (z, y, x)."""
    found, places = {"volume": math.log(inside.mean())}, np.argwhere(inside) / inside.shape
    correlations = np.corrcoef(places.T)
    for axis, name in enumerate(AXES):
        along, first, last = places[:, axis], places[:, axis].min(), places[:, axis].max()
        center, weights = along.mean(), weight[inside]
        found |= {
            f"extent_{name}": last - first,
            f"middle_{name}": (first + last) / 2,
            f"center_{name}": center,
            f"weight_{name}": np.average(along, weights=weights) - center,
            f"spread_{name}": along.std(),
        }
    return found | {f"tilt_{AXES[i]}{AXES[j]}": correlations[i, j] for i, j in ((0, 1), (0, 2), (1, 2))}


def _mean_square(values):
    return np.mean(np.square(values, dtype=float)) if len(values) else 0.0


def _log(value):
    return math.log(value + _TINY)


def write_table(path: Path, test: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> None:
    """Write the metrics of images by subject, as a TSV with a JSON sidecar (BIDS), as MRIQC does.

    ``farthest`` names the metric that is most standard deviations of the test images away from their mean.
    """
    table = pd.DataFrame.from_dict(test | others, orient="index", columns=list(MEANINGS))
    usual = table.loc[list(test)]
    away = ((table - usual.mean()) / usual.std()).abs()
    table.insert(0, "set", ["test"] * len(test) + ["training"] * len(others))
    table["farthest"] = away.fillna(math.inf).idxmax(axis=1)
    write_whole(path, table.to_csv(sep="\t", index_label="subject", na_rep="n/a", lineterminator="\n").encode())
    meanings = {name: {"Description": meaning} for name, meaning in MEANINGS.items()}
    write_whole(path.with_suffix(".json"), json.dumps(meanings, indent=2).encode())
