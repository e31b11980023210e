"""What the tool says of this SGLang, and of one that moved."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import sglang

from sglang_dynts import check_seams, seams
from sglang_dynts.check_seams import compare, describe, main, record_installed, recorded


def test_nothing_has_moved_in_the_release_that_is_named(capsys):
    assert recorded()["sglang"] == sglang.__version__ == "0.5.23"
    assert compare(recorded()) == []
    assert main([]) == 0
    assert "0 broken, 0 to be read" in capsys.readouterr().out


def test_a_new_process_without_a_gpu_finds_all_of_it(monkeypatch):
    for name in ("sgl_kernel.speculative", seams.TREE_FROM_MASK.rpartition(".")[0]):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert compare(recorded()) == []


def test_the_record_is_of_today_s_code():
    """After a change of what is imported, hooked or overridden: check_seams --record."""
    assert record_installed() == recorded()


def test_every_hook_import_and_override_is_looked_at():
    targets = recorded()["targets"]
    for hooked in seams.TARGETS:
        assert "seams.py" in targets[hooked]["used_by"]
    cache = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
    assert targets[cache]["used_by"] == ["scheduling/prefix_cache.py"]
    assert "keyword_only up_to" in targets[f"{cache}.checkpoint"]["signature"]


@pytest.fixture
def moved() -> dict:
    """A record in which one function is gone, one takes other arguments, one works otherwise."""
    record = recorded()
    targets = dict(record["targets"])
    targets[f"{seams.SCHEDULER_MODULE}.Scheduler.compact"] = {"used_by": ["a.py"], "signature": None}
    load, release = targets[seams.LOAD_MODEL], targets[seams.RELEASE_REQ]
    targets[seams.LOAD_MODEL] = load | {"signature": "positional_or_keyword old"}
    targets[seams.RELEASE_REQ] = release | {"source": "other"}
    return {"sglang": "0.5.24", "targets": targets}


def test_what_moved_is_named_with_our_files(moved):
    found = {one.target.rsplit(".", 1)[1]: one for one in compare(moved)}
    assert found.keys() == {"compact", "load_model", "release_req"}
    assert found["compact"].what == "gone"
    assert found["compact"].used_by == ("a.py",)
    assert found["load_model"].what == "takes other arguments"
    assert (found["release_req"].what, found["release_req"].breaks) == ("body changed", False)
    assert describe(moved, compare(moved)).endswith("2 broken, 1 to be read")


def test_a_server_on_another_release_is_refused_by_name(moved, monkeypatch, tmp_path, resolve):
    monkeypatch.setattr(check_seams, "RECORD", tmp_path / "seams.json")
    check_seams.RECORD.write_text(json.dumps(moved))
    with pytest.raises(RuntimeError, match=r"in SGLang 0\.5\.23: .* tested with 0\.5\.24") as refusal:
        resolve("--attention-backend", "dynts")
    assert f"{seams.SCHEDULER_MODULE}.Scheduler.compact gone" in str(refusal.value)
    assert f"{seams.LOAD_MODEL} takes other arguments" in str(refusal.value)
    assert "Install sglang==0.5.24" in str(refusal.value)
    assert main([]) == 1


def test_a_server_without_dynts_runs_on_any_release(moved, monkeypatch, tmp_path, resolve):
    monkeypatch.setattr(check_seams, "RECORD", tmp_path / "seams.json")
    check_seams.RECORD.write_text(json.dumps(moved))
    assert resolve("--attention-backend", "torch_native") is not None


def test_the_changelog_names_the_sglang_of_our_release():
    project = Path(check_seams.__file__).parents[2]
    ours = tomllib.loads((project / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## .*$", (project / "python" / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0].startswith(f"## {ours}")
    for heading in headings:
        assert re.search(r": SGLang \d+\.\d+\.\d+$", heading), heading
    assert headings[0].endswith(recorded()["sglang"])
