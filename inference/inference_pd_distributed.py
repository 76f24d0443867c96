"""Evaluate the models of every cycle on a test set: overall, by sex and by age group.

Example:
    python inference_pd_distributed.py -fn ./test_set.csv -en ./path_encoder -pd ./path_classifier -o filename_to_save

-en and -pd are folders (one and the same, as a rule) with an encoder and a classifier for each cycle, or two files.
Writes <o>_metrics.csv (one row per cycle), <o>_predictions.csv (one row per cycle and subject) and <o>.log.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.errors import InputError
from travelling.option import from_command_line
from travelling.runs import command, stopping
from travelling.runs.pretrained_options import Inference

if TYPE_CHECKING:
    import pandas as pd

# Of the predictions, before those of the test set's CSV.
PREDICTION_COLUMNS = ("cycle", "ground_truth", "preds", "preds_raw")


def main() -> None:
    """Run the evaluation."""
    settings = from_command_line(Inference, __doc__)
    # Only now, so that --help answers at once.
    import pandas as pd

    from travelling.console import progress_bar
    from travelling.files import write_csv
    from travelling.images.cohort import copies, read_cohort
    from travelling.images.local_trainer import LocalTrainer
    from travelling.images.volumes import Volumes
    from travelling.method.metrics import diagnose
    from travelling.method.performance import metrics_by_subgroup, subgroups
    from travelling.network.model_files import SPACE
    from travelling.network.pretrained import model_pairs, read_record
    from travelling.runs.run import Run

    test_set = read_cohort(settings.fn)
    for column in PREDICTION_COLUMNS:
        if column in test_set.columns:
            raise InputError(f"{settings.fn}: column '{column}' has the name of a result; rename it")
    models = model_pairs(settings.en, settings.pd, settings.only_cycles)
    for cycle, pair in models.items():
        for path in pair:
            own_cycle = read_record(path).get("cycle", cycle)
            if own_cycle != cycle:
                raise InputError(f"{path}: its name says cycle {cycle}, but it is of cycle {own_cycle}")
    metrics_csv, predictions_csv, text_log = (
        settings.o.with_name(settings.o.name + ending) for ending in ("_metrics.csv", "_predictions.csv", ".log")
    )
    # A run is the same only as long as its models are: they count as its input, file by file.
    inputs = {"fn": settings.fn, **{f"model {path.name}": path for pair in models.values() for path in pair}}
    name = settings.o.name
    run = Run(
        settings.o.parent,
        text_log.name,
        settings,
        inputs,
        files=[metrics_csv, predictions_csv],
        models=False,
        record=f"{name}_run.json",
        images=test_set["Path"],
    )
    space = read_record(models[min(models)][0]).get(SPACE)
    volumes = Volumes(None, run.cache_folder, settings.reorient, space)
    volumes.add(test_set)

    # TensorFlow takes seconds to import: only now that the input is known to be good.
    from travelling.network import backend
    from travelling.network.saved_model import load_model, read_weights

    device = backend.start(0)
    cycles = list(models)
    model, record, _ = load_model(*models[cycles[0]], volumes.shape)
    notices = volumes.decode() + copies(volumes.images, test_set)
    trainer = LocalTrainer(model, volumes, test_set=test_set)
    log = run.begin(device, notices + trainer.other_scale(record), volumes.images)
    groups = subgroups(test_set)
    for name, members in {"test set": (test_set["Sex"] != "").to_numpy(), **groups}.items():
        healthy, patients = (int((test_set["Group_bin"][members] == group).sum()) for group in (0, 1))
        if not healthy or not patients:
            log.info("notice: %s: %d HC and %d PD, so it has no AUC_ROC", name, healthy, patients)

    metrics, predictions = finished_cycles(metrics_csv, predictions_csv) if run.resumes else ([], [])
    finished = {int(cycle) for table in metrics for cycle in table["cycle"]}
    columns = [column for column in test_set.columns if column != "Path"]
    for cycle in progress_bar(cycles, unit="cycle"):
        if cycle in finished:
            continue
        if cycle != cycles[0]:  # which is loaded
            read_weights(model, *models[cycle])
        probabilities = trainer.predict()
        row = {"cycle": cycle, **metrics_by_subgroup(test_set["Group_bin"], probabilities, groups)}
        metrics.append(pd.DataFrame([row]))
        results = (cycle, test_set["Group_bin"], diagnose(probabilities), probabilities)
        predictions.append(pd.DataFrame(dict(zip(PREDICTION_COLUMNS, results, strict=True)) | dict(test_set[columns])))
        write_csv(pd.concat([table.astype(object) for table in predictions]), predictions_csv)
        write_csv(pd.concat([table.astype(object) for table in metrics]), metrics_csv)  # last: the cycle is finished
        log.info(
            "cycle %d: AUROC %.3f, accuracy %.3f, sensitivity %.3f, specificity %.3f",
            *(row[name] for name in ("cycle", "AUC_ROC", "accuracy", "sensitivity", "specificity")),
        )
        stopping.stop_if_asked()
    log.info("done: %s, %s", metrics_csv, predictions_csv)
    run.finish()


def finished_cycles(metrics_csv: Path, predictions_csv: Path) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """What an interrupted run has written: tables of text of its metrics and its predictions, each in a list."""
    import pandas as pd

    if not metrics_csv.is_file():
        return [], []
    metrics, predictions = (
        pd.read_csv(path, dtype=str, keep_default_na=False) for path in (metrics_csv, predictions_csv)
    )
    return [metrics], [predictions[predictions["cycle"].isin(metrics["cycle"])]]


if __name__ == "__main__":
    command.run(main)
