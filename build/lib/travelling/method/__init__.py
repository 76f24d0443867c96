"""The published method, complete: order, verification, rule, memory and log of quality control. No Keras, no files."""
