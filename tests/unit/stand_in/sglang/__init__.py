"""Stands where SGLang stands, for what starts and asks servers: answers at once, computes nothing."""
