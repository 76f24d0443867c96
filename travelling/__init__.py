"""The travelling model: one network visits every center, learns there and moves on.

Shared code of the five scripts, in rooms. Each imports only from those above it (tests/test_borders.py):

    errors               what goes wrong, and is reported in one line
    option               what an option is: command line, file, record
    words                numbers in sentences
    console              the terminal: progress bar, log lines above it
    files                files that are whole or not there

    method/              the published method; its loop of quality control is in enc_PD_quality_control.py
      settings           its options
      protocol           "corrected" and "published", the two presets
      order              centers in a cycle, batches of a center
      metrics            accuracy, sensitivity, specificity, F1, AUROC, rates of misdiagnosis
      rule               when a training step is harmful
      trainer            what the loops ask of a trainer, and of the files of a run
      travel             travelling without quality control
      quality_control    what quality control remembers
      verification_log   the rows of its log
      extension          hooks for what goes beyond it
      auditor            hooks of an extension's audit

    network/
      sfcn               the network
      inference_network  the same, as evaluation needs it
      model              everything that travels: train, predict, keep, restore, save, load
      model_files        names of model files, their cycles and their records
      backend            the only place that knows which Keras backend runs

    images/
      cohort             the CSV: subjects and centers
      nifti              files of images: reading, checking, writing
      volumes            the images of a run: each decoded once, all in one space
      cache              decoded images in memory and in memory-mapped files
      local_trainer      brings images and network together, on this machine
      harm               kinds of harmful images

    beyond/              extensions, found by their names; a run that uses none imports none
      evidence           a rule that asks for more than chance
      groups             batches that are verified together
      screen/            images that look like nothing the model has learned of
      screen_labels      centers whose labels contradict the model
      recommended        one word for the options that docs/settings.md recommends

    runs/
      options            what each script can be told
      extensible         options that may ask for extensions
      command            how every script ends: error line, exit status
      stopping           signals, and what a run lets go of at its end
      run                a run: its folder, log, models and checkpoints
      record             run.json, what was run on what
      checkpoint         where a run stands
      log_file           the file of the verification log
      controlled_run     what a run of quality control keeps on disk
      plain_run          what a run without it keeps on disk
"""

__version__ = "0.3.0"
