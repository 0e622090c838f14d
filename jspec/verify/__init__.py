"""Verification rules: which of the candidates the target keeps, and the token it adds."""
