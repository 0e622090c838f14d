"""Drafts that are trained at some temperatures and served at others."""
