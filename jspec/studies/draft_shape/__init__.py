"""Drafts of many shapes, trained alike, and what the planner predicts of them."""
