"""Whether launches compile for TPU slices that are not there."""
