"""Which candidates of a compaction survive: a ragged top-k whose ties go to the older token."""

import torch


def select_kept(
    scores: torch.Tensor, num_candidates: torch.Tensor, num_kept: torch.Tensor
) -> torch.Tensor:
    """Mark the best-scored candidates of every request.

    No host synchronisation: shapes depend on ``scores`` alone.

    Args:
        scores: [num_requests, max_candidates] float32, a row per request, older tokens first; what
            stands beyond a row's candidates is ignored.
        num_candidates: [num_requests] int64, candidates of each row.
        num_kept: [num_requests] int64, survivors of each row, at most its candidates.

    Returns:
        kept: [num_requests, max_candidates] bool, exactly ``num_kept`` true in each row.
    """
    columns = torch.arange(scores.shape[1], device=scores.device)
    beyond = columns >= num_candidates[:, None]
    # A stable descending sort leaves equal scores in position order; padding comes last of all.
    order = scores.masked_fill(beyond, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    chosen = (columns < num_kept[:, None]).expand_as(order)
    return torch.zeros_like(beyond).scatter(1, order, chosen)
