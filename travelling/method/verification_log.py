"""The columns of the verification log. :class:`QualityControl` makes the rows."""

LOG_COLUMNS = (
    "Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored",  # as published
    "Phase", "Subjects", "Tolerance", "Reference_PFP", "Reference_PFN", "Eliminated",
)  # fmt: skip
SEPARATOR = ";"  # joins ids of subjects
