"""The travelling model: one network visits every center, learns there and moves on.

Shared code of the five scripts. The scripts read like the paper; the plumbing is here:

    errors             what goes wrong, and is told in one line
    command            what every command line shares: error line, exit status, kinds of values
    options            what a run can be told: every option once, for command lines, files and records
    words              numbers in sentences
    console            the terminal: progress bar, log lines above it
    stopping           signals, and what a run lets go of at its end
    run                a run: its folder, log, models and checkpoints
    record             run.json, what was run on what
    model_files        names of model files, their cycles and their records
    files              files that are whole or not there
    checkpoint         where a run stands
    cohort             the CSV: subjects, centers, the travelling order, batches
    nifti              files of images: reading, checking, writing
    volumes            the images of a run: each decoded once, all in one space
    cache              decoded images in memory and in memory-mapped files
    sfcn               the network
    inference_network  the same, as evaluation and the screen need it
    model              everything that travels: train, predict, keep, restore, save, load
    backend            the only place that knows which Keras backend runs
    metrics            accuracy, sensitivity, specificity, F1, AUROC, rates of misdiagnosis
    protocol           "corrected" and "published", the two presets
    trainer            brings model and images together
    travel             travelling without quality control
    quality_control    what quality control remembers; its method is in enc_PD_quality_control.py
    verification_log   its log: rows and file
    rules              when a step is harmful
    screen             which images look like nothing the model has learned of
    looks              what the screen measures of an image, and how strange that is
    label_screen       which centers have labels that contradict the model
    controlled_run     what a run of quality control keeps on disk
    harm               kinds of harmful images
    template           MNI space and the template in it
    registration       from a raw scan to a prepared image
    bids               raw scans in a BIDS folder
"""

__version__ = "0.2.0"
