"""Evaluators: run(model) yields (name, value)."""
