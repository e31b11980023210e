"""Speculative decoding on the host CPU: in plain torch what SGLang 0.5.23 launches as GPU kernels.

SGLang has each of these for its GPUs and for its own CPU engine, and none for a platform of another
distribution. They are exact and short, not fast: drafting on a CPU is for tests and for trying it out.
"""

from unittest import mock

import torch
from sglang.srt.plugins.hook_registry import HookType

from sglang_dynts import operators, seams
from sglang_dynts.boot.cpu.draft_attention import DraftingAttention, DraftSteps
from sglang_dynts.seams import Seam

FULL_MASK = 0
"""SGLang's mode of a tree mask that names the prefix too."""


def slots_to_write(
    *, req_pool_indices, req_to_token, start_offset, end_offset, batch_size, draft_token_num, device
) -> torch.Tensor:
    """Slots of each request's next tokens, for the platform's own hook: [batch_size * drafts] int64."""
    columns = start_offset.long()[:, None] + torch.arange(draft_token_num)
    return req_to_token[req_pool_indices.long()[:, None], columns].long().flatten()


def reconstruct_indices(
    tree_mask,
    verified_seq_len,
    positions,
    retrieve_index,
    retrieve_next_token,
    retrieve_next_sibling,
    batch_size,
    draft_token_num,
) -> None:
    """REPLACE reconstruct_tree.reconstruct_indices_from_tree_mask_func: a tree by its mask."""
    if batch_size == 0:
        return
    order = torch.arange(draft_token_num)
    mask = tree_mask[: batch_size * draft_token_num**2].view(batch_size, draft_token_num, -1)
    ancestors = mask.bool() & (order < order[:, None])
    depths = ancestors.sum(-1) + verified_seq_len[:batch_size, None].long()
    positions[: depths.numel()] = depths.flatten()
    parents = torch.where(ancestors, order, -1).amax(-1)
    _link(
        parents,
        retrieve_index[:batch_size],
        retrieve_next_token[:batch_size],
        retrieve_next_sibling[:batch_size],
    )


def build_tree(
    parent_list,
    top_scores_index,
    seq_lens,
    tree_mask,
    positions,
    retrieve_index,
    retrieve_next_token,
    retrieve_next_sibling,
    topk,
    spec_steps,
    num_verify_tokens,
    tree_mask_mode,
) -> None:
    """REPLACE spec_tree.build_tree_kernel_efficient_func: mask, positions and links of a draft's tree."""
    parents = _parents_of_drafts(parent_list, top_scores_index, topk)
    requests = torch.arange(len(parents))
    seen = torch.zeros(*parents.shape, num_verify_tokens, dtype=torch.bool)
    for node in range(num_verify_tokens):
        if node:
            seen[:, node] = seen[requests, parents[:, node]]
        seen[:, node, node] = True
    positions.copy_((seen.sum(-1) - 1 + seq_lens[:, None].long()).flatten())
    _link(parents, retrieve_index, retrieve_next_token, retrieve_next_sibling)
    if int(tree_mask_mode) != FULL_MASK:
        tree_mask.copy_(seen.flatten())
        return
    whole = [
        torch.cat((torch.ones(num_verify_tokens, int(length), dtype=torch.bool), tree), dim=1).flatten()
        for length, tree in zip(seq_lens, seen, strict=True)
    ]
    filled = torch.cat(whole)
    tree_mask[: len(filled)] = filled


def _parents_of_drafts(parent_list, top_scores_index, topk) -> torch.Tensor:
    """[n, num_verify_tokens] int64, of each node the one it follows; the root's is -1."""
    parents = []
    for chosen, expanded in zip(top_scores_index.tolist(), parent_list.tolist(), strict=True):
        of_draft = [0 if draft < topk else chosen.index(expanded[draft // topk]) + 1 for draft in chosen]
        parents.append([-1, *of_draft])
    return torch.tensor(parents)


def _link(parents, index, next_token, next_sibling) -> None:
    """Write each node's own number, its first child and the next child of its parent; -1 for none."""
    num_requests, num_nodes = parents.shape
    order = torch.arange(num_nodes)
    index.copy_(torch.arange(num_requests * num_nodes).view(num_requests, num_nodes))
    next_token.copy_(_first(parents[:, None, :] == order[:, None]))
    siblings = (parents[:, None, :] == parents[:, :, None]) & (parents[:, :, None] >= 0)
    next_sibling.copy_(_first(siblings & (order > order[:, None])))


def _first(mask: torch.Tensor) -> torch.Tensor:
    """[...] int64, place of the first True of each row, -1 where there is none."""
    return torch.where(mask.any(-1), mask.long().argmax(-1), -1)


def verify_tree(
    predicts,
    accept_index,
    accept_token_num,
    candidates,
    retrieve_index,
    retrieve_next_token,
    retrieve_next_sibling,
    target_predict,
    topk=-1,
):
    """REPLACE spec_tree.verify_tree_greedy_func: follow the target's own choices down each tree."""
    choices = target_predict.flatten().tolist()
    drafts, numbers = candidates.tolist(), retrieve_index.tolist()
    children, siblings = retrieve_next_token.tolist(), retrieve_next_sibling.tolist()
    for request in range(len(drafts)):
        node, path = 0, [numbers[request][0]]
        while len(path) < accept_index.shape[1]:
            wanted, node = choices[path[-1]], children[request][node]
            while node != -1 and drafts[request][node] != wanted:
                node = siblings[request][node]
            if node == -1:
                break
            path.append(numbers[request][node])
        accept_index[request, : len(path)] = torch.tensor(path, dtype=accept_index.dtype)
        predicts[path] = target_predict.flatten()[path].to(predicts.dtype)
        accept_token_num[request] = len(path) - 1
    return predicts, accept_index, accept_token_num


def draft_slots(
    req_pool_indices,
    req_to_token,
    seq_lens,
    out_cache_loc,
    topk,
    num_cols,
    positions=None,
    mrope=None,
) -> None:
    """REPLACE cache_locs.assign_draft_cache_locs_contiguous_func: slots that a draft's steps write."""
    assert positions is None, "only a GPU asks for positions here"
    assert mrope is None, "only a GPU asks for positions here"
    columns = seq_lens.long()[:, None] + torch.arange(topk * num_cols)
    out_cache_loc.copy_(req_to_token[req_pool_indices.long()[:, None], columns].flatten())


def front_slots(num_front, out_cache_loc, front_out_cache_loc) -> None:
    """REPLACE cache_locs.fill_front_out_cache_loc_func: the first slots of each request's window."""
    windows = out_cache_loc.view(num_front.numel(), -1)
    front = windows[torch.arange(windows.shape[1]) < num_front.long()[:, None]]
    front_out_cache_loc[: len(front)] = front


def accepted_slots(accept_index, out_cache_loc, accept_out_cache_loc, size) -> None:
    """REPLACE eagle.fill_accept_out_cache_loc_func: the slots of accepted tokens, one after the other."""
    accepted = accept_index[accept_index >= 0].long()
    accept_out_cache_loc[: len(accepted)] = out_cache_loc[accepted]


def newest_tokens(accept_tokens, accept_lens, bonus_tokens, accept_stride, batch_size) -> None:
    """REPLACE eagle.fill_bonus_tokens_func: the last accepted token of each request."""
    last = torch.arange(batch_size) * accept_stride + accept_lens.long() - 1
    bonus_tokens.copy_(accept_tokens.flatten()[last])


def write_rows(
    req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, batch_size
) -> None:
    """REPLACE allocation.assign_req_to_token_pool_func: newly allocated slots at the ends of rows."""
    slots = out_cache_loc.to(req_to_token.dtype)
    rows, starts, ends = req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist()
    taken = 0
    for row, start, end in zip(rows, starts, ends, strict=True):
        req_to_token[row, start:end] = slots[taken : taken + end - start]
        taken += end - start


def gather_extras(indices, topk_p_buf, topk_index_buf, output_tokens_buf, hidden_states_buf):
    """REPLACE gather_spec_extras.gather_spec_extras: what the last step left for each request's draft."""
    hidden = None if hidden_states_buf is None else hidden_states_buf[indices]
    return topk_p_buf[indices], topk_index_buf[indices], output_tokens_buf[indices], hidden


def move_with_torch(pool) -> None:
    """REPLACE MHATokenToKVPool._init_kv_copy_and_warmup: let SGLang's own torch code move accepted KV."""
    pool.use_native_move_kv_cache = True
    pool._kv_copy_config = None


def create_decode_backend(factory):
    """REPLACE DraftBackendFactory.create_decode_backend: attention of a draft's steps."""
    if factory.speculative_num_steps <= 1:
        return None
    return DraftSteps(factory.draft_model_runner, factory.speculative_num_steps)


def create_extend_backend(factory):
    """REPLACE DraftBackendFactory.create_draft_extend_backend: the draft's look at what was accepted."""
    return DraftingAttention(factory.draft_model_runner)


def share_head(original, worker) -> None:
    """AROUND EagleDraftWorker.init_lm_head: many models wait there for a GPU, and none is at work."""
    with mock.patch.object(torch.cuda, "synchronize"):
        original(worker)


def scheduler_seams() -> list[Seam]:
    """Return what a scheduler on the host CPU needs in place for speculation."""
    operators.stand_in_for_tree_masks()
    replaced = {
        seams.TREE_FROM_MASK: reconstruct_indices,
        seams.BUILD_TREE: build_tree,
        seams.VERIFY_TREE: verify_tree,
        seams.DRAFT_SLOTS: draft_slots,
        seams.FRONT_SLOTS: front_slots,
        seams.ACCEPTED_SLOTS: accepted_slots,
        seams.NEWEST_TOKENS: newest_tokens,
        seams.WRITE_ROWS: write_rows,
        seams.GATHER_EXTRAS: gather_extras,
        seams.PREPARE_MOVES: move_with_torch,
        seams.DRAFT_DECODE_BACKEND: create_decode_backend,
        seams.DRAFT_EXTEND_BACKEND: create_extend_backend,
    }
    return [
        *(Seam(target, hook, HookType.REPLACE) for target, hook in replaced.items()),
        Seam(seams.SHARE_HEAD, share_head, HookType.AROUND),
    ]
