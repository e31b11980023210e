"""The device that a command is told to compute on."""

from argparse import ArgumentTypeError


def usable_device(name: str) -> str:
    """Return the name of a device that is there, for ``type=`` of an argument.

    Raises:
        ArgumentTypeError: torch cannot use it here; says why.
    """
    import torch  # not above: --help need not wait for it

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # without CUDA torch asserts
        why = str(error).splitlines()[0]
        raise ArgumentTypeError(f"torch cannot use {name!r} here ({why}); take cpu") from error
    return name
