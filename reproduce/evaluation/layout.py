"""How a study is laid out: the names of its experiments, kinds of harm and settings, and of their folders.

Imports nothing that is slow, so that ``--help`` answers at once.
"""

from travelling.beyond.recommended import RECOMMENDED as RECOMMENDED_OPTIONS
from travelling.images import harm

CLEAN, DIRTY, CONTROLLED, HARM = "clean", "dirty_baseline", "quality_control", "harmful"
# "clean" is quality control on the clean images: every image that it flags is a false alarm.
EXPERIMENTS = ("whole_centers", "single", CLEAN)
PAPER_EXPERIMENTS = EXPERIMENTS[:2]
KINDS, PAPER_KINDS = tuple(harm.KINDS), harm.PUBLISHED
PUBLISHED, RECOMMENDED, JUDGING = "published", "recommended", "recommended_labels"
# Settings of quality control: the options that each adds to the published method.
SETTINGS: dict[str, dict] = {
    PUBLISHED: {},
    "evidence": {"rule": "evidence"},
    "screen": {"screen": True},
    "evidence_screen": {"rule": "evidence", "screen": True},
    "evidence_screen_labels": {"rule": "evidence", "screen": True, "label_screen": True},
    RECOMMENDED: RECOMMENDED_OPTIONS,
    JUDGING: RECOMMENDED_OPTIONS | {"label_screen": True},
}
# Sizes of centers, from and to: one image cannot be diluted, up to five (the paper's batch size) are one batch.
CENTER_SIZES = {"1 image": (1, 1), "2 to 5 images": (2, 5), "more than 5 images": (6, float("inf"))}


def condition_name(experiment: str, kind: str) -> str:
    """The folder of an experiment with a kind of harm: ``whole_centers_noise``; that of clean images has no kind."""
    return "_".join(part for part in (experiment, kind) if part)


def conditions_of(experiments: tuple, kinds: tuple) -> list:
    """Every (experiment, kind) of a study; clean images have the kind "" alone."""
    return [(experiment, kind) for experiment in experiments for kind in (("",) if experiment == CLEAN else kinds)]


def control_folder(setting: str) -> str:
    """The folder of a setting's quality control, in that of its experiment; it is its model's name, too."""
    return CONTROLLED if setting == PUBLISHED else f"{CONTROLLED}_{setting}"


CONTROL_FOLDERS = {control_folder(setting): setting for setting in SETTINGS}
