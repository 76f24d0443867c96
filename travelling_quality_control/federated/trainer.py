"""The trainer of the server: gradients come from the centers, steps and evaluations are made here."""

import logging
import math
import statistics
from collections.abc import Callable
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
        arrays, meta = self._ask_in("train", subjects, self._refuse_half_step)
        self._report_norm(self.center_of[subjects[0]], arrays)
        take_step(self._model, arrays)
        return meta["loss"]

    def _refuse_half_step(self, arrays, meta):
        refuse_half_step(self._model, arrays)
        loss, told = meta.get("loss"), meta.get("digest")
        if not isinstance(told, str) or told != digest(arrays):
            raise ValueError(f"what it sent was {CHANGED}")
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

    def look(self, subjects: list[str] | None = None, labels: "Reference | None" = None) -> dict[str, np.ndarray]:
        """As :meth:`Eyes.look`; measured at the subjects' center. Raises VisitFailed."""
        if subjects is None:
            return self._eyes().look()

        def refuse(_, meta):
            refuse_bad_looks(meta.get("looks"), len(subjects), bool(labels))

        _, meta = self._ask_in("look", subjects, refuse, labels=labels)
        return {look: np.array(rows) for look, rows in meta["looks"].items()}

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

    def _ask_in(self, question, subjects, refuse, **about):
        """Ask the center of some subjects something about the network as it is now: (arrays, meta)."""
        network = export_network(self._model)
        meta = {"digest": digest(network), "subjects": subjects, **about, **self.preparation}
        return self._ask(self.center_of[subjects[0]], question, network, meta, refuse)

    def expect(self, subjects: list[str]) -> None:
        """The images are the center's own concern."""


def refuse_bad_looks(looks: object, subjects: int, labels: bool) -> None:
    """Raise ValueError where a center's answer has not, for each look, one row of its numbers for each subject.

    ``labels`` tells whether labels were asked for, too.
    """
    from travelling.beyond.screen.looks import LOOKS  # only where a run has the screen

    lengths = {name: look.numbers for name, look in LOOKS.items()} | ({"labels": 1} if labels else {})
    if not isinstance(looks, dict) or looks.keys() != lengths.keys():
        raise ValueError(f"its looks are not {', '.join(lengths)}")
    for name, rows in looks.items():
        found = np.array(rows)
        # An image may be infinitely far, or no number: then it is flagged, as in the script.
        if found.dtype != float or found.shape != (subjects, lengths[name]):
            raise ValueError(f"its look {name} is not a row of {lengths[name]} numbers for each subject")
        if name == "labels" and not ((found > 0) & (found <= 1)).all():
            raise ValueError("its look labels is not from 0 to 1")
