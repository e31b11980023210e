"""Before anything is loaded: flags, what is refused, which kernels, where the predictor lies."""
