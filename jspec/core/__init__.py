"""Trees, sampling, caches, attention and candidates: what everything else is made of."""
