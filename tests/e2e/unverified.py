"""An engine whose front end checks nothing, as some gateways do: prints what each request gets."""

import json
import sys

import sglang
from sglang.srt.sampling.sampling_params import SamplingParams

ASKED = (
    {"dynts": {"bugdet": 300.0}},
    {"dynts": {"budget": 300.0, "policy": None}},
    {"dynts": {"budget": 300.5}},
    {"dynts": 7},
    {"dynts": {"policy": "h2o"}},
    None,
)


def check_nothing(*_args) -> None:
    """Stand in for ``SamplingParams.verify``."""


def main() -> None:
    """Ask once for each of ``ASKED``."""
    engine = sglang.Engine(
        model_path=sys.argv[1],
        attention_backend="dynts",
        max_total_tokens=2000,
        mem_fraction_static=0.5,
        log_level="error",
    )
    SamplingParams.verify = check_nothing  # pyright: ignore
    for custom in ASKED:
        params = {"max_new_tokens": 4, "ignore_eos": True, "custom_params": custom}
        try:
            reply = engine.generate(input_ids=[1, 20, 21, 22], sampling_params=params)
        except ValueError as error:
            sys.stdout.write(json.dumps({"refused": str(error)}) + "\n")
        else:
            assert isinstance(reply, dict)
            sys.stdout.write(json.dumps({"budget": reply["meta_info"]["dynts"]["budget"]}) + "\n")
    engine.shutdown()


if __name__ == "__main__":
    main()
