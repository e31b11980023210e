"""Given tokens and what forces them through a server: what `benchmark.likelihood` reads."""
