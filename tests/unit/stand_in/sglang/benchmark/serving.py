"""A load generator that measured the same whatever it was told to send."""

import argparse
import json
from pathlib import Path


def main():
    parser = argparse.ArgumentParser()
    for name in ("--num-prompts", "--random-output-len", "--gsp-output-len"):
        parser.add_argument(name, type=int)
    parser.add_argument("--output-file", type=Path)
    args, _others = parser.parse_known_args()
    length = args.random_output_len or args.gsp_output_len
    result = {
        "completed": args.num_prompts,
        "duration": 2.0,
        "total_output_tokens": args.num_prompts * length,
        "output_throughput": 300.0,
        "median_tpot_ms": 12.0,
        "median_ttft_ms": 50.0,
        "cache_report": {"cache_hit_rate_pct": 25.0},
    }
    args.output_file.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
