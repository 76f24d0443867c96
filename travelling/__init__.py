"""The travelling model: one network visits every center, learns there and moves on.

Shared code of the five scripts. The scripts read like the paper; the plumbing is here:

    errors           the one error that a user is meant to see
    command          what every command line shares: options, progress bar, log, error line, output files
    cohort           the CSV: subjects, centers, the travelling order, batches
    volumes          NIfTI images
    sfcn             the network
    model            everything that travels: train, predict, keep, restore, save, load
    backend          the only place that knows which Keras backend runs
    metrics          accuracy, sensitivity, specificity, F1, AUROC, rates of misdiagnosis
    protocol         "corrected" and "published", the two presets
    quality_control  verification, revisit, elimination
"""

__version__ = "0.1.0"
