"""What the screen sees of one image, and how strange that is beside the test set.

A *look* is what is measured of an image: numbers under a name, each of :data:`LOOKS`. None of them needs the model. To
add one, write a function of an image here and name it in ``LOOKS``: log, audit and federation follow
(docs/extending.md).

Every look has a *yardstick*: it is made of the looks of some images and tells how strange others are. A yardstick knows
nothing of labels, and nothing of what harm looks like, but for :class:`Mirrored`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from travelling.beyond.screen.metrics import MEANINGS, image_metrics

BLOCKS = (20, 24, 10)  # along z, y and from the middle to one side: in each the two sides are compared
COARSE_BLOCKS = (4, 5, 4)  # the same, where halves differ much
LEAST_RIGHT = 0.8  # of the usual images, told from their mirror images
SHELLS = 40  # of the spectrum, from 0 to half a cycle per voxel
_LOWEST_SHELL = 3  # those below hold few points, and the shape of the head
_USUAL_DIFFERENCE = 0.1  # between the two sides, in standard deviations of the image
_LEAST_SHARE = 0.05  # of the way from usual to flipped images
_TINY = 1e-6


class Yardstick:
    """Made of the looks (images, numbers) of usual images; called with those of others, it gives a number for each.

    The number is larger the stranger an image is; its unit does not matter. ``like`` is a yardstick of more images,
    which may tell what takes long to find out. Images are upright: their axes run up, to the front and to the right.

    Where the number is a weighted sum of a look, ``weights`` are those, (numbers,): then nothing but that sum is told
    of an image that is elsewhere.
    """

    weights: np.ndarray | None = None

    def __init__(self, usual: np.ndarray, like: Any = None):
        pass

    def __call__(self, looks: np.ndarray) -> np.ndarray:
        """(images, numbers) -> (images,)."""
        raise NotImplementedError

    def least_unit(self, strange: np.ndarray) -> float:
        """The least unit of scores, by what usual images have, each by a yardstick of others: (images,).

        It is their standard deviation where that is larger, and infinite where the yardstick says nothing.
        """
        return 0.0


class Distance(Yardstick):
    """Half the logarithm of the mean squared Mahalanobis distance from the usual images.

    The covariance of many numbers over few images is shrunk (Ledoit and Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", J. Multivariate Anal. 2004), and inverted in the space of the images, of
    which there are fewer than numbers.
    """

    def __init__(self, usual: np.ndarray, like: "Distance | None" = None):
        from sklearn.covariance import ledoit_wolf_shrinkage

        self._mean, self._unit = usual.mean(axis=0), self.unit_of(usual)
        self._usual = self._standard(usual)
        images, self._numbers = usual.shape
        self.shrinkage: float = like.shrinkage if like else ledoit_wolf_shrinkage(self._usual, assume_centered=True)
        # The covariance is floor x 1 + weight x (sum over the images); Woodbury's formula inverts it.
        self._floor = max(self.shrinkage, _TINY) * np.square(self._usual).mean() + _TINY
        weight = (1 - self.shrinkage) / images
        inverse = np.linalg.inv(self._floor * np.eye(images) + weight * (self._usual @ self._usual.T))
        self._inverse = weight * inverse

    def __call__(self, looks: np.ndarray) -> np.ndarray:
        """As :class:`Yardstick`."""
        away = self._standard(looks)
        along = away @ self._usual.T
        squared = np.square(away).sum(axis=1) - np.einsum("ij,jk,ik->i", along, self._inverse, along)
        return 0.5 * np.log(squared / self._floor / self._numbers)

    def _standard(self, looks):
        return (looks - self._mean) / self._unit

    @staticmethod
    def unit_of(usual: np.ndarray) -> np.ndarray | float:
        """In what each number is measured: (numbers,), or one for all."""
        return usual.std(axis=0, ddof=1) + _TINY


class AsItIs(Yardstick):
    """A look of one number, which is larger the stranger an image is."""

    def __call__(self, looks: np.ndarray) -> np.ndarray:
        """As :class:`Yardstick`."""
        return looks[:, 0]


class Mirrored(Distance):
    """How much more two halves of an image differ as those of a flipped one would, see :func:`difference_of_halves`.

    Between the usual images, which are taken not to be flipped, and their mirror images it is Fisher's linear
    discriminant, with the covariance of :class:`Distance`.
    """

    def __init__(self, usual: np.ndarray, like: "Mirrored | None" = None):
        super().__init__(usual, like)
        along = self._usual.T @ (self._inverse @ (self._usual @ self._mean))
        weights = (along - self._mean) / self._floor
        self.weights: np.ndarray = weights / (np.linalg.norm(weights) + _TINY)

    def __call__(self, looks: np.ndarray) -> np.ndarray:
        """As :class:`Yardstick`; of a mirrored image it is the negative of what it was before."""
        return looks @ self.weights

    @staticmethod
    def unit_of(usual: np.ndarray) -> float:
        """As :meth:`Distance.unit_of`: the same for all, or blocks that hardly differ between brains would decide."""
        return 1.0

    def least_unit(self, strange: np.ndarray) -> float:
        """As :class:`Yardstick`: where two halves differ by chance, usual images are on either side of 0.

        Where they all differ alike, the unit is a share of the way from usual to flipped images.
        """
        return 2 * float(np.abs(strange.mean())) * _LEAST_SHARE if np.mean(strange < 0) >= LEAST_RIGHT else math.inf


def spectrum(image: np.ndarray) -> np.ndarray:
    """How far one point of an image's spectrum stands out: the largest log-amplitude above the mean of its shell, (1,).

    ``image`` is (z, y, x); a shell holds the points of about one spatial frequency. Stripes are one point, whatever
    the anatomy.
    """
    import scipy.fft

    amplitude = np.abs(scipy.fft.rfftn(image.astype(np.float32)))
    inside, shell = _shells(image.shape)
    height = np.log(amplitude[inside] + _TINY * amplitude.mean() + np.finfo(np.float32).tiny)
    mean = np.bincount(shell, height) / np.maximum(np.bincount(shell), 1)
    return np.array([np.max(height - mean[shell], initial=0.0)])


@functools.cache
def _shells(shape):
    """Which points of an image's spectrum lie in a shell (z, y, x), and in which: (points,)."""
    along = [*map(np.fft.fftfreq, shape[:-1]), np.fft.rfftfreq(shape[-1])]
    squares = np.ix_(*(frequency**2 for frequency in along))
    shell = (2 * SHELLS * np.sqrt(squares[0] + squares[1] + squares[2])).astype(np.int32)
    inside = (shell >= _LOWEST_SHELL) & (shell < SHELLS)
    return inside, shell[inside]


def asymmetry(image: np.ndarray) -> np.ndarray:
    """The difference between the left and the right side of an image (z, y, x), see :func:`difference_of_halves`."""
    return difference_of_halves(image, 2, BLOCKS)


def up_down(image: np.ndarray) -> np.ndarray:
    """The difference between the lower and the upper half of an image, see :func:`difference_of_halves`."""
    return difference_of_halves(image, 0, COARSE_BLOCKS)


def front_back(image: np.ndarray) -> np.ndarray:
    """The difference between the back and the front half of an image, see :func:`difference_of_halves`."""
    return difference_of_halves(image, 1, COARSE_BLOCKS)


def difference_of_halves(image: np.ndarray, axis: int, blocks: tuple[int, ...]) -> np.ndarray:
    """The first half of an image (z, y, x) along an axis, less the second one flipped, from -1 to 1 in each of blocks.

    It saturates at some 0.2 standard deviations of the image's intensities: which half is brighter tells more than by
    how much, which a lesion or a bias field decides.
    """
    difference = np.take(image - np.flip(image, axis), range(image.shape[axis] // 2), axis)
    for along, number in enumerate(blocks):
        parts = np.array_split(difference, number, axis=along)
        difference = np.stack([part.mean(axis=along) for part in parts], axis=along)
    return np.tanh(difference.ravel() / (_USUAL_DIFFERENCE * image.std() + _TINY))


class Look(NamedTuple):
    """A look: how it is measured of an image (z, y, x), how many ``numbers`` it has, and its yardstick.

    ``words`` say for a paper what of an image it is; for those who read images ``finding`` says what a large score
    means, and ``title`` what it is about (default: its name). An image with a score above ``sure`` is eliminated for
    it.
    """

    measure: Callable[[np.ndarray], np.ndarray]
    numbers: int
    yardstick: type[Yardstick]
    words: str
    finding: str = "it looks unlike the images of the test set"
    title: str = ""
    sure: float = 4.0  # standard deviations of the test set


_METRICS = f"{len(MEANINGS)} image quality metrics of its foreground (Mahalanobis distance)"
_FLIPPED = "the difference between its {} halves, towards that of a flipped image (linear discriminant)"
LOOKS = {
    "metrics": Look(
        image_metrics, len(MEANINGS), Distance, _METRICS,
        "its contrast, sharpness, noise or shape are unlike those of the test set", "image quality",
    ),
    "spectrum": Look(
        spectrum, 1, AsItIs, "the largest peak of its spectrum above its shell",
        "its fine detail is unlike that of the test set: blurred, cut off or striped", "fine detail", sure=5.4,
    ),
    "asymmetry": Look(
        asymmetry, int(np.prod(BLOCKS)), Mirrored, _FLIPPED.format("left and right"),
        "left and right look swapped, or one of them differs much", "left and right",
    ),
    "up_down": Look(
        up_down, int(np.prod(COARSE_BLOCKS)), Mirrored, _FLIPPED.format("lower and upper"),
        "it looks upside down, or its upper or lower part differs much", "up and down",
    ),
    "front_back": Look(
        front_back, int(np.prod(COARSE_BLOCKS)), Mirrored, _FLIPPED.format("back and front"),
        "front and back look swapped, or one of them differs much", "front and back",
    ),
}  # fmt: skip
