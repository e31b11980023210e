"""Names that several modules share."""

BACKEND_NAME = "dynts"
"""Of the attention backend, the radix cache backend, the config namespace and the request field."""

ENABLE_FLAG = "--enable-dynts"

FLAG_PREFIX = "--dynts-"
"""Of our own flags of the server."""

HTTP_SERVER = "sglang.srt.entrypoints.http_server"
"""SGLang's module of HTTP endpoints; imported only where they are served."""

BASE_BACKENDS = {"cuda": "flashinfer", "cpu": "torch_native"}
"""The attention kernels that ``--attention-backend dynts`` means, by device type."""

SUPPORTED_KERNELS = ("flashinfer", "fa3", "triton", "torch_native")
"""Kernels that read ``row[:seq_len]`` at page size 1, so that they serve a compacted row unchanged."""

DRAFTS = ("NGRAM", "STANDALONE", "EAGLE", "EAGLE3")
"""Ways of speculative decoding that are served, by the names that SGLang resolves them to."""

SOURCE = "sgl-dynts"
"""Who SGLang notes as the author of a resolved argument."""
