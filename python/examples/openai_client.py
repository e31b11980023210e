"""The OpenAI client on a running server: a streamed answer under the request's own budget.

python python/examples/openai_client.py --url http://127.0.0.1:30000 --budget 308
"""

import argparse
from typing import Any

import openai

from sgl_dynts.demo import ledger


def main() -> None:
    """Ask, print the stream as it comes, then what the request reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--question", default=ledger.make_problem(seed=20_001).question)
    parser.add_argument("--budget", type=int, default=308, help="KV tokens of question and thinking")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key="none")
    request: dict[str, Any] = {
        "model": "default",
        "messages": [{"role": "user", "content": args.question}],
        "temperature": 0,
        "max_tokens": 2000,
    }
    options: dict[str, Any] = {"custom_params": {"dynts": {"budget": args.budget}}}
    for chunk in client.chat.completions.create(stream=True, extra_body=options, **request):
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    options["return_meta_info"] = True  # SGLang gives it without streaming alone
    reply: Any = client.chat.completions.create(extra_body=options, **request).to_dict()
    print("\nreported:", reply["choices"][0]["meta_info"]["dynts"])


if __name__ == "__main__":
    main()
