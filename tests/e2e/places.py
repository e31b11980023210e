"""What a soak is let at: one server of the tests, its prefill side too, or two behind SGLang's router."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import free_port
from tests.e2e.models import TRUSTED, build_model, has_states
from tests.e2e.routers import ROUTERS, router
from tests.e2e.server import RETRACTING, STRICT, Asked, Server, WarmServer
from tests.e2e.servers import ATTENTION_RANKS, DECODE_SIDE, SERVERS, STATES, TRUSTING, Spec
from tests.e2e.two_sides import TwoSides, as_prefill
from tests.warm import Warm

ROUTER = "router"
FEATURES = {
    "ngram": "ngram",
    "standalone": "standalone",
    "eagle": "eagle",
    "eagle3": "eagle3",
    "nextn": "multi_token_head_latents",
    "hierarchical-cache": "hierarchical",
    "tokenizer-workers": "tokenizer_workers",
    "attention-ranks": "data_parallel_attention_retracting",
    "disaggregated": "decode_side",
    ROUTER: "retracting",
}
"""By feature: the shared server that has it."""
SMALL_POOL = ("--max-total-tokens", "1200", "--chunked-prefill-size", "32")
PAUSES = ("retract", "in_place", "abort")


@dataclass(frozen=True)
class Place:
    """Where requests go, and the servers behind it.

    ``door`` takes what clients send. An operator works at ``operated``, pauses them in ``pauses``, and
    reads the weights of ``model`` again where ``updates`` says so. ``servers`` are all, whose books are
    asked at the end. Where ``prompts_have_scores`` is not so, another server computes prompts.
    """

    door: Asked
    servers: Sequence[Server]
    operated: Sequence[Server]
    model: Path
    pauses: Sequence[str] = PAUSES
    updates: bool = True
    prompts_have_scores: bool = True

    def has_ended(self) -> bool:
        """Whether one of the servers has."""
        return any(server.process.poll() is not None for server in self.servers)


class Routed(Asked):
    """Servers behind SGLang's router, which passes on no ``custom_params`` of ``/generate``."""

    def __init__(self, client: Client, workers: Sequence[Server]) -> None:
        self.client, self.workers = client, workers

    def request(self, path: str, body: dict | None = None) -> Any:
        return self.client.call(path, None if body is None else _carried(body), timeout=300)

    def stream_of(self, body: dict) -> Iterator[dict]:
        return self.client.stream("/generate", _carried(body), timeout=300)

    def body(self, prompt: list[int], length: int, dynts: dict | None, extra: dict) -> dict:
        return self.workers[0].body(prompt, length, dynts, extra)


def _carried(body: dict) -> dict:
    """The same request, with its options where the router lets them through."""
    params = dict(body["sampling_params"])
    options = params.pop("custom_params", None)
    return body | {"sampling_params": params} | ({"session_params": options} if options else {})


def spec_of(feature: str | None, kind: str) -> Spec:
    """How the tests start a server with this feature, or of this kind of model if there is none."""
    if feature is not None:
        return SERVERS[FEATURES[feature]]
    return Spec(kind, STATES if has_states(kind) else TRUSTING if kind in TRUSTED else ())


@contextmanager
def opened(feature: str | None, kind: str, folder: Path, *, retracts: bool) -> Iterator[Place]:
    """Start the servers of a place and end them with the block.

    Args:
        feature: of ``FEATURES``, or None.
        kind: of the model, where there is no feature.
        folder: for models and logs.
        retracts: whether requests are retracted for no reason, now and then.
    """
    with ExitStack() as stack:
        start = _Start(stack, spec_of(feature, kind), folder, retracts)
        if feature == ROUTER:
            yield start.fleet()
        elif set(DECODE_SIDE) <= set(start.spec.flags):
            yield start.two_sides()
        else:
            server = start.server("server", start.flags, start.environment)
            yield start.place(server.wait_ready(), [server])


class _Start:
    """Starts the servers of a place."""

    def __init__(self, stack: ExitStack, spec: Spec, folder: Path, retracts: bool) -> None:
        self.stack, self.spec, self.folder = stack, spec, folder
        self.flags = [*spec.flags_of(self._model), *SMALL_POOL, "--enable-metrics"]
        if "--speculative-algorithm" not in spec.flags:  # mixed chunks are refused beside drafts
            self.flags.append("--enable-mixed-chunk")
        self.environment = spec.environment | (RETRACTING if retracts else {})
        self.warm = Warm(STRICT)
        stack.callback(self.warm.stop)

    def server(self, name: str, flags: Sequence[str], environment: dict[str, str]) -> Server:
        model, log = self._model(self.spec.model), self.folder / f"{name}.log"
        options: dict[str, Any] = {"command": self.spec.command, **environment}
        if self.spec.as_a_user:
            return self.stack.enter_context(Server(model, log, *flags, **options))
        return self.stack.enter_context(WarmServer(self.warm, model, log, *flags, **options))

    def place(self, door: Asked, servers: Sequence[Server]) -> Place:
        pauses, model = PAUSES, self._model(self.spec.model)
        if set(ATTENTION_RANKS) <= set(self.spec.flags):
            # SGLang 0.5.23 takes requests before orders (``request_receiver.py:200``): an abort of all
            # may reach one that came after it, once the pause was over.
            pauses = PAUSES[:2]
        updates = self.spec.draft is None  # SGLang reads a draft's weights from the same folder
        return Place(door, servers, servers, model, pauses, updates)

    def fleet(self) -> Place:
        workers = [self.server(name, self.flags, self.environment) for name in ("first", "second")]
        for worker in workers:
            worker.wait_ready()
        words = ["--policy", "round_robin", "--worker-urls", *(worker.url("") for worker in workers)]
        log = self.folder / "router.log"
        client = self.stack.enter_context(router(ROUTERS[0], words, len(workers), log))
        return self.place(Routed(client, workers), workers)

    def two_sides(self) -> Place:
        """Both sides, whose weights stay: SGLang 0.5.23 forgets an abort of a request that waits for an
        update, and one whose prompt was aborted elsewhere then waits for it until a timeout."""
        port = free_port()
        prefill = self.server("prefill", *as_prefill(self.flags, port))
        decode = self.server("decode", self.flags, self.environment)
        both = [prefill.wait_ready(), decode.wait_ready()]
        place = self.place(TwoSides(prefill, port, decode), both)
        return replace(
            place, operated=[decode], pauses=("in_place",), updates=False, prompts_have_scores=False
        )

    def _model(self, kind: str) -> Path:
        """The folder of a kind of model, which is written when first asked for."""
        path = self.folder / kind
        return path if path.exists() else build_model(kind, path)
