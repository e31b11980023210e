"""What a running server proves about itself: ``/server_info``, and ``GET /dynts/health``."""

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from sglang.srt.runtime_context import get_disagg, get_model, get_serving

from sgl_dynts.config import DynTSConfig
from sgl_dynts.thinking import ThinkMarkers
from sglang_dynts import seams
from sglang_dynts.boot.configuration import PREFILLS, arguments, is_enabled
from sglang_dynts.entry.front_end import application
from sglang_dynts.forward.device_state import LoadedPredictor, OnRunner, on_runner
from sglang_dynts.names import BACKEND_NAME
from sglang_dynts.scheduling.governor import Governor, governor_of
from sglang_dynts.seams import Process

TOLD_ONCE = ("disaggregation", "policy", "windows", "thinking", "weights", "predictor", "calibration")
"""What all schedulers say alike."""
HEALTH_PATH = "/dynts/health"


def describe_configuration(
    config: DynTSConfig, markers: ThinkMarkers, predictor: LoadedPredictor | None
) -> dict[str, Any]:
    """Return what was resolved at the start: windows, think markers, predictor; plain types only."""
    windows = {name: value for name, value in asdict(config).items() if name != "min_selection"}
    lengths = {"min_selection": config.selection_floor, "period": config.period}
    return {
        "windows": windows | lengths,
        "thinking": {"opening": list(markers.opening), "closing": list(markers.closing)},
        "predictor": None if predictor is None else predictor.facts(),
    }


def add_facts(output, controller, _recv_req) -> None:
    """AFTER SchedulerInternalStateController.get_internal_state: tell the scheduler's side of DynTS."""
    scheduler = controller.scheduler
    governor = governor_of(scheduler.tree_cache)
    if governor is None:
        if is_enabled():
            output.internal_state[BACKEND_NAME] = _facts_of_prefills()
        return
    ours = on_runner(scheduler.tp_worker.model_runner)
    facts = describe_configuration(governor.config, governor.markers, ours.predictor)
    output.internal_state[BACKEND_NAME] = facts | {
        "disaggregation": get_disagg().disaggregation_mode,
        "policy": {"name": arguments().dynts_policy, "why": arguments().dynts_policy_why},
        "calibration": _calibration(governor, ours),
        "weights": {"path": get_model().model_path, "version": get_serving().weight_version},
        "predictor_kept": ours.kept,
        "totals": asdict(governor.tally.totals),
        "seams": seams.targets(Process.SCHEDULER),
        "missing_seams": seams.missing(Process.SCHEDULER),
    }


def _facts_of_prefills() -> dict[str, Any]:
    """What a server tells that computes prompts for others, and compacts nothing."""
    return {
        "disaggregation": PREFILLS,
        "predictor_kept": None,
        "totals": {},
        "seams": seams.targets(Process.SCHEDULER),
        "missing_seams": seams.missing(Process.SCHEDULER),
    }


def _calibration(governor: Governor, ours: OnRunner) -> dict[str, Any] | None:
    """Where it is known from what the model's queries are like, and whether its weights are newer."""
    known = governor.queries
    return None if known is None else known.facts | {"is_older_than_weights": ours.weights_updated}


def offer_health(_result, manager, *_args, **_kwargs) -> None:
    """AFTER TokenizerManager.__init__: answer on a path of our own, behind the check of the API key."""
    app = application()
    if app is None:
        return

    async def dynts_health() -> JSONResponse:
        """Whether every seam is in place in every process that has one, and what was compacted."""
        body, healthy = judge(await manager.get_internal_state())
        return JSONResponse(body, HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE)

    app.add_api_route(HEALTH_PATH, dynts_health, methods=["GET"])


def judge(states: list[dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """Put together what the schedulers and this launcher say.

    Args:
        states: the internal state of each data-parallel scheduler.

    Returns:
        The answer for the client, and whether everything is in place.
    """
    ours = [state[BACKEND_NAME] for state in states if BACKEND_NAME in state]
    missing = seams.missing(Process.LAUNCHER) + [name for one in ours for name in one["missing_seams"]]
    if len(ours) < len(states) or not states:
        missing.append(f"{len(states) - len(ours)} of {len(states)} schedulers run without DynTS")
    totals = {name: sum(one["totals"][name] for one in ours) for name in _total_names(ours)}
    body = {
        "healthy": not missing,
        "has_compacted": totals.get("num_compactions", 0) > 0,
        **totals,
        "num_schedulers": len(states),
        "missing": missing,
        "seams": sorted(
            seams.targets(Process.LAUNCHER) + [name for one in ours[:1] for name in one["seams"]]
        ),
        **{name: ours[0].get(name) if ours else None for name in TOLD_ONCE},
        "predictor_kept": next((one["predictor_kept"] for one in ours if one["predictor_kept"]), None),
    }
    return body, not missing


def _total_names(ours: list[dict[str, Any]]) -> list[str]:
    return list(ours[0]["totals"]) if ours else []
