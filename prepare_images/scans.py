"""The scans of a BIDS folder or of a CSV: found, checked and described before work begins."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from prepare_images.bids import WORDS, participants_file, read_bids
from prepare_images.one_scan import MASKS, STRIPPED
from prepare_images.options import TEMPLATE, Preparation
from prepare_images.template import NAME
from travelling.console import progress_bar
from travelling.errors import InputError
from travelling.images.cohort import RELATED, UNKNOWN, check_cohort, copies, find_image, persons, read_cohort
from travelling.images.nifti import read_header
from travelling.images.ratings import REDO
from travelling.words import some


def find_scans(arguments: Preparation) -> pd.DataFrame:
    """A row per scan: the columns of prepared.csv, Mask (a file, or one of MASKS), Target and Reason.

    Raises InputError for all that prepared.csv would be refused for.
    """
    if arguments.csv:
        source = arguments.csv.absolute()
        scans = read_cohort(source).assign(Reason="").reset_index(drop=True)
        scans[list(WORDS)] = scans[["Group_bin", "Sex", "Age"]].astype(str).replace("nan", "")
    else:
        source = participants_file(arguments.bids).absolute()
        columns = {what: getattr(arguments, f"{what}_column") for what in ("label", "center", "sex", "age")}
        scans = read_bids(arguments.bids, columns, arguments.pd, arguments.hc, arguments.center, arguments.t1w)
        if arguments.participant_label:
            wanted = {f"sub-{label.removeprefix('sub-')}" for label in arguments.participant_label}
            if unknown := wanted - set(scans["Participant"]):
                raise InputError(f"{source}: has no {min(unknown)} (--participant-label)")
            scans = scans[scans["Participant"].isin(wanted)]
        if (usable := scans["Reason"] == "").any():
            checked = check_cohort(source, scans[usable])
            related = [name for name in RELATED if name in scans]
            scans.loc[usable, related] = checked[related].to_numpy()
        scans = scans.reset_index(drop=True)
    if arguments.stripped:
        scans["Mask"] = STRIPPED
    else:
        scans["Mask"], missing = masks(scans, source.parent, arguments.mask_pattern, arguments.brain_extraction)
        scans["Reason"] = scans["Reason"].where(scans["Reason"] != "", missing)
    found = list(scans[scans["Reason"] == ""].iterrows())
    for number, row in progress_bar(found, desc="reading headers", unit="scan", delay=5):
        try:
            read_header(row["Path"])
        except InputError as error:
            scans.loc[number, "Reason"] = str(error)
    scans["Target"] = targets(scans)
    return scans


def masks(scans: pd.DataFrame, base: Path, pattern: str | None, otherwise: str) -> tuple[list[str], list[str]]:
    """Each scan's mask (a file, or ``otherwise``), and why it cannot be used; raises InputError where none is there."""
    found, reasons = [], []
    for row in scans.to_dict("records"):
        name = mask_file(row, pattern) if pattern is not None else row.get("Mask", "")
        if name.lower() in UNKNOWN:
            found.append(otherwise)
            reasons.append("")
            continue
        file, reason = find_image(base, name)
        found.append(file)
        reasons.append(f"{file}: {reason}" if reason else "")
    own = [reason for mask, reason in zip(found, reasons, strict=True) if mask != otherwise]
    if own and all(own):
        raise InputError(f"{own[0]}: so are all {len(own)} masks ({'--mask-pattern' if pattern else 'column Mask'})")
    return found, reasons


def mask_file(row: dict, pattern: str) -> str:
    """The mask of a scan by ``--mask-pattern``."""
    scan = Path(row["Path"])
    subject, _, session = row["Subject"].partition("_ses-")
    name = scan.name.removesuffix(".gz").removesuffix(".nii")
    parts = {"subject": row["Subject"], "session": "", "name": name, "folder": scan.parent}
    if row.get("Participant") == subject and session:  # of a BIDS folder
        parts |= {"subject": subject, "session": f"ses-{session}"}
    return pattern.format(**parts)


def targets(scans: pd.DataFrame) -> list[str]:
    """Where the prepared images lie, relative to the output folder: names as BIDS has them, letters and digits."""
    found, seen = [], dict[tuple, int]()
    for subject in scans["Subject"]:
        person, _, session = subject.removeprefix("sub-").partition("_ses-")
        labels = ["".join(filter(str.isalnum, text)) or "x" for text in (person, session) if text]
        key = tuple(map(str.casefold, labels))  # some file systems do not tell A from a
        seen[key] = seen.get(key, 0) + 1
        labels[0] += f"x{seen[key]}" if seen[key] > 1 else ""
        parts = [f"{entity}-{label}" for entity, label in zip(("sub", "ses"), labels, strict=False)]
        found.append("/".join(["images", *parts, "anat", f"{'_'.join(parts)}_space-{NAME}_desc-brain_T1w.nii.gz"]))
    return found


def notices(scans: pd.DataFrame) -> list[str]:
    """What to say before work begins, a list of lines: coarse masks, one class, images that are there twice."""
    coarse = int((scans["Mask"] == TEMPLATE).sum())
    lines = [
        f"{coarse} of {len(scans)} scans have no brain mask: the template's is carried over by the registration, "
        "which is coarse: it cuts off some brain and leaves some skull (--mask-pattern, --brain-extraction, --stripped)"
    ] * bool(coarse)
    usable = scans[scans["Reason"] == ""].set_index("Subject", drop=False)
    classes = set(usable["Group_bin"].astype(str))
    if len(classes) == 1:
        lines.append(f"nobody is {'HC' if classes == {'1'} else 'PD'}: a test set needs both")
    return lines + copies(contents(usable["Path"]), usable)


def contents(files: pd.Series) -> dict[str, dict]:
    """What tells each file from the others: its size and, where several have it, its checksum too, by subject."""
    sizes = files.map(os.path.getsize)
    found = {}
    for subject, path in zip(files.index.astype(str), files, strict=True):
        found[subject] = {"sha256": str(sizes[subject])}
        if (sizes == sizes[subject]).sum() > 1:
            with open(path, "rb") as file:
                found[subject]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def describe_scans(scans: pd.DataFrame) -> list[str]:
    """What is in a folder or table, a list of lines: people by class, by which words; what was read and what not."""
    people = scans.assign(Person=persons(scans), Group_bin=scans["Group_bin"].astype(str))
    centers = people.loc[people["Study"] != "", "Study"].value_counts()
    persons_found = people["Person"].nunique()
    lines = [
        f"found: {persons_found} {'person' if persons_found == 1 else 'people'}, {some(len(people), 'scan')}, "
        f"{some(len(centers), 'center')} ({listed(f'{name}: {number}' for name, number in centers.items())})"
    ]
    for what, column, word, classes in (
        ("diagnosis", "Group_bin", "Label_word", {"1": "PD", "0": "HC", "": "neither"}),
        ("sex", "Sex", "Sex_word", {"M": "M", "F": "F", "": "not read"}),
    ):
        each = people.drop_duplicates(["Person", column, word])
        parts = []
        for value, name in classes.items():
            those = each[each[column] == value]
            said = listed(sorted(map(repr, those[word].unique())))
            parts.append(f"{those['Person'].nunique()} {name}{f' ({said})' if said else ''}")
        lines.append(f"people by {what}: {', '.join(parts)}")
    ages = people["Age"].astype(str).replace("nan", "")
    years = ages[ages != ""].astype(float)
    told = ~people["Age_word"].str.lower().isin(UNKNOWN)
    unread = people.loc[told & (ages == ""), "Age_word"]
    span = f" ({years.min():g} to {years.max():g} years)" if len(years) else ""
    values = f" ({listed(map(repr, unread.unique()))})" if len(unread) else ""
    lines.append(f"ages of scans: {len(years)} read{span}, {len(unread)} not read{values}, {(~told).sum()} not told")
    kinds = mask_kinds(scans).value_counts()
    lines.append(f"masks: {listed(f'{number} {name}' for name, number in kinds.items())}")
    failed = scans[scans["Reason"] != ""]
    lines += [f"failed: {row.Subject}: {row.Reason}" for row in failed.itertuples()]
    return lines


def listed(words: Iterable[str]) -> str:
    """The first ten of some words, and how many more there are."""
    words = list(words)
    return ", ".join([*words[:10], *([f"and {len(words) - 10} more"] if len(words) > 10 else [])])


def mask_kinds(scans: pd.DataFrame) -> pd.Series:
    """Which mask each scan has: one of MASKS, or "own"."""
    return scans["Mask"].where(scans["Mask"].isin(MASKS), "own")


def rated(scans: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """``Rating`` and ``Note`` of scans, of what was said by subject; nothing yet of one to redo with its own mask."""
    found = ratings.reindex(scans["Subject"], fill_value="").set_axis(["Rating", "Note"], axis=1).set_axis(scans.index)
    redone = (found["Rating"] == REDO) & (mask_kinds(scans) == "own")
    return found.assign(Rating=found["Rating"].mask(redone, ""))
