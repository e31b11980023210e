"""The host CPU, in torch: attention and kernels that SGLang has for GPUs alone."""
