"""The travelling model: one network visits every center, learns there and moves on.

Shared code of the five scripts, in rooms. Each imports only from those above it (tests/test_borders.py); what a module
is for stands at its beginning:

    *.py       the ground: errors, options, words, the terminal, files
    method/    the published method; its loop of quality control is in enc_PD_quality_control.py
    network/   the network, and all that travels
    images/    the CSVs, the images, and what brings both together with the network
    beyond/    extensions, found by their names; a run that uses none imports none
    runs/      what a script is told, and how it runs, stops, goes on and ends
"""

__version__ = "0.3.0"
