"""Drafts and drafters: what proposes candidates, along which tree, and when it stops."""
