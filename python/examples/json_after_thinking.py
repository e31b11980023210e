"""An answer that follows a JSON schema after free thinking, told apart from it.

The server needs ``--reasoning-parser``: the schema then binds the answer alone.

python python/examples/json_after_thinking.py --url http://127.0.0.1:30000 --question "What is 6 * 7?"
"""

import argparse
import json
from typing import Any

import openai

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "pattern": "^[0-9]{1,4}$"}},
    "required": ["answer"],
    "additionalProperties": False,
}


def main() -> None:
    """Ask, and print thinking, answer and what the request held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--question", default="What is 6 * 7?")
    parser.add_argument("--max-tokens", type=int, default=2000)
    args = parser.parse_args()
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key="none")
    reply: Any = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": args.question}],
        temperature=0,
        max_tokens=args.max_tokens,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
        extra_body={"separate_reasoning": True, "return_meta_info": True},
    ).to_dict()
    choice = reply["choices"][0]
    print("thinking:", choice["message"]["reasoning_content"])
    print("answer:", json.loads(choice["message"]["content"])["answer"])
    print("compactions:", choice["meta_info"]["dynts"]["compactions"])


if __name__ == "__main__":
    main()
