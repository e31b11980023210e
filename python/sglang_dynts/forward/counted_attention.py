"""Which requests' attention a forward counts: those whose policy asks for all of it."""

from sgl_dynts.policies import policies
from sglang_dynts.entry.options import policy_of_request
from sglang_dynts.forward.device_state import state_of


def count_attention(forward_batch, cls, batch, model_runner, **_kwargs) -> None:
    """AFTER ForwardBatch.init_new: name the requests whose attention this forward's layers count."""
    state = state_of(model_runner)
    if state is None or state.received is None or forward_batch.forward_mode.is_idle():
        return
    rows = {
        index: (req.kv.req_pool_idx, state.question_lens[req])
        for index, req in enumerate(batch.reqs)
        if policies()[policy_of_request(req.sampling_params)].needs_all_queries
    }
    state.received.begin(forward_batch, rows)
