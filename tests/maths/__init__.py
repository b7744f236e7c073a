"""The pure functions against slow loops, numbers computed by hand, and limits."""
