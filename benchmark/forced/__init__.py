"""Given tokens read under every policy's windows: what `benchmark.likelihood` is made of."""
