"""Measurements: what is run, how it is timed, whom it is held against, and how it is shown."""
