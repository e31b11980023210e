"""Benchmarks on a GPU: stock SGLang and DynTS, each a real server, in one command."""
