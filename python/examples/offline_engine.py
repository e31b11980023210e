"""``sgl.Engine`` without a server: a batch of prompts, and what each held.

python python/examples/offline_engine.py
python python/examples/offline_engine.py --tp-size 2    # the model's weights on two devices
python python/examples/offline_engine.py --dp-size 2    # two replicas that share the requests
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
    parser.add_argument("--tp-size", type=int, default=1, help="devices that hold one model")
    parser.add_argument("--dp-size", type=int, default=1, help="replicas of it")
    args = parser.parse_args()
    engine = sgl.Engine(
        model_path=args.model_path,
        attention_backend="dynts",
        dynts_budget=args.budget,
        dtype="float32",
        max_total_tokens=args.max_total_tokens,
        tp_size=args.tp_size,
        dp_size=args.dp_size,
        mem_fraction_static=0.5,
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
