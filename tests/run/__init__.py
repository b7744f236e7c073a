"""The run engine: checkpoints, resuming, loggers, ranks."""
