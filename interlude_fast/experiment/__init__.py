"""A run and its artifacts: run directory, loggers, environment, result files."""
