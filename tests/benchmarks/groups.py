"""What group verification (``--verify-every``) costs and finds, beside the published verification of every batch.

Takes the pre-trained models and the harmful images of a study that is finished (reproduce/reproduce.py), runs quality
control on them with groups of several sizes, all in one process and without writing any model, and appends a row for
every run to a CSV; runs that are there are not made again. Plain training of the same cycles is timed beside it.

Example:
    python tests/benchmarks/groups.py demo --every 1 16 32 --output groups.csv
"""

import csv
import json
import time
from pathlib import Path
from types import SimpleNamespace

from travelling.method.settings import WithoutControl
from travelling.runs import command, control_options

COLUMNS = (
    "seed", "condition", "rule", "screen", "every", "learning_rate",
    "evaluations", "seconds", "seconds_plain",
    "harmful", "harmful_flagged", "harmful_eliminated", "good", "good_flagged", "good_eliminated",
    "AUROC", "FPR", "FNR",
)  # fmt: skip
CLEAN = "clean"
RULES = ("published", "evidence")


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    parser.add_argument("study", type=Path, metavar="STUDY_FOLDER")
    parser.add_argument("--every", type=count, nargs="+", default=[1, 8, 16, 32], metavar="BATCHES", help="group sizes")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--screen", action="store_true", help="with the screen")
    parser.add_argument("--conditions", nargs="+", default=[CLEAN, "single_noise"], help="folders of the study")
    parser.add_argument("--cycles", type=count, default=2, metavar="N")
    parser.add_argument("--revisit", type=count, default=1, metavar="CYCLES")
    parser.add_argument("--learning-rate", type=command.number(float, 0), default=1e-4, metavar="RATE")
    parser.add_argument("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def main():
    """Run what is not there yet."""
    arguments = parse_arguments()
    from travelling.network import backend

    backend.start(0)
    done = set()
    if arguments.output.exists():
        with open(arguments.output, newline="", encoding="utf-8") as file:
            done = {tuple(row[name] for name in COLUMNS[:6]) for row in csv.DictReader(file)}
    else:
        arguments.output.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    for place in sorted(arguments.study.glob("seed_*")) or [arguments.study]:
        for condition in arguments.conditions:
            runs = [
                (place.name, condition, rule, str(arguments.screen), str(every), str(arguments.learning_rate))
                for rule in arguments.rules
                for every in arguments.every
            ]
            runs = [run for run in runs if run not in done]
            if runs:
                record = json.loads((place / "pretrained" / "run.json").read_text(encoding="utf-8"))
                cohort = arguments.study / Path(record["options"]["fn_train"]).parent
                harmful = cohort if condition == CLEAN else place / condition / "harmful"
                bench = Bench(arguments, place / "pretrained", harmful / "training_set.csv", cohort / "test_set.csv")
                for run in runs:
                    found = bench.run(rule=run[2], screen=arguments.screen, verify_every=int(run[4]))
                    row = [*run, *(found[name] for name in COLUMNS[6:])]
                    with open(arguments.output, "a", newline="", encoding="utf-8") as file:
                        csv.writer(file, lineterminator="\n").writerow(row)
                    print(*row, flush=True)


def nothing(*_):
    """Keeps no files, and shows nothing."""


NO_FILES = SimpleNamespace(**dict.fromkeys(("checkpoint", "trained", "after_cycle"), nothing))


class Bench:
    """Images, good and harmful (``truth.csv`` beside a training set tells which), and a pre-trained model."""

    def __init__(self, arguments, pretrained, training_csv, test_csv):
        from travelling.images.cohort import read_cohort, subjects_by_center
        from travelling.images.volumes import Volumes

        self.arguments, self.pretrained = arguments, pretrained
        self.training_set, self.test_set = read_cohort(training_csv), read_cohort(test_csv)
        self.centers = subjects_by_center(self.training_set)
        self.harmful, truth = set(), training_csv.with_name("truth.csv")
        if truth.is_file():
            with open(truth, newline="", encoding="utf-8") as file:
                self.harmful = {row["Subject"] for row in csv.DictReader(file)}
        self.volumes = Volumes(None, pretrained)
        self.volumes.add(self.test_set)
        self.volumes.add(self.training_set)
        self.volumes.decode()
        self.seconds_plain = None
        self.trainer = self.make_trainer()
        self.start = self.trainer.keep()

    def make_trainer(self):
        """A trainer with the pre-trained model, with all functions compiled."""
        from travelling.beyond.screen.eyes import Eyes
        from travelling.images.local_trainer import LocalTrainer
        from travelling.network.pretrained import model_pairs
        from travelling.network.saved_model import load_model

        pairs = model_pairs(self.pretrained, self.pretrained)
        self.cycles = range(max(pairs) + 1, max(pairs) + 1 + self.arguments.cycles)
        self.model, _, _ = load_model(*pairs[max(pairs)], self.volumes.shape)
        trainer = LocalTrainer(self.model, self.volumes, self.training_set, self.test_set)
        kept = trainer.keep()
        trainer.train([self.training_set["Subject"].iloc[0]])  # one step is compiled for all sizes
        trainer.evaluate()
        Eyes(trainer).look()
        trainer.restore(kept)
        return trainer

    def train_plainly(self, centers):
        """Train the pre-trained model on all subjects of some centers, without quality control."""
        from travelling.method.protocol import learning_rates
        from travelling.method.travel import travel

        self.trainer.restore(self.start)
        plain = WithoutControl(learning_rate=self.arguments.learning_rate)
        travel(self.trainer, centers, self.cycles, plain, learning_rates(plain), NO_FILES)

    def run(self, **given):
        """The cells of a run of these settings, by column, those after the first six."""
        from travelling.method.performance import performance
        from travelling.method.protocol import learning_rates
        from travelling.method.quality_control import QualityControl
        from travelling_quality_control.enc_PD_quality_control import control_quality

        arguments, trainer, rows = self.arguments, self.trainer, []
        files = dict.fromkeys(("en", "pd", "fn_test", "fn_save"), Path("none"))
        values = files | given | {"revisit": arguments.revisit, "learning_rate": arguments.learning_rate}
        settings = control_options.QualityControl.knowing(values).made_of(values, str)
        settings.fn_save = None  # where the screen would write its metrics
        if self.seconds_plain is None:
            begun = time.perf_counter()
            self.train_plainly(self.centers)
            self.seconds_plain = time.perf_counter() - begun
        trainer.restore(self.start)
        control = QualityControl(settings, trainer, self.centers, rows.append, extensions=settings.extensions)
        control.start(trainer.evaluate())
        begun = time.perf_counter()
        control_quality(control, self.cycles, learning_rates(settings), NO_FILES)
        seconds = time.perf_counter() - begun
        evaluations = sum(row["FP"] is not None for row in rows)
        flagged = {subject for subject, flags in control.flags.items() if flags}
        bad, good = self.harmful, set(control.flags) - self.harmful
        now, (fpr, fnr) = control.accepted, control.reference
        cells = [
            evaluations, f"{seconds:.1f}", f"{self.seconds_plain:.1f}",
            len(bad), len(flagged & bad), len(bad & control.eliminated.keys()),
            len(good), len(flagged & good), len(good & control.eliminated.keys()),
            f"{performance(now.labels, now.predictions)['AUC_ROC']:.3f}", f"{fpr:.3f}", f"{fnr:.3f}",
        ]  # fmt: skip
        return dict(zip(COLUMNS[6:], cells, strict=True))


if __name__ == "__main__":
    command.run(main)
