"""What a server's pools hold, as its metrics tell: it must be nothing when the server is idle."""

import time

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server import Server

HELD = {
    "sglang:kv_used_tokens": "KV slots",
    "sglang:swa_used_tokens": "slots of sliding layers",
    "sglang:mamba_used_tokens": "recurrent states",
    "sglang:dynts_kv_tokens_held": "tokens of running requests",
    "sglang:dynts_host_copy_bytes": "bytes of host copies",
}
"""By metric: what of it is neither free nor could be evicted. A draft's K and V lie in the KV slots."""
CACHED = {"sglang:hicache_host_used_tokens": "prefixes in host memory"}
"""What a flush empties."""
SECONDS = 120
"""To wait until books are even: an idle server writes them twice a minute."""


def held(server: Server, books: dict[str, str]) -> dict[str, float]:
    """What each of these books holds, over all ranks; books that a server does not have are left out."""
    text = server.request("/metrics")
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    found: dict[str, float] = {}
    for one in samples:
        if one.name in books:
            found[books[one.name]] = found.get(books[one.name], 0) + abs(one.value)
    return found


def settled(server: Server, books: dict[str, str]) -> dict[str, float]:
    """What is held once nothing is, or after ``SECONDS``."""
    deadline = time.monotonic() + SECONDS
    while any((found := held(server, books)).values()) and time.monotonic() < deadline:
        time.sleep(2)
    return found


def close(server: Server) -> dict[str, float]:
    """Ask every book of an idle server, before and after its caches are emptied; what each held."""
    found = settled(server, HELD)
    server.assert_nothing_leaked()
    return found | settled(server, CACHED)
