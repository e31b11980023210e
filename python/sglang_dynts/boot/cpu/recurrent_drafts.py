"""Layers with a recurrent state on the host CPU, where drafts are verified.

Each drafted token goes on from the state of the one that it follows. The state after every token is kept,
and the request goes on from that of the last one that was accepted.
"""

import torch
from sglang.srt.plugins.hook_registry import HookType

from sglang_dynts import seams
from sglang_dynts.boot.cpu.recurrent import activated, advance, convolve_newest, gate, unit
from sglang_dynts.seams import Seam


def parents_of(next_token: torch.Tensor, next_sibling: torch.Tensor) -> list[int]:
    """Return which node of a tree each one follows, -1 for the first.

    Args:
        next_token: [nodes], each node's first child, -1 for none.
        next_sibling: [nodes], the next child of the same parent, -1 for none.
    """
    children, siblings = next_token.tolist(), next_sibling.tolist()
    parents = [-1] * len(children)
    for node, child in enumerate(children):
        while child != -1:
            parents[child], child = node, siblings[child]
    return parents


def convolve_drafts(x, conv_state, weight, bias=None, activation=None, **rest) -> torch.Tensor:
    """REPLACE causal_conv1d_triton.causal_conv1d_update: of one token of each request, or of its drafts.

    Args:
        x: [requests, channels], or [requests, channels, nodes].
        conv_state: [slots, channels, width - 1]; drafts leave it as it is.
        weight: [channels, width].
        bias: [channels] or None.
        activation: "silu", "swish" or None.
        rest: ``conv_state_indices``, [requests] slots; of drafts ``intermediate_conv_window`` [rows,
            nodes, channels, width - 1], what was seen last after each, ``intermediate_state_indices``,
            [requests] rows; of trees ``retrieve_next_token`` and ``retrieve_next_sibling`` [requests,
            nodes], and ``retrieve_parent_token``, alike, which is written.

    Returns:
        As ``x``.
    """
    if x.dim() == 2:
        return convolve_newest(x, conv_state, weight, bias, activation, **rest)
    kept, rows = rest["intermediate_conv_window"], rest["intermediate_state_indices"].tolist()
    outputs = torch.empty_like(x)
    for index, slot in enumerate(rest["conv_state_indices"].tolist()):
        before = conv_state[slot].to(x.dtype)
        for node, parent in enumerate(_parents(index, x.shape[2], **rest)):
            last = before if parent < 0 else kept[rows[index], parent].to(x.dtype)
            whole = torch.cat([last, x[index, :, node, None]], dim=1)
            kept[rows[index], node] = whole[:, 1:].to(kept.dtype)
            found = (whole * weight).sum(1)
            outputs[index, :, node] = found if bias is None else found + bias
    return activated(outputs, activation)


def _parents(
    index: int,
    num: int,
    retrieve_next_token=None,
    retrieve_next_sibling=None,
    retrieve_parent_token=None,
    **_rest,
) -> list[int]:
    """Of a request's nodes, whom each follows: the one before it where there is no tree."""
    if retrieve_next_token is None or retrieve_next_sibling is None or retrieve_parent_token is None:
        return list(range(-1, num - 1))
    parents = parents_of(retrieve_next_token[index], retrieve_next_sibling[index])
    retrieve_parent_token[index] = torch.tensor(parents).clamp(min=0)
    return parents


def delta_rule_drafts(
    *,
    A_log,  # noqa: N803
    a,
    dt_bias,
    q,
    k,
    v,
    b,
    initial_state_source,
    initial_state_indices,
    intermediate_states_buffer,
    intermediate_state_indices,
    cache_steps,
    retrieve_parent_token,
    **_rest,
) -> torch.Tensor:
    """REPLACE fused_sigmoid_gating_recurrent.fused_sigmoid_gating_delta_rule_update: drafts of requests.

    Args:
        A_log: [h], as of :func:`~sglang_dynts.boot.cpu.recurrent.gate`.
        a: [num_tokens, h].
        dt_bias: [h].
        q: [1, num_tokens, key_heads, K], requests one after another, all of as many tokens.
        k: [1, num_tokens, key_heads, K].
        v: [1, num_tokens, h, V].
        b: [num_tokens, h].
        initial_state_source: [slots, h, V, K]; drafts leave it as it is.
        initial_state_indices: [requests], their slots.
        intermediate_states_buffer: [rows, nodes, h, V, K], the state after each.
        intermediate_state_indices: [requests], their rows.
        cache_steps: nodes of each request.
        retrieve_parent_token: [requests, nodes], whom each follows; None: the one before it.

    Returns:
        [1, num_tokens, h, V].
    """
    query, key = (unit(some[0], v.shape[2]) for some in (q, k))
    query = query * q.shape[-1] ** -0.5
    stays, writes = (some[0] for some in gate(A_log, a, b, dt_bias))
    value, outputs, kept = v[0].float(), torch.empty_like(v), intermediate_states_buffer
    slots, rows = initial_state_indices.tolist(), intermediate_state_indices.tolist()
    for index in range(v.shape[1] // cache_steps):
        before, parents = initial_state_source[slots[index]].float(), list(range(-1, cache_steps - 1))
        if retrieve_parent_token is not None:
            parents = retrieve_parent_token[index].tolist()
        for node, parent in enumerate(parents):
            at, state = index * cache_steps + node, before
            if node:
                state = kept[rows[index], parent].float()
            state, found = advance(state, query[at], key[at], value[at], stays[at], writes[at])
            kept[rows[index], node], outputs[0, at] = state.to(kept.dtype), found
    return outputs


def go_on_from_accepted(
    mamba_caches, slots, steps, track_slots=None, track_steps=None, src_indices_raw=None
) -> None:
    """REPLACE mamba_state_scatter_triton.scatter_mamba_states_after_mtp_verify: of all layers.

    Args:
        mamba_caches: SGLang's states of each kind, of requests [layers, slots, ...], and after each draft
            [layers, requests, nodes, ...].
        slots: [requests], where each goes on.
        steps: [requests], the last node that was accepted, less than 0 for none.
        track_slots: [requests], where a state is kept for other requests; None for none.
        track_steps: [requests], after which node, less than 0 for none.
        src_indices_raw: not given without pipeline stages.
    """
    assert src_indices_raw is None, "there are no pipeline stages"
    pairs = [(mamba_caches.temporal, mamba_caches.intermediate_ssm)]
    pairs += zip(mamba_caches.conv, mamba_caches.intermediate_conv_window, strict=True)
    for states, after_drafts in pairs:
        _take_over(states, after_drafts, slots, steps)
        if track_slots is not None:
            _take_over(states, after_drafts, track_slots, track_steps)


def _take_over(states, after_drafts, slots, steps) -> None:
    chosen = (steps >= 0).nonzero()[:, 0]
    states[:, slots[chosen].long()] = after_drafts[:, chosen, steps[chosen].long()].to(states.dtype)


def scheduler_seams() -> list[Seam]:
    """Return what a scheduler on the host CPU needs in place for drafts beside a recurrent state."""
    replaced = {
        seams.CONVOLVE_NEWEST: convolve_drafts,
        seams.DELTA_RULE_DRAFTS: delta_rule_drafts,
        seams.GO_ON_FROM_ACCEPTED: go_on_from_accepted,
    }
    return [Seam(target, hook, HookType.REPLACE) for target, hook in replaced.items()]
