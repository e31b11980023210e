"""A page for people: ask a running server, and watch what becomes of every token."""
