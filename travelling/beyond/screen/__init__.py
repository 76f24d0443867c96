"""The statistics screen: which images look like none of the test set, before the model learns of them.

Verification sees harm only where it moves the diagnoses of the test set. The screen needs neither label nor model: it
looks at an image once (:mod:`travelling.beyond.screen.looks`), and compares that with the test set
(:mod:`travelling.beyond.screen.scores`), which is the server's own and never trained on. What is said of labels changes
with the model, so for that all images are looked at again in every cycle.

    looks     what is measured of an image, and how strange that is
    metrics   those of them that are image quality metrics, and their table
    eyes      looks at images on this machine
    scores    the limit, and the scores of images
    labels    how probable labels are (travelling.beyond.screen_labels)
    audit     what a log must say of it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from travelling.beyond import ExtensionOptions
from travelling.errors import VisitFailed
from travelling.method.auditor import Auditor
from travelling.method.extension import Extension, Finding
from travelling.method.rule import locks_up
from travelling.option import BEYOND, number, option
from travelling.words import some, was

if TYPE_CHECKING:
    import numpy as np

    from travelling.beyond.screen.eyes import Looking
    from travelling.beyond.screen.scores import Scores
    from travelling.images.local_trainer import LocalTrainer
    from travelling.method.quality_control import QualityControl
    from travelling.method.trainer import Trainer

FALSE_ALARMS = 0.01  # unless told otherwise
PHASE = "screen"  # of rows of the log that tell of a look
SCORE, CENTER = "Screen_score", "Screen_center"  # columns of the log


@dataclass(kw_only=True)
class ScreenOptions(ExtensionOptions):
    """Whether images are looked at, and how often in vain."""

    screen: bool = option("flag images that look unlike those of the test set", None, False, group=BEYOND)
    false_alarms: float = option(  # after check()
        f"share of good images that --screen may flag (default: {FALSE_ALARMS})",
        number(float, 1e-6, 0.5),
        None,
        metavar="RATE",
        group=BEYOND,
    )

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`Options.check`."""
        if self.false_alarms is not None and not self.screen:
            raise ValueError(f"{spell('false_alarms')}: is an option of {spell('screen')}")
        if self.screen and self.false_alarms is None:
            self.false_alarms = FALSE_ALARMS

    def extension(self) -> Screen | None:
        """As :meth:`ExtensionOptions.extension`."""
        return Screen(self) if self.screen else None


class Screen(Extension):
    """Looks at every image once, before it trains for the first time.

    A suspect is flagged like one that harms alone, and eliminated at its revisit if a look is sure. Both without a
    training step, and therefore without rates in the log. If none is sure, the revisit decides, and the screen has no
    more to say of the image.
    """

    phases: ClassVar[dict[str, str]] = {PHASE: "screened"}
    image_columns: ClassVar[dict[str, str]] = {"mean score": SCORE}

    def __init__(self, options: ScreenOptions):
        from travelling.beyond.screen.looks import LOOKS  # only now, so that --help answers at once

        self.options: ScreenOptions = options
        self.columns = (SCORE, "Screen_limit", *(f"Screen_{name}" for name in LOOKS), CENTER, "Screen_known")
        self.cycle: int | None = None  # the last in which it looked
        self.looks: dict[str, list[dict]] = {}  # subject -> cells of its last look, while it waits of another, too
        self.counts = {"screened": 0, "suspected": 0}  # images of this cycle
        self._scores: Scores | None = None  # from calibrate() on

    def refuse_test_set(self, subjects: int) -> None:
        """As :meth:`Extension.refuse_test_set`."""
        from travelling.beyond.screen.scores import limit_rank

        limit_rank(subjects, self.options.false_alarms)

    def notice(self, trainer: Trainer) -> str:
        """As :meth:`Extension.notice`."""
        eyes = eyes_of(trainer)
        people, others = eyes.people(), eyes.related()[1] or "subject"
        return (
            f"screen: each test image is scored by those of another {others}; of the good images of people other than "
            f"these {people} expect 1 to 4 % above the limit where 1 % is stated, at worst 25 % (docs/results.md)"
        )

    # The loop.

    def before_cycle(self, control: QualityControl, order: list) -> bool:
        """As :meth:`Extension.before_cycle`: look at images for the first time, or at all of them for a partner."""
        if self.cycle == control.cycle:
            return False
        self.cycle, self.counts = control.cycle, dict.fromkeys(self.counts, 0)
        first = not self.looks
        if partners(control.extensions) or not self.looks.keys() >= set(control.training(control.center_of)):
            self.calibrate(control, len(order))
        for place, center in enumerate(order, 1):
            control.trainer.expect(control.centers[order[place]] if place < len(order) else [])
            with suppress(VisitFailed):
                self._look(control, center)
        if first:
            self._write_metrics(control)
        return True

    def calibrate(self, control: QualityControl, centers: int) -> None:
        """Measure the test set, before the images of so many centers are looked at."""
        from travelling.beyond.screen.scores import Scores

        if self._scores is None:
            self._scores = Scores(eyes_of(control.trainer), self.options.false_alarms)
            self._scores.calibrate()
        for partner in partners(control.extensions):
            partner.calibrate(control, centers)

    def cells(self, control: QualityControl, subjects: list[str]) -> list[dict]:
        """The cells of the log for each subject of a center; raises VisitFailed where the center does not answer."""
        assert self._scores  # calibrated
        looks = partners(control.extensions)
        question = {name: about for partner in looks for name, about in partner.question().items()}
        found, measured = self._scores.cells(subjects, **question)
        for partner in looks:
            partner.add_cells(found, measured)
        return found

    def _look(self, control, center):
        """Look at who would train at a center, and who is to be revisited; raises VisitFailed."""
        control.refuse_untold(center)
        due = [subject for subject in control.due() if control.center_of[subject] == center]
        training = control.training(control.centers[center])
        new = [subject for subject in training if subject not in self.looks]
        others = partners(control.extensions)
        if not others:  # the image has told everything
            training, due = new, []
        if not training + due:
            return
        try:
            cells = dict(zip(training + due, self.cells(control, training + due), strict=True))
        except VisitFailed as failure:
            raise control.failed(failure, center, training + due) from None
        for subject in due:
            self.looks[subject] = [*self.looks[subject][:1], cells[subject]]
        for subject in training:
            doubted = [partner.doubts(cells[subject]) for partner in others]
            suspect = (subject in new and is_strange(cells[subject])) or any(doubted)
            self.looks[subject] = [cells[subject]]
            self.counts["screened"] += 1
            self.counts["suspected"] += suspect
            if suspect:
                control.flag(subject)
            control.decided(PHASE, subject, cells[subject], suspect)

    def _write_metrics(self, control):
        """Write the table of image metrics beside the log, where the images are on this machine."""
        from travelling.beyond.screen.eyes import Eyes

        save = getattr(control.settings, "fn_save", None)
        if save and self._scores and isinstance(self._scores.eyes, Eyes):
            self._scores.eyes.write_metrics(save.with_name(f"{save.name}_iqm.tsv"))

    def at_revisit(self, control: QualityControl, subject: str) -> tuple[bool, dict]:
        """As :meth:`Extension.at_revisit`: whether what was seen of it is enough, and the cells of the last look."""
        looks = self.looks[subject]
        doubted = [all(map(partner.doubts, looks)) for partner in partners(control.extensions)]
        sure = is_surely_strange(looks[-1]) or any(doubted)
        if sure:
            control.decided("revisit", subject, looks[-1], sure)
        return sure, looks[-1]

    def locked_up(self, cycle: int) -> str | None:
        """As :meth:`Extension.locked_up`."""
        if self.cycle != cycle or not locks_up(self.counts["suspected"], self.counts["screened"]):
            return None
        return (
            f"lock-up: {self.counts['suspected']} of {some(self.counts['screened'], 'image')} screened in cycle "
            f"{cycle} {was(self.counts['suspected'])} suspected. Unless most images are harmful, those of the test set "
            "are not like those of the centers (another preparation or scale of intensities?)"
        )

    def export_state(self) -> dict:
        """As :meth:`Extension.export_state`; further looks need a new calibration."""
        return {"cycle": self.cycle, "looks": self.looks, "counts": self.counts}

    def import_state(self, state: dict) -> None:
        """As :meth:`Extension.import_state`."""
        self.cycle, self.looks, self.counts = state["cycle"], state["looks"], state["counts"]

    # What audit and report say.

    def auditor(self) -> Auditor:
        """As :meth:`Extension.auditor`."""
        from travelling.beyond.screen.audit import ScreenAuditor

        return ScreenAuditor(self.columns)

    def methods(self, extensions: Sequence[Extension]) -> str:
        """As :meth:`Extension.methods`."""
        from travelling.beyond.screen.looks import LOOKS
        from travelling.beyond.screen.scores import SURE_OF_CENTER

        looks = [f"({place}) {look.words}" for place, look in enumerate(LOOKS.values(), 1)]
        sure = [f"{look.sure:g} ({place})" for place, look in enumerate(LOOKS.values(), 1)]
        return (
            "Before it trained for the first time, each image was compared with those of the test set, without its "
            f"label or the model, by {some(len(looks), 'look')}: {', '.join(looks)}. "
            "Its score was the largest of the looks, in standard deviations of the test set, which were widened by the "
            "number of its people (ratio of limits of prediction, Student's t). The limit was the conformal quantile "
            "of the test images' own scores, each by test images of other persons, anatomies and scanners as far as "
            "these were known; an image like theirs exceeds it with a stated probability of "
            f"{self.options.false_alarms:g}. Where people had several test images, the limit was at least that of "
            "prediction for an image of another person, in a one-way analysis of variance with random effects. "
            "Images above it were flagged without training. Those with a look above "
            f"its own limit of {', '.join(sure)}, or with left and right swapped at a center whose images had a mean "
            f"score of more than {SURE_OF_CENTER:g} in that look, were eliminated at their revisit without a training "
            "step; in all other cases the step of the revisit decided."
        )

    def legend(self) -> str:
        """As :meth:`Extension.legend`."""
        return "Score and limit: of the screen; where FPR and FNR are empty, no step was made."

    def explain(self, row: Any) -> dict[str, str]:
        """As :meth:`Extension.explain`: the score, the limit, and the look that gave the score."""
        from travelling.beyond.screen.looks import LOOKS

        found = {"score": _number(row[SCORE]), "limit": _number(row["Screen_limit"]), "look": ""}
        name = self._highest(row)
        return found | {"look": LOOKS[name].title or name} if name else found

    def finding(self, row: Any) -> Finding | None:
        """As :meth:`Extension.finding`: by the look that gave the score."""
        from travelling.beyond.screen.looks import LOOKS

        if row["Screen_limit"] != row["Screen_limit"] or not is_strange(row):  # NaN is not equal to itself: no look
            return None
        name = self._highest(row)
        words = LOOKS[name].finding if name else "what the screen measures of it is no number"
        if is_mirrored_with_others(row):
            words += "; so do the other images of its center"
        return Finding(words, **self.explain(row))

    def _highest(self, row):
        """The look with the largest score in a row, "" where one has none."""
        from travelling.beyond.screen.looks import LOOKS

        values = {name: row[f"Screen_{name}"] for name in LOOKS}
        known = all(value == value for value in values.values())  # NaN is not equal to itself
        return max(values, key=values.__getitem__) if known else ""


class OfLooks(Extension):
    """An extension that has a part in the screen's looks."""

    def calibrate(self, control: QualityControl, centers: int) -> None:
        """Before the images of so many centers are looked at."""

    def question(self) -> dict[str, Any]:
        """What else is asked when images are looked at: arguments of :meth:`Eyes.look`."""
        return {}

    def add_cells(self, found: list[dict], looks: dict[str, np.ndarray]) -> None:
        """Add to the cells of each image of a center, what the answers tell."""

    def doubts(self, cells: dict) -> bool:
        """Whether an image with these cells is flagged."""
        raise NotImplementedError


def partners(extensions: Sequence[Extension]) -> list[OfLooks]:
    """Those that have a part in the screen's looks."""
    return [extension for extension in extensions if isinstance(extension, OfLooks)]


def is_strange(cells: dict) -> bool:
    """Whether the cells of a look are those of a strange image: its score is above the limit, or not a number."""
    return not cells["Screen_score"] <= cells["Screen_limit"]


def is_surely_strange(cells: dict) -> bool:
    """Whether the cells of a look are those of an image that is strange enough to be eliminated for it."""
    from travelling.beyond.screen.looks import LOOKS

    sure = any(not cells[f"Screen_{name}"] <= look.sure for name, look in LOOKS.items())
    return is_strange(cells) and (sure or is_mirrored_with_others(cells))


def is_mirrored_with_others(cells: Any) -> bool:
    """Whether the cells of a look are those of an image that looks mirrored at a center whose images all do."""
    from travelling.beyond.screen.scores import SURE_OF_CENTER

    return cells["Screen_asymmetry"] > cells["Screen_limit"] and cells[CENTER] > SURE_OF_CENTER


def eyes_of(trainer: Trainer) -> Looking:
    """What looks at images: the trainer, where it knows how, else its network and its images on this machine."""
    from travelling.beyond.screen.eyes import Eyes, Looking

    return trainer if isinstance(trainer, Looking) else Eyes(cast("LocalTrainer", trainer))


def _number(value):
    return "" if value != value else f"{value:.3g}"  # NaN is not equal to itself
