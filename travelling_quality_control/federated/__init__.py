"""Quality control across hospitals: the same loop, with NVIDIA FLARE as its messenger.

    center      what runs at a hospital: its subjects under pseudonyms, training, its list of flagged images
    server      what runs at the server: the loop of quality control, verification, the record of the run
    job         submits one job per cycle to a FLARE server
    job_keeper  keeps a job alive on the server when the process of one center ends
    simulate    all centers of a cohort on one machine, in FLARE's simulator
    prepare_site  prepares a FLARE site: what it lets in, where its CSV is, how it is started
    gate        what a site lets in, and the refusal to work where it would let more in
    trainer     the server's trainer: gradients come from the centers
    step        a training step in two halves
    settings    the configuration files of server and centers
    wire        how arrays travel in FLARE's messages

Needs ``requirements-federated.txt``; nothing else in this repository does.
"""
