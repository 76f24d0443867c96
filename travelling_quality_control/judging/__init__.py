"""The verdict on a run of quality control, from its log and its record alone. The truth is not asked for.

logged_run    a run as its log and its record tell it: what was decided about every image
checks        what can be wrong with a run, a function each, its thresholds beside it
verdict       the worst of what they find, in words

The audit asks whether a log is what the method must have written; the verdict asks whether what it tells can be relied
upon.
"""

from logging import INFO, WARNING

import pandas as pd

from travelling.runs.controlled_run import ControlledRun
from travelling.runs.run import Run
from travelling_quality_control.judging.checks import Reason
from travelling_quality_control.judging.logged_run import LoggedRun, read_log
from travelling_quality_control.judging.verdict import Verdict, tried


def judge_at_end(run: Run, controlled: ControlledRun, images: pd.DataFrame) -> dict:
    """Judge a run that has come to its end, in its plain log and on the terminal; returns what its record says of it.

    ``images`` has the columns Subject and Study and, where they are known, Group_bin and Sex.
    """
    changed = controlled.changed()
    record = run.record | {"finished": True, "changed": changed}

    def verdict_on_the_run() -> Verdict:
        settings, extensions = controlled.control.settings, controlled.control.extensions
        log = read_log(run.files[0], extensions)
        people = images.set_index("Subject")
        return LoggedRun(record=record, settings=settings, extensions=extensions, table=log, images=people).verdict

    found = tried(verdict_on_the_run)
    verdict = Verdict((found,)) if isinstance(found, Reason) else found
    lines = verdict.lines()
    for line in lines:
        run.log.log(WARNING if verdict.level else INFO, "%s", line)
    return {"changed": changed, "verdict": verdict.word, "verdict_reasons": lines[1:]}
