"""``sgl.Engine`` without a server: a batch of prompts, and what each held.

python python/examples/offline_engine.py
"""

import argparse

import sglang as sgl

from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger


def main() -> None:
    """Answer a batch and print how much of the cache each needed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", default=str(demo_model_path()))
    parser.add_argument("--budget", type=int, default=200, help="KV tokens of question and thinking")
    parser.add_argument("--max-total-tokens", type=int, default=3000, help="KV tokens of the pool")
    args = parser.parse_args()
    engine = sgl.Engine(
        model_path=args.model_path,
        attention_backend="dynts",
        dynts_budget=args.budget,
        dtype="float32",
        max_total_tokens=args.max_total_tokens,
        mem_fraction_static=0.1,
    )
    problems = [ledger.make_problem(seed) for seed in ledger.TEST_SEEDS[:3]]
    prompts = [f"<bos> {problem.question} <think>" for problem in problems]
    replies = engine.generate(prompts, {"max_new_tokens": 400, "temperature": 0})
    for reply in replies:
        numbers = reply["meta_info"]["dynts"]
        seen = numbers["window_len"] + numbers["dropped_tokens"]
        held, times = numbers["peak_window_len"], numbers["compactions"]
        print(f"budget {numbers['budget']}: held {held} of {seen} tokens, compactions {times}")
    engine.shutdown()


if __name__ == "__main__":
    main()
