"""The trainer of the server: gradients come from the centers, steps and evaluations are made here."""

import logging
import math
import statistics
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from travelling.images.local_trainer import LocalTrainer
from travelling.images.volumes import Volumes
from travelling.network.inference_network import EvaluatedModel
from travelling.network.model_files import SPACE
from travelling_quality_control.federated.center import CHANGED
from travelling_quality_control.federated.step import export_network, refuse_half_step, take_step
from travelling_quality_control.federated.wire import digest

if TYPE_CHECKING:
    from travelling.beyond.screen.labels import Reference

Refuse = Callable[[list[np.ndarray], dict], object]
Ask = Callable[[str, str, list[np.ndarray], dict, Refuse], tuple[list[np.ndarray], dict]]  # of FederatedTrainer
FAR_OUT, FEW_NORMS = 100, 5  # times the median of so many norms at least: a gradient is reported


class FederatedTrainer(LocalTrainer):
    """A trainer whose training images are at the centers, and whose model and test set are here.

    ``ask(center, question, arrays, meta, refuse)`` gives a center's answer, (arrays, meta), or raises VisitFailed, also
    where ``refuse(arrays, meta)`` raises ValueError. ``center_of`` maps every subject to its center.
    """

    def __init__(self, ask: Ask, model: EvaluatedModel, volumes: Volumes, test_set: pd.DataFrame | None = None):
        super().__init__(model, volumes, test_set=test_set)
        self._ask = ask
        self._log = logging.getLogger("travelling")
        self.center_of: dict[str, str] = {}
        # What a center needs to know of the network and of the server's images.
        self.preparation = {"filters": model.filters, "space": volumes.space}
        self._here: Any = None  # looks at the test set
        self._norms: dict[str, list[float]] = {}  # center -> norms of its gradients

    def train(self, subjects: list[str]) -> float:
        """One training step, its gradient measured at the subjects' center. Returns the loss.

        Raises VisitFailed, and changes nothing then.
        """
        arrays, meta = self._ask_in("train", subjects, export_network(self._model), self._refuse_half_step)
        self._report_norm(self.center_of[subjects[0]], arrays)
        take_step(self._model, arrays)
        return meta["loss"]

    def _refuse_half_step(self, arrays, meta):
        refuse_half_step(self._model, arrays)
        refuse_changed(arrays, meta)
        loss = meta.get("loss")
        if not isinstance(loss, float) or not 0 <= loss < float("inf"):
            raise ValueError("its loss is not a number")

    def _report_norm(self, center, arrays):
        """Report a gradient far larger than those of the other centers; it is no proof, and no decision uses it."""
        gradients = arrays[: len(self._model.network.trainable_variables)]
        norm = math.hypot(*(float(np.linalg.norm(array.astype(float))) for array in gradients))
        others = [value for other, norms in self._norms.items() if other != center for value in norms]
        usual = statistics.median(others) if len(others) >= FEW_NORMS else 0.0
        if usual > 0 and norm > FAR_OUT * usual:
            times = norm / usual
            self._log.warning("%s: its gradient's norm is %.0f times the median of the other centers'", center, times)
        self._norms.setdefault(center, []).append(norm)

    def look(
        self,
        subjects: list[str] | None = None,
        labels: "Reference | None" = None,
        weights: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """As :meth:`Eyes.look`; measured at the subjects' center. Raises VisitFailed.

        The network is sent only where labels are asked for: no other look needs it.
        """
        if subjects is None:
            return self._eyes().look()
        weights = weights or {}
        numbers = numbers_of_looks(weights, bool(labels))

        def refuse(arrays, meta):
            refuse_bad_looks(arrays, len(subjects), numbers)
            refuse_changed(arrays, meta)

        arrays = [*weights.values(), *(export_network(self._model) if labels else [])]
        (rows,), _ = self._ask_in("look", subjects, arrays, refuse, labels=labels, weights=list(weights))
        return dict(zip(numbers, np.split(rows, np.cumsum(list(numbers.values()))[:-1], axis=1), strict=True))

    def related(self, scanners: bool = True) -> tuple[np.ndarray, str]:
        """As :meth:`Eyes.related`."""
        return self._eyes().related(scanners)

    def knows_scanners(self, subjects: list[str]) -> list[bool]:
        """As :meth:`Eyes.knows_scanners`: no center says which scanner it has."""
        return [False] * len(subjects)

    def people(self) -> int:
        """As :meth:`Eyes.people`."""
        return self._eyes().people()

    def _eyes(self):
        from travelling.beyond.screen.eyes import Eyes  # only where a run has the screen

        self._here = self._here or Eyes(self)
        return self._here

    def known(self, subjects: list[str]) -> dict:
        """Where images lie."""
        return {SPACE: self._volumes.space}

    def _ask_in(self, question, subjects, arrays, refuse, **about):
        """Ask the center of some subjects something that takes arrays: (arrays, meta)."""
        meta = {"digest": digest(arrays), "subjects": subjects, **about, **self.preparation}
        return self._ask(self.center_of[subjects[0]], question, arrays, meta, refuse)

    def expect(self, subjects: list[str]) -> None:
        """The images are the center's own concern."""


def refuse_changed(arrays: list[np.ndarray], meta: dict) -> None:
    """Raise ValueError where the arrays of a center's answer are not those that it has sent."""
    if meta.get("digest") != digest(arrays):
        raise ValueError(f"what it sent was {CHANGED}")


def numbers_of_looks(weights: Iterable[str], labels: bool) -> dict[str, int]:
    """How many numbers of an image each look has in a center's answer, in its order.

    Those with ``weights`` have one. ``labels`` tells whether labels are asked for, too.
    """
    from travelling.beyond.screen.looks import LOOKS  # only where a run has the screen

    numbers = {name: 1 if name in weights else look.numbers for name, look in LOOKS.items()}
    return numbers | ({"labels": 1} if labels else {})


def refuse_bad_looks(arrays: list[np.ndarray], subjects: int, numbers: dict[str, int]) -> None:
    """Raise ValueError where a center's answer is not one row of all looks' numbers for each subject."""
    expected = [("float64", (subjects, sum(numbers.values())))]
    if [(str(array.dtype), array.shape) for array in arrays] != expected:
        raise ValueError(f"its looks are not a row of {sum(numbers.values())} numbers for each subject")
    # An image may be infinitely far, or no number: then it is flagged, as in the script.
    p_values = arrays[0][:, -1:] if "labels" in numbers else np.ones(1)
    if not ((p_values > 0) & (p_values <= 1)).all():
        raise ValueError("its look labels is not from 0 to 1")
