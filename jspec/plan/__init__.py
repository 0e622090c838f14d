"""What to guess, before it is guessed: from what a target accepts, and what rounds cost."""
