"""An SGLang program on a running server: one trace, then a fork with two answers.

python python/examples/frontend_program.py --url http://127.0.0.1:30000
"""

import argparse
from typing import Any

import sglang as sgl

from sgl_dynts.demo import ledger


@sgl.function
def solve(s, question: str):
    """Think once, then answer twice from the same trace."""
    s += f"<bos> {question} <think>"
    s += sgl.gen("trace", max_tokens=2000, stop="</think>", temperature=0)
    forks = s.fork(2)
    for fork in forks:
        fork += "</think>"
        fork += sgl.gen("answer", max_tokens=40, temperature=0)
    s["answers"] = [fork["answer"] for fork in forks]


def main() -> None:
    """Run the program and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--question", default=ledger.make_problem(seed=20_001).question)
    args = parser.parse_args()
    sgl.set_default_backend(sgl.RuntimeEndpoint(args.url))
    program: Any = solve
    state = program.run(question=args.question)
    print("compactions:", state.get_meta_info("trace")["dynts"]["compactions"])
    for answer in state["answers"]:
        print("answer:", answer)


if __name__ == "__main__":
    main()
