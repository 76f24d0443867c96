"""Runs: what they are told, their folders, records, logs and checkpoints, and how they end."""
