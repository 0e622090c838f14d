"""Drafters: the policies that turn a draft, or no model at all, into candidates."""
