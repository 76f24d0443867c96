"""The evaluation of a study: its records, tables, figures and report. ``evaluate.py`` is its command line."""
