"""Tests of sgl_dynts and of its SGLang side."""
