"""The diagnoses of a study's models after one cycle, overall and by subgroup, with their bootstrap replicates."""

import numpy as np
import pandas as pd

from evaluation.intervals import RESAMPLES, metric_replicates, paired_p_value, percentile_interval
from evaluation.layout import CLEAN
from evaluation.records import Study
from travelling.errors import InputError
from travelling.method.performance import METRICS, performance, subgroups

CLEAN_KEY = ("", "", CLEAN)
ALL, HOLDOUT = "all", "hold-out"  # of the test set, which decides; and of the hold-out set, which does not


class Diagnoses:
    """Metrics of every model after one cycle.

    ``cycle`` is that cycle (None: the last that any model was tested after), ``resamples`` those of the bootstrap.
    ``values`` maps (subgroup, model key, seed) to the METRICS, ``replicates`` to those of the resamples (metrics,
    resamples); ``sizes`` maps (subgroup, seed) to the numbers of HC and PD. Every subgroup is resampled on its own, so
    it keeps its size; so is HOLDOUT, which is none of ``subgroups``. Raises InputError where no model was tested after
    ``cycle``.
    """

    def __init__(self, study: Study, cycle: int | None = None, resamples: int = RESAMPLES):
        self.keys, self.resamples = study.keys, resamples
        tested = [model for model in study.models if model.predictions is not None]
        cycles = sorted({int(number) for model in tested for number in model.predictions["cycle"].unique()})
        if cycle is not None and cycle not in cycles:
            raise InputError(f"{study.folder}: no model was tested after cycle {cycle}; there are {cycles}")
        self.cycle = max(cycles, default=None) if cycle is None else cycle
        self.when = "(no model was tested)" if self.cycle is None else f"after cycle {self.cycle}"
        self.values: dict[tuple, np.ndarray] = {}
        self.replicates: dict[tuple, np.ndarray] = {}
        self.sizes: dict[tuple, list[int]] = {}
        self.notes: list[str] = []
        by_seed: dict[str, list] = {}
        for model in tested:
            now = self._now(model.predictions)
            if now.empty:
                last, place = model.predictions["cycle"].max(), model.folder.relative_to(study.folder)
                self.notes.append(f"{place}: not tested after cycle {self.cycle} (the last is {last})")
            else:
                by_seed.setdefault(model.seed, []).append((model.key, now))
        streams: dict[tuple, int] = {}  # seeds with the same test set share its resamples; another test set has its own
        for name, models in by_seed.items():
            people = models[0][1]
            content = people[["Subject", "ground_truth", "Sex", "Age"]].astype(str).to_numpy()
            stream = streams.setdefault(tuple(content.ravel()), len(streams))
            everybody = {ALL: np.ones(len(people), dtype=bool)}
            for number, (subgroup, members) in enumerate((everybody | subgroups(people)).items()):
                self._add(subgroup, name, models, members, [0, stream, number])
            held = [model for model in tested if model.seed == name and model.holdout is not None]
            held = [(model.key, now) for model in held if len(now := self._now(model.holdout))]
            if held:
                self._add(HOLDOUT, name, held, slice(None), [0, stream, number + 1])
        self.subgroups = [subgroup for subgroup in dict.fromkeys(name for name, _ in self.sizes) if subgroup != HOLDOUT]

    def _now(self, predictions):
        """The predictions after the cycle, by subject."""
        return predictions[predictions["cycle"] == self.cycle].sort_values("Subject")

    def _add(self, subgroup, seed, models, members, stream):
        """Metrics and replicates of some models, [(key, predictions)], on the ``members`` of their test set."""
        labels = models[0][1]["ground_truth"].to_numpy()[members]
        self.sizes[subgroup, seed] = [int(np.sum(labels == label)) for label in (0, 1)]
        predictions = np.array([now["preds_raw"].to_numpy()[members] for _, now in models])
        drawn = metric_replicates(labels, predictions, stream, self.resamples)
        for (key, _), own, replicates in zip(models, predictions, drawn, strict=True):
            metrics = performance(labels, own)
            self.values[subgroup, key, seed] = np.array([metrics[metric] for metric in METRICS])
            self.replicates[subgroup, key, seed] = replicates

    def seeds(self, key: tuple, subgroup: str = ALL) -> list:
        """The seeds whose model was tested."""
        return [seed for of, other, seed in self.values if of == subgroup and other == key]

    def mean(self, subgroup: str, key: tuple, seeds: list) -> tuple:
        """Means over seeds: the METRICS (metrics,) and their replicates (metrics, resamples)."""
        found = self.values, self.replicates
        return tuple(np.mean([source[subgroup, key, seed] for seed in seeds], axis=0) for source in found)

    def compare(self, key: tuple, subgroup: str) -> list:
        """One row per metric of a model in a subgroup, with what it is against the clean model's, a list of dicts."""
        seeds = self.seeds(key)
        experiment, kind, model = key
        rows = pd.DataFrame({"metric": METRICS}).assign(experiment=experiment, kind=kind, model=model, seeds=len(seeds))
        if not seeds:
            return rows.to_dict("records")
        values, drawn = self.mean(subgroup, key, seeds)
        rows["cycle"], rows["value"] = self.cycle, values
        rows["low"], rows["high"] = percentile_interval(drawn)
        if len(seeds) > 1:
            rows["sd_over_seeds"] = np.std([self.values[subgroup, key, seed] for seed in seeds], axis=0, ddof=1)
        both = [seed for seed in seeds if seed in self.seeds(CLEAN_KEY)]
        if both and key != CLEAN_KEY:
            mine, clean = (self.mean(subgroup, which, both) for which in (key, CLEAN_KEY))
            rows["difference_to_clean"], drawn = mine[0] - clean[0], mine[1] - clean[1]
            rows["difference_low"], rows["difference_high"] = percentile_interval(drawn)
            auroc = METRICS.index("AUC_ROC")
            rows.loc[auroc, "p_value"] = paired_p_value(drawn[auroc])
        return rows.to_dict("records")
