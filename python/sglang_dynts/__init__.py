"""SGLang's side of DynTS: a plug-in for SGLang 0.5.23.

SGLang finds it through its entry points. Importing this package imports nothing of SGLang: the
platform is looked up while SGLang itself is still being imported.
"""


def register() -> None:
    """Entry point ``sglang.srt.plugins``: put our seams in place, called once in every process.

    Nothing changes for a server that does not ask for DynTS.
    """
    from sglang_dynts import plugin  # not above: SGLang reads this file while it is being imported

    plugin.register()
