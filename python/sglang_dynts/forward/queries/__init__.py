"""What the served model's queries are like: it reads a text at the start, or a file tells."""
