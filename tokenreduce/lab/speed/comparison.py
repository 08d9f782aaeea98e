"""`compare`: patched models against the unpatched one and against the limit, in interleaved rounds of one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.budget.counting import count_flops
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.forward.records import last_record
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.lanes import limit_lane, patched_lane, try_arms, twin, unpatched_lane
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.speed.modes import check_modes, ready
from tokenreduce.lab.speed.profiling import attention_backend, peak_memory
from tokenreduce.lab.speed.stages import stage_microseconds
from tokenreduce.lab.speed.timing import Times, bootstrap_interval, interleave, synchronizer
from tokenreduce.patching.finding import find_backbone, reduction_of


@dataclass(frozen=True)
class _Reduced:
    """One arm on one batch: its patched model, what this leaves of the tokens, the limit where the family can slice.

    `entered` and `counts` are None where nothing is removed.
    """

    name: str
    arm: Arm
    model: nn.Module
    entered: int | None
    counts: tuple[int, ...] | None
    limit: nn.Module | None


def compare(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    arms: Sequence[Arm],
    *,
    rounds: int = 20,
    min_time: float = 0.1,
    modes: Sequence[str] = ("eager",),
    progress: Progress = lambda fraction, what: None,
) -> list[Row]:
    """Time the unpatched model and every arm on each input in each mode, the unpatched model's row first.

    `model` itself stays as it is. Copies of it run in eval mode, on the device and in the dtype of the inputs; they
    share its weights if those fit the inputs. Weights and images may be random: speed hardly depends on them.

    Args:
        inputs: one batch `(B, ...)` or several of one device and dtype, each measured on its own.
        rounds: in each, every model has one turn; ratios are taken within a round.
        min_time: seconds that a turn lasts at least.
        modes: how all models run: "eager", "graph" (a replayed CUDA graph), "compile" (`torch.compile`); each mode is
            compared with itself.
        progress: called with the fraction that is done and what was running.

    Returns: rows with the keys of the command line's JSON. Milliseconds are per forward of the batch; `macs` are those
    of one image; `tokens_left` are image tokens after the last layer; `peak_memory_mib` leaves out weights and input;
    `speedup` is the median over rounds of unpatched / patched time, `speedup_interval` its bootstrap 95 % interval;
    `limit_share` is the median of patched time / time of the unpatched model after slicing its tokens to the same
    counts, which costs nothing (None where the family cannot slice); `plan_us` and `apply_us` are the microseconds that
    the reducer takes in one eager forward, summed over the layers, and a kernel that plans and applies in one call is
    plan's alone; `uncounted` names operators whose MACs are unknown. Last come rows with the reason (`refused`) for
    each arm that the model cannot reach.

    Raises: ValueError, TypeError for arguments that do not fit, and as `tokenreduce.patch` where no arm can be reached.
    """
    batches = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check(batches, arms, rounds, min_time)
    check_modes(modes, batches[0].device)
    base = unpatched_lane(model, batches[0])
    patched, refused = try_arms(arms, lambda arm: patched_lane(base, arm))
    # The longest part, and all of the same length: warm-up and turns of every lane.
    total, done = len(batches) * len(modes) * (rounds + 1) * (1 + 2 * len(patched)), 0

    def tick(what: str) -> None:
        nonlocal done
        done += 1
        progress(min(1.0, done / total), what)

    rows: list[Row] = []
    for batch in batches:
        rows += _measure(base, patched, batch, modes, rounds, min_time, tick)
    progress(1.0, "done")
    return rows + refused


def slower_sentences(rows: Iterable[Row]) -> list[str]:
    """One plain sentence for each patched row that is slower than the unpatched model, to two decimals."""
    return [
        f"{row['method']} at {row['budget']} is slower than the unpatched model at batch {row['batch_size']}"
        f"{'' if row.get('mode', 'eager') == 'eager' else ', mode ' + row['mode']} "
        f"({row['speedup']:.2f} x): reduction does not pay here."
        for row in rows
        if row["method"] != "unpatched" and "refused" not in row and round(row["speedup"], 2) < 1
    ]


def _measure(
    base: nn.Module,
    patched: list[tuple[Arm, nn.Module]],
    batch: Tensor,
    modes: Sequence[str],
    rounds: int,
    min_time: float,
    tick: Callable[[str], None],
) -> list[Row]:
    macs = [count_flops(model, batch[:1]) for model in (base, *(model for _, model in patched))]
    with torch.inference_mode(), ExitStack() as stack:
        reduced = [
            _prepare(stack, base, f"{arm} ({i})", arm, twin(model), batch) for i, (arm, model) in enumerate(patched)
        ]
        lanes = {"unpatched": base} | {one.name: one.model for one in reduced}
        lanes |= {_limit_of(one): one.limit for one in reduced if one.limit is not None}
        times = {}
        for mode in modes:
            calls = {name: ready(mode, name, lane, batch) for name, lane in lanes.items()}
            times[mode] = interleave(calls, rounds, min_time, synchronizer(batch.device), tick)
        costs = [_cost(lane, batch) for lane in (base, *(one.model for one in reduced))]
        stages = [stage_microseconds(one.model, batch) for one in reduced]
    entered = next((one.entered for one in reduced if one.entered is not None), _default_tokens(base))
    for cost, count in zip(costs, macs, strict=True):
        cost |= {"macs": count.total, "flops_share": count.total / macs[0].total, "uncounted": count.uncounted}
    rows: list[Row] = []
    for mode, found in times.items():
        rows.append(_unpatched_row(entered, found["unpatched"], batch) | {"mode": mode} | costs[0])
        for one, spent, cost in zip(reduced, stages, costs[1:], strict=True):
            rows.append(_patched_row(one, entered, found, spent, batch) | {"mode": mode} | cost)
    return rows


def _prepare(stack: ExitStack, base: nn.Module, name: str, arm: Arm, model: nn.Module, batch: Tensor) -> _Reduced:
    """Run the arm once, so that its report is about this batch, and open its limit for as long as `stack` lasts."""
    model(batch)
    reduction = reduction_of(model)
    record = last_record(reduction)
    entered, counts = (None, None) if record is None else (record.entered, record.counts)
    try:
        comes_back = bool(reduction.schedule.restored)  # slicing cannot
        limit = None if comes_back else stack.enter_context(limit_lane(base, counts, reduction.reducer.placement))
    except (InvalidValueError, NotImplementedError):  # the family, or this model's kind of block, cannot slice
        limit = None
    return _Reduced(name, arm, model, entered, counts, limit)


def _limit_of(one: _Reduced) -> str:
    return f"limit of {one.name}"


def _default_tokens(base: nn.Module) -> int:
    _, backbone, adapter = find_backbone(base)
    return adapter.geometry(backbone).count


def _unpatched_row(entered: int, times: Times, batch: Tensor) -> Row:
    return _row("unpatched", None, {}, entered, times, batch) | {
        "speedup": 1.0,
        "speedup_interval": [1.0, 1.0],
        "limit_share": 1.0,
        "plan_us": 0.0,
        "apply_us": 0.0,
    }


def _patched_row(
    one: _Reduced, entered: int, times: Mapping[str, Times], stages: tuple[float, float], batch: Tensor
) -> Row:
    own, limit = times[one.name], times.get(_limit_of(one))
    gains = times["unpatched"].ratios(own)
    left = entered if one.counts is None else one.counts[-1]
    return _row(one.arm.method, one.arm.budget, one.arm.options, left, own, batch) | {
        "speedup": statistics.median(gains),
        "speedup_interval": list(bootstrap_interval(gains)),
        "limit_share": None if limit is None else statistics.median(own.ratios(limit)),
        "plan_us": stages[0],
        "apply_us": stages[1],
    }


def _row(
    method: str, budget: str | None, options: dict[str, Any], tokens_left: int, times: Times, batch: Tensor
) -> Row:
    return {
        "method": method,
        "budget": budget,
        "options": options,
        "batch_size": len(batch),
        "tokens_left": tokens_left,
        "median_ms": 1e3 * times.median,
        "p90_ms": 1e3 * times.p90,
        "images_per_second": len(batch) / times.median,
    }


def _cost(model: nn.Module, batch: Tensor) -> Row:
    """What an eager forward shows of memory and attention."""
    # A twin has no maps of an earlier forward, which would be released in the middle of this one.
    call = partial(twin(model), batch)
    return {"peak_memory_mib": peak_memory(call, batch.device), "attention": attention_backend(call)}


def _check(batches: list[Tensor], arms: Sequence[Arm], rounds: int, min_time: float) -> None:
    if not batches or not all(isinstance(batch, Tensor) and batch.ndim > 1 and len(batch) for batch in batches):
        raise InvalidTypeError("inputs must be a batch of images (B, C, H, W), or a list of batches; none may be empty")
    if len({(batch.device, batch.dtype) for batch in batches}) > 1:
        raise InvalidValueError("all inputs must be on one device and of one dtype; call compare once for each")
    if not arms or not all(isinstance(arm, Arm) for arm in arms):
        raise InvalidTypeError(f'arms is {arms!r}; give at least one Arm, such as Arm("tome", flops=0.6)')
    if rounds < 1 or min_time < 0:
        raise InvalidValueError(
            f"rounds is {rounds} and min_time {min_time}; rounds must be 1 or more, min_time not negative"
        )
