"""Everything random or derived, made once a step."""
