"""A real server and who talks to it: started, awaited, asked, streamed from, ended.

Used by the demo, the benchmarks and the tests alike. The standard library alone, so that the demo can
begin before its environment is made.
"""
