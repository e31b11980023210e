"""Every hook is in place, and a missing one stops the server."""

import re

import pytest
from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.mem_cache import registry
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_dynts import seams
from sglang_dynts.boot.server_args import DynTSServerArgs

SCHEDULER_TARGETS = seams.scheduler_targets()
LAUNCHER_TARGETS = [seam.target for seam in seams._tokenizer_seams()]


def refuses(missing: str):
    message = (
        f"DynTS cannot run: {missing} could not be hooked in this SGLang. Install the SGLang release "
        "that this version of sgl-dynts names, and look above for the cause"
    )
    return pytest.raises(RuntimeError, match=f"^{re.escape(message)}$")


def test_all_seams_hold_in_this_sglang():
    seams.check_scheduler_seams()
    seams.check_launcher_seams()


def test_the_engine_and_the_command_line_build_our_arguments():
    assert Engine.server_args_class is DynTSServerArgs
    assert "dynts" in ATTENTION_BACKEND_CHOICES


@pytest.mark.parametrize("target", SCHEDULER_TARGETS)
def test_a_scheduler_hook_that_was_not_applied_is_named(monkeypatch, target):
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - {target})
    with refuses(target):
        seams.check_scheduler_seams()


@pytest.mark.parametrize("target", LAUNCHER_TARGETS)
def test_a_launcher_hook_that_was_not_applied_is_named(monkeypatch, target):
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - {target})
    with refuses(target):
        seams.check_launcher_seams()


def test_another_plug_ins_hook_in_the_place_of_ours_is_noticed(monkeypatch):
    monkeypatch.setitem(HookRegistry._hooks, seams.FORWARD_BATCH, [])
    with refuses(seams.FORWARD_BATCH):
        seams.check_scheduler_seams()


def test_one_of_two_hooks_in_a_place_that_was_not_applied_is_noticed(monkeypatch):
    both = HookRegistry._hooks[seams.FORWARD_BATCH]
    assert len(both) == 2
    for one in both:
        monkeypatch.setitem(HookRegistry._hooks, seams.FORWARD_BATCH, [one])
        with refuses(seams.FORWARD_BATCH):
            seams.check_scheduler_seams()


def test_everything_that_is_missing_is_named(monkeypatch):
    lost = {seams.LOAD_MODEL, seams.POOL_STATS}
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - lost)
    monkeypatch.delitem(ATTENTION_BACKENDS, "dynts")
    monkeypatch.delitem(registry._RADIX_CACHE_REGISTRY, "dynts")
    with refuses(
        f"{seams.LOAD_MODEL}, {seams.POOL_STATS}, attention backend 'dynts', radix cache backend 'dynts'"
    ):
        seams.check_scheduler_seams()


def test_a_server_does_not_resolve_without_the_request_check(monkeypatch, resolve):
    lost = {seams.VERIFY_SAMPLING_PARAMS}
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - lost)
    with refuses(seams.VERIFY_SAMPLING_PARAMS):
        resolve("--attention-backend", "dynts")


def test_every_hook_says_where_it_hangs():
    for seam in [*seams._scheduler_seams(), *seams._tokenizer_seams()]:
        where = ".".join(seam.target.split(".")[-2:])
        assert (seam.hook.__doc__ or "").startswith(f"{seam.kind.name} {where}:"), seam
