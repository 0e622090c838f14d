"""Measurements: what runs, how it is timed, what it is compared with, and how it is reported."""
