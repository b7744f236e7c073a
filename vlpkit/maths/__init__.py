"""Pure functions: no modules, no ranks, no configuration."""
