"""What can be wrong with a run: each check is a function of it, and gives a reason or None.

A check that is added to ``CHECKS`` is asked, and nothing else is touched for it. docs/quality_control.md has them in a
table, and says on which runs the thresholds were chosen and confirmed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import binomtest, fisher_exact

from travelling.method.rule import locks_up
from travelling.words import some, was

if TYPE_CHECKING:
    from travelling_quality_control.judging.logged_run import LoggedRun

REMARK, LOOK_CLOSER, DO_NOT_USE = range(3)  # what a reason makes of a verdict
RATES = {"FP": ("FPR", "HC", 0), "FN": ("FNR", "PD", 1)}  # count -> rate, class, its label
UNSEEN = {"screen": "images", "label_screen": "labels"}  # option -> what nobody examines without it
NAMED = 5  # at most, of images in a sentence


@dataclass(frozen=True)
class Reason:
    """Why a verdict is what it is: what was found, with a figure, and what to do."""

    level: int
    found: str
    advice: str

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.found[:1].upper()}{self.found[1:]}; {self.advice}."


def finished(run: LoggedRun) -> Reason | None:
    """What waits or was kept in a run that is not over may still be decided otherwise."""
    if not run.record.get("finished"):
        return Reason(LOOK_CLOSER, "by its record the run is not finished", "give its command again, and it goes on")
    if len(run.log) < 2:
        return Reason(LOOK_CLOSER, "no training step was verified", "look into its log for what failed")
    return None


# A step on images of one class moves the threshold a little, and a good model wanders so: what is certain and small
# does no harm, what is large may be chance in a small test set. Both must hold.
WORSE, MUCH_WORSE = 0.15, 0.3  # rise of a rate from the baseline to the end: look closer, do not use
WORSE_P = 0.005  # of that rise; of each of the two


def rates_at_the_end(run: LoggedRun) -> Reason | None:
    """Exact McNemar test (1947) of the last accepted diagnoses and those of the baseline, of the same test subjects.

    Where the pairs are not known it takes, of all pairs that give these counts, those that prove least.
    """
    first, last = run.accepted.iloc[0], run.accepted.iloc[-1]
    for count, (rate, group, _) in RATES.items():
        before, after, size = int(first[count]), int(last[count]), run.size[count]
        least = min(before, size - after)
        wrong, right = run.record.get("changed", {}).get(group) or (least + after - before, least)
        if after <= before or (after - before) / size < WORSE:
            continue
        p_value = binomtest(wrong, wrong + right, alternative="greater").pvalue
        if p_value < WORSE_P:
            return Reason(
                DO_NOT_USE if (after - before) / size >= MUCH_WORSE else LOOK_CLOSER,
                f"{rate} is {after / size:.2f} at the end and was {before / size:.2f} at the start ({before} of {size} "
                f"{group} misdiagnosed, now {after}; p {p_value:.2g})",
                "take the model of an earlier cycle, and go on from it with a lower learning rate or --rule evidence",
            )
    return None


ONE_ANSWER = 0.95  # of a class that is misdiagnosed at the end: what the model says is the same for everybody


def one_answer(run: LoggedRun) -> Reason | None:
    """A model that calls all test subjects HC, or PD, however it began: no rate of it can rise, so no harm is seen.

    What the screen decided did not ask the model.
    """
    last, screened = run.accepted.iloc[-1], run.options.get("screen")
    for count, (rate, group, _) in RATES.items():
        if run.size[count] and last[count] >= ONE_ANSWER * run.size[count]:
            return Reason(
                LOOK_CLOSER if screened else DO_NOT_USE,
                f"{rate} is {last[count] / run.size[count]:.2f} at the end: the model misdiagnoses "
                f"{last[count]:.0f} of {run.size[count]} {group}, and verification saw no harm in what made it so",
                "only what the screen decided without a step counts"
                if screened
                else "begin with a better pre-trained model, and use --recommended",
            )
    return None


# Accepted rises that sum up: the highest accepted rate lies this far above the baseline, and a walk of the same
# steps, each up or down by chance, would seldom get there.
DRIFT = 0.25
DRIFT_P = 0.05


def drift(run: LoggedRun) -> Reason | None:
    """Sign-flip test of the largest rise, with Levy's inequality: P(max of sums >= m) <= 2 P(last sum >= m)."""
    for count, (rate, group, _) in RATES.items():
        counts, size = run.accepted[count].astype(int).to_numpy(), run.size[count]
        most, end = counts.max(), counts[-1]
        if size == 0 or (most - counts[0]) / size < DRIFT:
            continue
        changes = np.diff(counts)
        p_value = min(1.0, 2 * _chance_of_sum(np.abs(changes), most - counts[0]))
        if p_value >= DRIFT_P:
            continue
        cycle = int(run.accepted["Cycle"].iloc[counts.argmax()])
        stays = (end - counts[0]) / size >= DRIFT
        return Reason(
            DO_NOT_USE if stays else LOOK_CLOSER,
            f"drift: {some(int((changes > 0).sum()), 'accepted rise')}, each within its tolerance, took {rate} from "
            f"{counts[0] / size:.2f} to {most / size:.2f} ({most} of {size} {group}, cycle {cycle}; p {p_value:.2g}), "
            f"and it ends at {end / size:.2f}",
            "do not rely on what was decided after it; run it again with --rule evidence or a lower learning rate",
        )
    return None


def _chance_of_sum(steps: np.ndarray, least: int) -> float:
    """The chance that steps of these lengths, each up or down by a coin, sum up to ``least`` or more."""
    chances = np.ones(1)  # of sums from -(len // 2) to len // 2
    for step in steps[steps > 0]:
        coin = np.zeros(2 * step + 1)
        coin[[0, -1]] = 0.5
        chances = np.convolve(chances, coin)
    return float(chances[len(chances) // 2 + least :].sum())


def lock_up(run: LoggedRun) -> Reason | None:
    """Cycles in which most batches were rejected, or most images flagged without a step."""
    rows, size = run.rows, run.options["batch_size"]
    # Batches that were verified together and kept count one by one; if they were rejected, they were looked through.
    kept_group = (rows["Phase"] == "group") & (rows["Ignored"] == 0)
    number = np.where(kept_group, np.ceil(rows["Images"] / size), 1)
    without_step = rows["PFP"].isna() & (rows["Phase"] != "revisit")
    kind = np.select([(rows["Phase"] == "batch") | kept_group, without_step], ["batch", "image"], "")
    rejected = number * (rows["Ignored"] == 1)
    counts = pd.DataFrame({"Cycle": rows["Cycle"], "kind": kind, "all": number, "rejected": rejected})[kind != ""]
    counts = counts.groupby(["Cycle", "kind"])[["rejected", "all"]].sum().astype(int)
    locked = [
        f"{rejected} of {some(every, what)} of cycle {int(cycle)} {was(rejected)} "
        + {"batch": "rejected", "image": "flagged without a step"}[what]
        for (cycle, what), rejected, every in counts.itertuples()
        if locks_up(rejected, every)
    ]
    if not locked:
        return None
    most = any(locks_up(*total) for _, *total in counts.groupby("kind").sum().itertuples())
    return Reason(
        DO_NOT_USE if most else LOOK_CLOSER,
        f"lock-up: {'; '.join(locked[:3])}{f'; and in {len(locked) - 3} more' if len(locked) > 3 else ''}",
        "what was flagged then says little about the images; run it again with a larger -error or test set, or a "
        "lower learning rate, unless most images deserve it",
    )


ONE_SIDED_P = 0.01  # of all groupings together (Bonferroni)
ONE_SIDED = {"Study": 0.2, "Group_bin": 0.1, "Sex": 0.1}  # difference of the shares: small centers, whose tolerance
# is smaller, lose more in good runs, too
LABELS = (("Group_bin", ("0", "HC"), ("1", "PD")), ("Sex", ("F", "women"), ("M", "men")))  # columns of images


def one_sided(run: LoggedRun) -> Reason | None:
    """Exact test (Fisher) of who was flagged, by class, sex and size of the center.

    A center that was flagged as a whole is one decision, not one for each of its images, and is left out.
    """
    images = run.images
    centers = images.groupby("Study")["Flagged"]
    number = centers.transform("size")
    not_as_a_whole = (number == 1) | ~centers.transform("all")
    images, number = images[not_as_a_whole], number[not_as_a_whole]
    batch = run.options["batch_size"]
    size = (f"centers of fewer than {batch} images", f"centers of {batch} images or more")
    groupings = [("Study", number < batch, *size)]
    for column, (one, first), (other, second) in LABELS:
        if column in images.columns:
            values = images[column].astype(str).str.removesuffix(".0")
            groupings.append((column, (values == one).where(values.isin([one, other])), first, second))
    found = []
    for column, is_first, first, second in groupings:
        known = is_first.notna()
        of_first, flagged = is_first[known].astype(bool), images["Flagged"][known]
        if of_first.nunique() < 2:
            continue
        table = [[int((flagged & of).sum()), int((~flagged & of).sum())] for of in (of_first, ~of_first)]
        told = zip(table, (first, second), strict=True)
        shares = " and ".join(f"{aside} of {some(aside + kept, 'image')} of {name}" for (aside, kept), name in told)
        if abs(flagged[of_first].mean() - flagged[~of_first].mean()) >= ONE_SIDED[column]:
            found.append((fisher_exact(table).pvalue * len(groupings), shares))
    p_value, shares = min(found, default=(1.0, ""))
    if p_value >= ONE_SIDED_P:
        return None
    return Reason(
        LOOK_CLOSER,
        f"one-sided: {shares} were flagged (p {p_value:.2g})",
        "look whether these images or the rule are at fault before you leave any out",
    )


MANY_WAIT = 0.05  # of all images


def waiting(run: LoggedRun) -> Reason | None:
    """Images that were flagged and never revisited."""
    number = int((run.images["Decision"] == "waiting").sum())
    if not number:
        return None
    return Reason(
        LOOK_CLOSER if number > MANY_WAIT * len(run.images) else REMARK,
        f"{some(number, 'image')} of {len(run.images)} still {'wait' if number > 1 else 'waits'} for the revisit",
        "nothing is decided there; look at what waits, or run more cycles (-cycles)",
    )


FEW_SUBJECTS = 2
MANY_ELIMINATIONS = 0.01  # of all images: more that rest on so few


def few_subjects(run: LoggedRun) -> Reason | None:
    """Eliminations that one or two misdiagnoses less, at the last flag or at the revisit, would have prevented."""
    eliminated = run.images.index[run.images["Eliminated"]]
    found = []
    for subject in eliminated:
        margins = [margin for row in run.decided_by(subject) if row is not None and (margin := _margin(row))]
        if margins and min(margins) <= FEW_SUBJECTS:
            found.append(subject)
    if not found:
        return None
    return Reason(
        LOOK_CLOSER if len(found) > MANY_ELIMINATIONS * len(run.images) else REMARK,
        f"{len(found)} of {some(len(eliminated), 'elimination')} {'rest' if len(found) > 1 else 'rests'} on "
        f"one or two test subjects ({_names(found)})",
        "look at these images before you leave them out",
    )


def _margin(row: pd.Series) -> int | None:
    """How many misdiagnoses fewer would not have exceeded the tolerance; None where another rule decided."""
    margins = []
    for count in RATES:
        if not row[f"P{count}"] > 0:
            continue
        size = row[count] / row[f"P{count}"]
        most = math.floor((row[f"Reference_P{count}"] + row["Tolerance"]) * size + 1e-6)
        margins.append(int(row[count]) - most)
    largest = max(margins, default=0)
    return largest if largest > 0 else None


RESOLUTION = 0.5  # of a misdiagnosis: the tolerance of one image


def small_test_set(run: LoggedRun) -> Reason | None:
    """Whether -error is less than the smallest rise that the test set can show."""
    smaller, error = min(run.size.values()), run.options.get("error")
    if run.options.get("rule", "published") != "published" or error is None or not 0 < smaller * error < 1:
        return None
    return Reason(
        LOOK_CLOSER if smaller * error < RESOLUTION else REMARK,
        f"the test set is small for -error {error:g}: with {smaller} subjects in a class, one more misdiagnosis is a "
        f"rise of {1 / smaller:.3f} and flags an image",
        f"use -error {math.ceil(100 / smaller) / 100:g} or more, or a larger test set",
    )


def another_scale(run: LoggedRun) -> Reason | None:
    """What the check of intensities said before training."""
    notices = [notice for session in run.record.get("sessions", []) for notice in session.get("notices", [])]
    # Without the parts that name files: of the machine's folders no reader needs to know.
    found = list(dict.fromkeys(notice.split(": ")[0] for notice in notices if "scale" in notice))
    if not found:
        return None
    return Reason(
        LOOK_CLOSER, f"intensities: {'; '.join(found)}", "look at them; no rule is needed to find what is out of range"
    )


def saturated(run: LoggedRun) -> Reason | None:
    """A run that may begin with a model that calls everybody HC, or PD."""
    if not run.options.get("allow_saturated"):
        return None
    first = run.accepted.iloc[0]
    rates = " and ".join(f"{rate} {first[f'P{count}']:.3f}" for count, (rate, *_) in RATES.items())
    return Reason(
        REMARK,
        f"the run was allowed to begin with a saturated model (--allow-saturated; {rates} at its start)",
        "if it was, verification saw no harm, and only what was decided without a step counts",
    )


def not_examined(run: LoggedRun) -> Reason | None:
    """A harm that moves no rate is not seen by any rule; a fact of the setting, not of the run."""
    unseen = {what: name for name, what in UNSEEN.items() if not run.options.get(name)}
    if not unseen:
        return None
    options = " and ".join(f"--{name.replace('_', '-')}" for name in unseen.values())
    return Reason(
        REMARK,
        f"nobody has examined {' or '.join(unseen)} ({options} off)",
        "what moves neither rate is not seen, and the verdict says nothing about it",
    )


def _names(subjects: list[str]) -> str:
    return ", ".join(subjects[:NAMED]) + (f" and {len(subjects) - NAMED} more" if len(subjects) > NAMED else "")


CHECKS: tuple[Callable[[LoggedRun], Reason | None], ...] = (
    finished,
    rates_at_the_end,
    one_answer,
    drift,
    lock_up,
    one_sided,
    waiting,
    few_subjects,
    small_test_set,
    another_scale,
    saturated,
    not_examined,
)
