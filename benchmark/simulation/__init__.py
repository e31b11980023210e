"""SGLang's real scheduler, radix cache and allocators with a stand-in for the model's forward.

A GPU's pool, hundreds of running requests and
thousands of waiting ones run on one CPU core, in virtual time that the roofline tells.
"""
