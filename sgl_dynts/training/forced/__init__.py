"""Given tokens read under every policy's windows, and what that costs in likelihood."""
