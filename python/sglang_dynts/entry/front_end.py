"""The HTTP server that this process serves requests with, where it has one."""

import sys
from typing import Any

from starlette.middleware import Middleware

from sglang_dynts.boot.configuration import is_enabled
from sglang_dynts.names import HTTP_SERVER


def application() -> Any:
    """SGLang's application where it serves DynTS, else None: an engine in a program has none."""
    server = sys.modules.get(HTTP_SERVER)
    return server.app if server is not None and is_enabled() else None


def tell_no_images(_result, manager, *_args, **_kwargs) -> None:
    """AFTER TokenizerManager.__init__: say that images are not understood, for they are refused here.

    SGLang asks that itself: it would warm a server of such a model up with an image, and end it when that
    is refused.
    """
    if is_enabled():
        manager.model_config.is_image_understandable_model = False


def watch(watcher: type, **options: Any) -> None:
    """Put a watcher of requests behind all others, and so behind the check of the API key.

    A tokenizer worker is told what to serve while its application starts, when that has put its watchers
    together already; so they are put together anew.
    """
    app = application()
    if app is None:
        return
    app.user_middleware.append(Middleware(watcher, **options))
    if app.middleware_stack is not None:
        app.middleware_stack = app.build_middleware_stack()
