"""Training: distillation of drafts, pretraining of language models, and stop networks."""
