"""Training: losses, data as a function of the step, one step, and the loop around it."""
