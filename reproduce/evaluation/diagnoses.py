"""The diagnoses of a study's models after one cycle, overall and by subgroup, with their bootstrap replicates."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from evaluation.intervals import RESAMPLES, metric_replicates, paired_p_value, percentile_interval
from evaluation.layout import CLEAN
from evaluation.records import Study
from travelling.errors import InputError
from travelling.method.performance import METRICS, performance, refuse_unordered_ages, subgroups
from travelling.runs.options import AGE_EDGES

CLEAN_KEY = ("", "", CLEAN)
ALL = "all"


class Diagnoses:
    """Metrics of every model after one cycle.

    ``cycle`` is that cycle (None: the last that any model was tested after), ``age_edges`` the ages (years) at which a
    group begins, ``resamples`` and ``seed`` those of the bootstrap. ``values`` maps (subgroup, model key, seed) to the
    METRICS, ``replicates`` to those of the resamples (metrics, resamples); ``sizes`` maps (subgroup, seed) to the
    numbers of HC and PD. Every subgroup is resampled on its own, so it keeps its size. Raises InputError where no model
    was tested after ``cycle`` or the edges do not increase.
    """

    def __init__(
        self, study: Study, cycle: int | None = None, age_edges: tuple = AGE_EDGES, resamples: int = RESAMPLES,
        seed: int = 0,
    ):  # fmt: skip
        refuse_unordered_ages(age_edges)
        self.keys, self.age_edges, self.resamples, self.seed = study.keys, age_edges, resamples, seed
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
            now = model.predictions[model.predictions["cycle"] == self.cycle].sort_values("Subject")
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
            for number, (subgroup, members) in enumerate((everybody | subgroups(people, age_edges)).items()):
                labels = people["ground_truth"].to_numpy()[members]
                self.sizes[subgroup, name] = [int(np.sum(labels == label)) for label in (0, 1)]
                predictions = np.array([now["preds_raw"].to_numpy()[members] for _, now in models])
                drawn = metric_replicates(labels, predictions, [seed, stream, number], resamples)
                for (key, _), own, replicates in zip(models, predictions, drawn, strict=True):
                    metrics = performance(labels, own)
                    self.values[subgroup, key, name] = np.array([metrics[metric] for metric in METRICS])
                    self.replicates[subgroup, key, name] = replicates
        self.subgroups = list(dict.fromkeys(subgroup for subgroup, _ in self.sizes))

    def seeds(self, key: tuple) -> list:
        """The seeds whose model was tested."""
        return [seed for subgroup, other, seed in self.values if subgroup == ALL and other == key]

    def mean(self, subgroup: str, key: tuple, seeds: list) -> tuple:
        """Means over seeds: the METRICS (metrics,) and their replicates (metrics, resamples)."""
        found = self.values, self.replicates
        return tuple(np.mean([source[subgroup, key, seed] for seed in seeds], axis=0) for source in found)

    def compare(self, key: tuple, of: Callable, difference: str) -> list:
        """One row per metric of a model, with what it is against the clean model's, a list of dicts.

        ``of(model key, seeds)`` gives what is told of a model: values (metrics,) and their replicates (metrics,
        resamples). ``difference`` is what that to the clean model is called in the names of columns.
        """
        seeds = self.seeds(key)
        experiment, kind, model = key
        rows = pd.DataFrame({"metric": METRICS}).assign(experiment=experiment, kind=kind, model=model, seeds=len(seeds))
        if not seeds:
            return rows.to_dict("records")
        values, drawn = of(key, seeds)
        rows["cycle"], rows["value"] = self.cycle, values
        rows["low"], rows["high"] = percentile_interval(drawn)
        if len(seeds) > 1:
            rows["sd_over_seeds"] = np.std([of(key, [seed])[0] for seed in seeds], axis=0, ddof=1)
        both = [seed for seed in seeds if seed in self.seeds(CLEAN_KEY)]
        if both and key != CLEAN_KEY:
            changes, drawn = (mine - clean for mine, clean in zip(of(key, both), of(CLEAN_KEY, both), strict=True))
            rows[f"{difference}_to_clean"] = changes
            rows[f"{difference}_low"], rows[f"{difference}_high"] = percentile_interval(drawn)
            auroc = METRICS.index("AUC_ROC")
            rows.loc[auroc, "p_value"] = paired_p_value(drawn[auroc])
        return rows.to_dict("records")
