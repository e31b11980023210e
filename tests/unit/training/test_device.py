"""A device that is not there is refused before anything is computed."""

import pytest

from benchmark.ledgers import evaluate, train
from sgl_dynts.training import fit_predictor
from sgl_dynts.training.device import usable_device

ARGUMENTS = {
    train: ["--output", "folder"],
    evaluate: [],
    fit_predictor: ["model", "traces.jsonl", "predictor.safetensors"],
}


@pytest.mark.parametrize("command", ARGUMENTS, ids=lambda module: module.__name__)
@pytest.mark.parametrize("device", ["cuda:93", "gpu"])
def test_a_device_that_is_not_there_is_refused_by_name(command, device, capsys):
    with pytest.raises(SystemExit) as refused:
        command.main([*ARGUMENTS[command], "--device", device])
    assert refused.value.code == 2
    assert f"argument --device: torch cannot use {device!r} here" in capsys.readouterr().err


def test_the_cpu_is_there():
    assert usable_device("cpu") == "cpu"
