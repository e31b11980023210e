"""Layers with a recurrent state on the host CPU: SGLang has their kernels for GPUs alone.

The layers are those of Qwen3-Next and Qwen3.5: a short causal convolution, then the gated delta rule of
Yang, Kautz and Hatamizadeh (2024), "Gated Delta Networks", equation 10, then a gated norm. Each function
here stands in for one kernel and takes the same arguments; those that only a kernel needs are left out.
``h`` are value heads, and a key head serves several of them that follow each other.
"""

from unittest import mock

import torch
from sglang.srt.plugins.hook_registry import HookType
from torch.nn import functional

from sglang_dynts import seams
from sglang_dynts.seams import Seam

CHUNK = 64
"""Tokens after which SGLang may keep the state of a prefill for other requests: ``mamba_chunk_size``."""
LEAST_NORM = 1e-6


def convolve(
    x, weight, bias, conv_states, cache_indices, has_initial_state, seq_lens_cpu, activation, **_rest
) -> torch.Tensor:
    """REPLACE causal_conv1d_triton.causal_conv1d_fn: each channel's last tokens of a prefill, weighed.

    Args:
        x: [channels, num_tokens], requests one after another.
        weight: [channels, width].
        bias: [channels] or None.
        conv_states: [slots, channels, width - 1], what came before; becomes what came last.
        cache_indices: [requests], their slots.
        has_initial_state: [requests] bool, whether anything came before.
        seq_lens_cpu: new tokens of each request.
        activation: "silu", "swish" or None.

    Returns:
        [channels, num_tokens].
    """
    outputs = []
    for index, part in enumerate(x.split([int(length) for length in seq_lens_cpu], dim=1)):
        slot = int(cache_indices[index])
        before = conv_states[slot].to(x.dtype) * has_initial_state[index]
        whole = torch.cat([before, part], dim=1)
        outputs.append(functional.conv1d(whole[None], weight[:, None], bias, groups=len(weight))[0])
        conv_states[slot] = whole[:, whole.shape[1] - conv_states.shape[2] :].to(conv_states.dtype)
    return activated(torch.cat(outputs, dim=1), activation)


def convolve_newest(
    x, conv_state, weight, bias=None, activation=None, conv_state_indices=None, **_rest
) -> torch.Tensor:
    """Convolve one token of each request, as :func:`convolve` does.

    Args:
        x: [requests, channels].
        conv_state: [slots, channels, width - 1], shifted by a token.
        weight: [channels, width].
        bias: [channels] or None.
        activation: "silu", "swish" or None.
        conv_state_indices: [requests], their slots.

    Returns:
        [requests, channels].
    """
    assert conv_state_indices is not None, "requests have slots"
    slots = conv_state_indices.long()
    whole = torch.cat([conv_state[slots].to(x.dtype), x[:, :, None]], dim=2)
    conv_state[slots] = whole[:, :, 1:].to(conv_state.dtype)
    found = (whole * weight).sum(2)
    return activated(found if bias is None else found + bias, activation)


def gate(A_log, a, b, dt_bias, *_rest) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803
    """REPLACE fused_gdn_gating.fused_gdn_gating: logarithm of what stays of a state, and what is written.

    Args:
        A_log: [h].
        a: [num_tokens, h].
        b: [num_tokens, h].
        dt_bias: [h].

    Returns:
        Two of [1, num_tokens, h] float32.
    """
    stays = -A_log.float().exp() * functional.softplus(a.float() + dt_bias)
    return stays[None], b.float().sigmoid()[None]


def delta_rule(
    q, k, v, g, beta, *, initial_state, initial_state_indices, cu_seqlens, **_rest
) -> tuple[torch.Tensor, None, torch.Tensor]:
    """REPLACE chunk.chunk_gated_delta_rule: a prefill's tokens, one after another.

    Args:
        q: [1, num_tokens, key_heads, K].
        k: [1, num_tokens, key_heads, K].
        v: [1, num_tokens, h, V].
        g: [1, num_tokens, h], logarithm of what stays.
        beta: [1, num_tokens, h], how much is written.
        initial_state: [slots, h, V, K], advanced in place.
        initial_state_indices: [requests], their slots.
        cu_seqlens: [requests + 1], where each begins, and the end.

    Returns:
        [1, num_tokens, h, V]; None; the states before every chunk of each request [1, chunks, h, V, K].
    """
    query, key = (unit(some[0], v.shape[2]) for some in (q, k))
    query = query * q.shape[-1] ** -0.5
    value, stays, writes = v[0].float(), g[0].float(), beta[0].float()
    outputs, chunks = torch.empty_like(v), []
    starts = cu_seqlens.tolist()
    for slot, start, end in zip(initial_state_indices.tolist(), starts[:-1], starts[1:], strict=True):
        state = initial_state[slot].to(torch.float32, copy=True)
        for at in range(start, end):
            if (at - start) % CHUNK == 0:
                chunks.append(state)
            state, found = advance(state, query[at], key[at], value[at], stays[at], writes[at])
            outputs[0, at] = found
        initial_state[slot] = state.to(initial_state.dtype)
    return outputs, None, torch.stack(chunks)[None]


def delta_rule_newest(
    mixed_qkv,
    a,
    b,
    A_log,  # noqa: N803
    dt_bias,
    scale,
    initial_state,
    out,
    ssm_state_indices,
    **_rest,
) -> tuple[torch.Tensor, torch.Tensor]:
    """REPLACE fused_recurrent.fused_recurrent_gated_delta_rule_packed_decode: one token of each request.

    Args:
        mixed_qkv: [requests, channels], all queries, all keys, all values.
        a: [requests, h], as of :func:`gate`.
        b: [requests, h].
        A_log: [h].
        dt_bias: [h].
        scale: of the queries.
        initial_state: [slots, h, V, K], advanced in place.
        out: [requests, 1, h, V], written to.
        ssm_state_indices: [requests], their slots.

    Returns:
        ``out`` and ``initial_state``.
    """
    heads, v_dim, k_dim = initial_state.shape[1:]
    num, keys = len(mixed_qkv), (mixed_qkv.shape[1] - heads * v_dim) // 2
    query, key, value = mixed_qkv.split([keys, keys, heads * v_dim], dim=1)
    query, key = (unit(some.reshape(num, -1, k_dim), heads) for some in (query, key))
    stays, writes = gate(A_log, a, b, dt_bias)
    slots = ssm_state_indices.long()
    state, found = advance(
        initial_state[slots].float(),
        query * scale,
        key,
        value.reshape(num, heads, v_dim).float(),
        stays[0],
        writes[0],
    )
    initial_state[slots] = state.to(initial_state.dtype)
    out.copy_(found[:, None])
    return out, initial_state


def advance(state, query, key, value, stays, writes) -> tuple[torch.Tensor, torch.Tensor]:
    """Let a token forget, write and read: the state after it, and what it reads.

    Args:
        state: [..., h, V, K] float32.
        query: [..., h, K].
        key: [..., h, K].
        value: [..., h, V].
        stays: [..., h], a logarithm.
        writes: [..., h].
    """
    state = state * stays.exp()[..., None, None]
    new = (value - (state @ key[..., None])[..., 0]) * writes[..., None]
    state = state + new[..., None] * key[..., None, :]
    return state, (state @ query[..., None])[..., 0]


def unit(some: torch.Tensor, heads: int) -> torch.Tensor:
    """Bring [num_tokens, key_heads, K] to length 1 and to ``heads`` value heads, float32."""
    some = some.float()
    some = some * torch.rsqrt((some * some).sum(-1, keepdim=True) + LEAST_NORM)
    return some.repeat_interleave(heads // some.shape[1], 1)


def activated(some: torch.Tensor, activation: str | None) -> torch.Tensor:
    """Apply what follows a convolution: SiLU, or nothing."""
    return functional.silu(some) if activation in ("silu", "swish") else some


def norm_then_gate(norm, x, g, *_rest) -> torch.Tensor:
    """REPLACE the two gated norms' ``forward``: RMS norm of [n, V], times the activation of [n, V]."""
    found = x.float()
    found = found * torch.rsqrt((found * found).mean(-1, keepdim=True) + norm.eps) * norm.weight
    gates = torch.sigmoid(g.float()) if norm.activation == "sigmoid" else functional.silu(g.float())
    return (found * gates).to(x.dtype)


def split_by_group(mixed_qkvz, mixed_ba, key_heads, heads, k_dim, v_dim) -> tuple[torch.Tensor, ...]:
    """REPLACE triton_gdn_fused_proj.fused_qkvzba_split_reshape_cat: each key head with its value heads.

    Args:
        mixed_qkvz: [n, channels], for each key head its query, key, values and gates.
        mixed_ba: [n, 2 * heads], alike b and a.
        key_heads: of this rank.
        heads: value heads of this rank.
        k_dim: K.
        v_dim: V.

    Returns:
        All queries, keys and values [n, channels]; gates [n, h, V]; b and a, each [n, h].
    """
    num, shared = len(mixed_qkvz), heads // key_heads
    widths = [k_dim, k_dim, shared * v_dim, shared * v_dim]
    *qkv, gates = mixed_qkvz.view(num, key_heads, -1).split(widths, -1)
    b, a = mixed_ba.view(num, key_heads, -1).split([shared, shared], -1)
    mixed = torch.cat([part.reshape(num, -1) for part in qkv], -1)
    return mixed, gates.reshape(num, heads, v_dim), b.reshape(num, heads), a.reshape(num, heads)


def split_in_order(mixed_qkvz, mixed_ba, key_heads, heads, k_dim, v_dim) -> tuple[torch.Tensor, ...]:
    """REPLACE triton_gdn_fused_proj.fused_qkvzba_split_reshape_cat_contiguous: kind after kind.

    The same as :func:`split_by_group`, of all queries, then all keys, values and gates.
    """
    channels = 2 * key_heads * k_dim + heads * v_dim
    mixed, gates = mixed_qkvz.split([channels, heads * v_dim], -1)
    b, a = mixed_ba.split([heads, heads], -1)
    return mixed.contiguous(), gates.reshape(-1, heads, v_dim), b.contiguous(), a.contiguous()


def gate_by_sigmoid(attn_output, gate, inplace=False, quant=False) -> torch.Tensor:
    """REPLACE elementwise.fused_sigmoid_mul: attention [n, channels] times the sigmoid of its gates."""
    assert not quant, "numbers are not quantised on a CPU"
    found = attn_output * torch.sigmoid(gate.reshape(attn_output.shape))
    return attn_output.copy_(found) if inplace else found


def add_shared_expert(hidden_states, gate_weight, shared_output, output, *, do_add) -> None:
    """REPLACE elementwise._launch_fused_gate_sigmoid_mul: what the shared expert adds, [n, channels]."""
    share = torch.sigmoid(hidden_states.float() @ gate_weight.float())[:, None] * shared_output.float()
    output.copy_(output + share if do_add else share)


def keep_states(
    conv_states, ssm_states, cache_indices, mamba_track_mask, mamba_track_indices, batch_size, **_rest
) -> None:
    """REPLACE mamba_state_scatter_triton.track_mamba_states_all_layers: keep states for other requests.

    Args:
        conv_states: [layers, slots, ...].
        ssm_states: [layers, slots, ...].
        cache_indices: [requests], from where.
        mamba_track_mask: [requests] bool, whose.
        mamba_track_indices: [requests], to where.
        batch_size: requests.
    """
    chosen = mamba_track_mask[:batch_size]
    source, target = cache_indices[:batch_size][chosen].long(), mamba_track_indices[:batch_size][chosen]
    for states in (conv_states, ssm_states):
        states[:, target.long()] = states[:, source]


def make_on_cpu(original, layer, *args, **kwargs) -> None:
    """AROUND qwen3_next.Qwen3GatedDeltaNet.__init__: it asks torch for a device, which says CUDA here."""
    with mock.patch.object(torch, "get_device_module", return_value=torch.cpu):
        original(layer, *args, **kwargs)


def pin_nothing(tensor: torch.Tensor, *_device) -> torch.Tensor:
    """Stand in for ``Tensor.pin_memory``: for kept states SGLang calls it whatever the platform says."""
    return tensor


def scheduler_seams() -> list[Seam]:
    """Return what a scheduler on the host CPU needs in place for layers with a recurrent state."""
    torch.Tensor.pin_memory = pin_nothing  # pyright: ignore[reportAttributeAccessIssue]
    replaced = {
        seams.CONVOLVE: convolve,
        seams.DELTA_GATES: gate,
        seams.DELTA_RULE: delta_rule,
        seams.DELTA_RULE_NEWEST: delta_rule_newest,
        seams.GATED_NORM: norm_then_gate,
        seams.FUSED_GATED_NORM: norm_then_gate,
        seams.SPLIT_BY_GROUP: split_by_group,
        seams.SPLIT_IN_ORDER: split_in_order,
        seams.SIGMOID_GATE: gate_by_sigmoid,
        seams.SHARED_EXPERT: add_shared_expert,
        seams.KEEP_STATES: keep_states,
    }
    return [
        *(Seam(target, hook, HookType.REPLACE) for target, hook in replaced.items()),
        Seam(seams.MAKE_DELTA_LAYER, make_on_cpu, HookType.AROUND),
    ]
