"""The demo's predictor comes out of the general training."""

import torch

from benchmark.ledgers import fit_importance
from benchmark.ledgers.evaluate import SHIPPED_MODEL
from benchmark.ledgers.export import load_model_folder
from benchmark.ledgers.fit_importance import as_trace, train_predictor
from sgl_dynts.demo.ledger import TEST_SEEDS, TRAIN_SEEDS, make_problem, make_task_problem
from sgl_dynts.training.metrics import in_the_top


def test_a_few_traces_teach_which_words_are_read_later(monkeypatch):
    monkeypatch.setattr(fit_importance, "NUM_HELD_OUT", 1)
    predictor = train_predictor(SHIPPED_MODEL, [make_problem(seed) for seed in TRAIN_SEEDS[:9]])
    trace = as_trace(make_problem(TEST_SEEDS[0]))
    tokens = torch.tensor([[*trace.prompt_ids, *trace.output_ids[: trace.thinking[1]]]])
    with torch.no_grad():
        hidden = load_model_folder(SHIPPED_MODEL).hidden(tokens)[0, len(trace.prompt_ids) :]
    found = in_the_top(predictor(hidden), 0.2)
    assert trace.critical is not None
    assert len(trace.critical) >= 3
    assert found[trace.critical].float().mean() > 0.9


def test_critical_are_the_records_that_are_read_again_where_they_are_written_down():
    problem = make_problem(TRAIN_SEEDS[0])
    trace, words = as_trace(problem), problem.completion.split()
    assert trace.critical is not None
    assert all(words[index - 1] == "so" for index in trace.critical)
    critical = [words[index] for index in trace.critical]
    assert set(problem.answer.split()[1::2]) <= set(critical)
    recalled = {words[index + 2] for index, word in enumerate(words) if word == "recall"}
    written = [words[index + 1] for index, word in enumerate(words) if word == "so"]
    assert critical == [text for text in written if text in recalled or text in problem.answer.split()]
    assert tuple(critical) == make_task_problem(TRAIN_SEEDS[0], problem.num_steps).critical
    assert words[trace.thinking[1]] == "</think>"
