"""Inside a forward: scores, positions, and what a policy may read."""
