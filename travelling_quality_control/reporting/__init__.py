"""Reports: of one run of quality control (report.py), and what that of a whole study (reproduce/) shares with it.

drawing   figures: their style, rates along a run
slices    flagged images beside the test set, and what is to be seen in them
agreement how a person's ratings of images agree with the decisions
pages     HTML pages: numbers in words, and the frame of every page
one_run   the page of one run, and its lists for a lab's own use
"""
