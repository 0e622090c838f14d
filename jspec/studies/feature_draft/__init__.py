"""Heads that read the target's features, with each of FSPAD's changes alone and with both."""
