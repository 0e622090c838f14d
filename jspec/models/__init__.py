"""Models: the Transformer that is both target and draft, and what any other model must offer."""
