"""Losses over streams; none owns a parameter."""
