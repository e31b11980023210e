"""What the outside sees: a request's numbers, the log, metrics and health."""
