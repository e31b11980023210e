"""Between two forwards: who is compacted, what is freed, who is admitted, what a retraction leaves."""
