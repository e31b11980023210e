"""Every hook is in place, and a missing one stops the server."""

import re

import pytest
from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.mem_cache import registry
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_dynts import plugin, seams
from sglang_dynts.boot.server_args import DynTSServerArgs
from sglang_dynts.seams import Process

SCHEDULER_TARGETS = seams.targets(Process.SCHEDULER)
LAUNCHER_TARGETS = seams.targets(Process.LAUNCHER)


def refuses(missing: str):
    message = (
        f"DynTS cannot run: {missing} could not be hooked in this SGLang. Install the SGLang release "
        "that this version of sgl-dynts names, and look above for the cause"
    )
    return pytest.raises(RuntimeError, match=f"^{re.escape(message)}$")


def test_all_seams_hold_in_this_sglang():
    seams.check(Process.SCHEDULER)
    seams.check(Process.LAUNCHER)


def test_the_engine_and_the_command_line_build_our_arguments():
    assert Engine.server_args_class is DynTSServerArgs
    assert "dynts" in ATTENTION_BACKEND_CHOICES


@pytest.mark.parametrize("target", SCHEDULER_TARGETS)
def test_a_scheduler_hook_that_was_not_applied_is_named(monkeypatch, target):
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - {target})
    with refuses(target):
        seams.check(Process.SCHEDULER)


@pytest.mark.parametrize("target", LAUNCHER_TARGETS)
def test_a_launcher_hook_that_was_not_applied_is_named(monkeypatch, target):
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - {target})
    with refuses(target):
        seams.check(Process.LAUNCHER)


def test_another_plug_ins_hook_in_the_place_of_ours_is_noticed(monkeypatch):
    monkeypatch.setitem(HookRegistry._hooks, seams.FORWARD_BATCH, [])
    with refuses(seams.FORWARD_BATCH):
        seams.check(Process.SCHEDULER)


def test_one_of_two_hooks_in_a_place_that_was_not_applied_is_noticed(monkeypatch):
    both = HookRegistry._hooks[seams.FORWARD_BATCH]
    assert len(both) >= 2
    for one in both:
        monkeypatch.setitem(HookRegistry._hooks, seams.FORWARD_BATCH, [one])
        with refuses(seams.FORWARD_BATCH):
            seams.check(Process.SCHEDULER)


def test_everything_that_is_missing_is_named(monkeypatch):
    lost = {seams.LOAD_MODEL, seams.POOL_STATS}
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - lost)
    monkeypatch.delitem(ATTENTION_BACKENDS, "dynts")
    monkeypatch.delitem(registry._RADIX_CACHE_REGISTRY, "dynts")
    with refuses(
        f"{seams.LOAD_MODEL}, {seams.POOL_STATS}, attention backend 'dynts', radix cache backend 'dynts'"
    ):
        seams.check(Process.SCHEDULER)


def test_a_server_does_not_resolve_without_the_request_check(monkeypatch, resolve):
    lost = {seams.VERIFY_SAMPLING_PARAMS}
    monkeypatch.setattr(HookRegistry, "_patched", HookRegistry._patched - lost)
    with refuses(seams.VERIFY_SAMPLING_PARAMS):
        resolve("--attention-backend", "dynts")


def test_every_hook_says_where_it_hangs():
    for seam in [*seams.declared(Process.SCHEDULER), *seams.declared(Process.LAUNCHER)]:
        where = ".".join(seam.target.split(".")[-2:])
        assert (seam.hook.__doc__ or "").startswith(f"{seam.kind.name} {where}:"), seam


def test_the_table_uses_every_name_that_is_recorded():
    assert {*SCHEDULER_TARGETS, *LAUNCHER_TARGETS, *seams.targets(Process.ANY)} == {*seams.TARGETS}


def test_a_process_in_which_registration_failed_is_not_taken_for_complete(monkeypatch):
    """SGLang swallows what a plug-in raises; then nothing is declared, so nothing would be missing."""
    monkeypatch.delitem(seams._declared, Process.SCHEDULER)
    with refuses("the plug-in's table for the scheduler process"):
        seams.check(Process.SCHEDULER)


def test_whoever_measures_gets_around_the_hooks_and_they_still_count_as_ours():
    wrapped = []

    def around(hook):
        wrapped.append(hook)
        return lambda *args, **kwargs: hook(*args, **kwargs)

    table = plugin._wrapped(plugin._scheduler_seams(), around)
    assert [seam.target for seam in table] == [seam.target for seam in plugin._scheduler_seams()]
    assert wrapped == [seam.hook for seam in plugin._scheduler_seams()]
    assert all(seam.hook not in wrapped for seam in table)
