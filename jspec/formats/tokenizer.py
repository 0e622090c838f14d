"""Tokenizer files of a model folder."""
