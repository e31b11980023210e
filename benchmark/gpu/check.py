"""Whether this machine is ready: packages and versions, the plug-in's entry points, the device.

python -m benchmark.gpu.check
"""

import json
from importlib import import_module
from importlib.metadata import entry_points, version

from benchmark.gpu.report import PACKAGES, device_name
from benchmark.harness.provenance import parser_of

MODULES = ("torch", "sglang", "flashinfer", "sgl_dynts", "sglang_dynts", "matplotlib")
ENTRY_POINTS = {"sglang.srt.plugins": "dynts", "sglang.srt.platforms": "dynts_host_cpu"}


def main() -> None:
    """Print what there is; fail if something is missing."""
    parser_of("gpu.check", __doc__).parse_args()
    for module in MODULES:
        import_module(module)
    print(json.dumps({"device": device_name(), **{name: version(name) for name in PACKAGES}}))
    missing = missing_entry_points()
    if missing:
        raise SystemExit(f"entry points {', '.join(missing)} are not installed; run pip install .")
    print(f"entry points: {', '.join(ENTRY_POINTS.values())}")


def missing_entry_points() -> list[str]:
    """Return the plug-in's entry points that SGLang would not find."""
    return [
        name
        for group, name in ENTRY_POINTS.items()
        if name not in {point.name for point in entry_points(group=group)}
    ]


if __name__ == "__main__":
    main()
