"""`ward_cluster` against its reference, index by index; and how long a call takes, by warps an image and sweeps."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from gpu_stages.clock import first_call, graphed, microseconds
from gpu_stages.session import Facts, Session
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.linkage import agglomerate_reference, members_of, mirrored
from tokenreduce.ops.native import dispatch
from tokenreduce.reducers.methods.ward import costs
from tokenreduce.reducers.parts.labels import map_of_clusters

SECONDS = 60.0
# images, tokens, clusters that are left
CASES = (
    (8, 196, 160),
    (8, 49, 40),
    (8, 196, 98),
    (2, 576, 460),
    (2, 1369, 1146),
    (8, 49, 1),
    (8, 196, 1),
    (2, 576, 1),
    (2, 1369, 600),
)
TINY = ((2, 17, 9),)
# Warps (0: as many as the operator takes by itself) and sweeps that are tried; what decides comes first.
TIMED = (
    ((32, 196, 160), ((0, 0), (0, 2), (1, 0), (4, 0))),
    ((1, 1369, 1146), ((0, 0), (0, 2), (0, 1), (0, 3))),
    ((32, 1369, 1146), ((0, 0), (0, 2), (0, 3))),
    ((256, 196, 160), ((0, 0), (0, 2), (1, 0), (4, 0))),
    ((1, 196, 160), ((0, 0), (0, 2), (1, 0), (4, 0))),
    ((32, 196, 196), ((0, 0),)),  # costs alone: nothing merges
    ((1, 1369, 1369), ((0, 0),)),
    ((32, 1369, 1369), ((0, 0),)),
    ((32, 576, 460), ((0, 0), (0, 2))),
    ((1, 1369, 1146), ((8, 0), (32, 0))),
)
WIDTH = 64
PATIENCE = 60.0  # seconds for the first calls
FIRST_CALLS = """
import torch
from tokenreduce.ops.triton.cluster import cluster_in

for n, sweeps in ((196, 0), (1369, 0), (196, 2), (1369, 2)):
    cluster_in(None, sweeps, torch.randn(2, n, 64, device="cuda"), None, None, 64, False, n * 4 // 5)
    torch.cuda.synchronize()
    print(n, sweeps, end="; ", flush=True)
"""


def run(session: Session) -> None:
    if not session.tiny:
        session.measure(first_calls, what="first calls")
        said = next((row.get("said", "") for row in session.rows if row.get("what") == "first calls"), "")
        if "1369 2" not in said:
            leave_out("1369 0" in said)
            return
    cases = TINY if session.tiny else CASES
    for sweeps, sized, ties in itertools.product((0, 2), (False, True), (False, True)):
        compare(session, cases[0], sweeps, sized, ties)
    for case, ways in TIMED if not session.tiny else ((TINY[0], ((0, 0), (1, 2))),):
        for way in ways:
            what = f"{way[0]} warps, {way[1]} sweeps"
            session.measure(lambda case=case, way=way: timed(session, case, *way), shape=list(case), what=what)
    for case, sweeps, ties in itertools.product(cases[1:], (0, 2), (False, True)):
        compare(session, case, sweeps, True, ties)


def leave_out(sweeps_alone: bool) -> None:
    """For the stages that follow: `ward` without sweeps, or by PyTorch."""
    if not sweeps_alone:
        dispatch.TRITON -= {"ward_cluster"}
        return
    from tokenreduce.ops.triton import cluster

    cluster.SMALL = dispatch.MOST_TOKENS


def first_calls() -> Facts:
    """In a process of their own: a kernel that never ends would hold this one, and all that it has still to measure."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", FIRST_CALLS]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        words, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        words, errors = process.communicate(timeout=10)
        return {"ended": False, "said": words, "errors": f"killed after {PATIENCE} s; {errors[-400:]}"}
    return {"ended": process.returncode == 0, "said": words, "errors": errors[-600:]}


def compare(session: Session, case: tuple[int, int, int], sweeps: int, sized: bool, ties: bool) -> None:
    what = f"{sweeps} sweeps, {'sizes' if sized else 'no sizes'}"
    session.measure(lambda: compared(session, case, sweeps, sized, ties), shape=list(case), ties=ties, what=what)


def made(session: Session, batch: int, n: int, sized: bool, ties: bool) -> tuple[Tensor, Tensor | None]:
    """Keys behind a class token, as a model has them. With ties they are small integers, and their sizes are powers of
    two: all costs at the start are exact, and many are equal."""
    torch.manual_seed(n)
    values = torch.randn(batch, n + 1, 1, WIDTH, device=session.device)
    if ties:
        values = values.new_zeros(values.shape) + torch.randint(0, 3, (batch, n + 1, 1, 1), device=session.device)
        values[..., 1:9] = torch.randint(0, 3, (batch, n + 1, 1, 8), device=session.device).float()
    sizes = torch.randint(1, 9, (batch, n), device=session.device).float()
    if ties:
        sizes = 2.0 ** (sizes % 3)
    return values.to(session.dtype).transpose(1, 2)[:, :, 1:], sizes if sized else None


def compared(session: Session, case: tuple[int, int, int], sweeps: int, sized: bool, ties: bool) -> Facts:
    """`same`: the share of images whose maps are the reference's; `worse`: by which share the squared error of the
    clusters is above the reference's, where a tie within rounding was broken otherwise."""
    batch, n, keep = case
    keys, sizes = made(session, batch, n, sized, ties)
    with torch.inference_mode():
        (dest, rep, sources), first = first_call(lambda: clustered(session, 0, sweeps, keys, sizes, keep))
        again = clustered(session, 0, sweeps, keys, sizes, keep)
        points = keys.float().mean(1)
        right, _, _ = maps_of(reference(points, sizes, keep))
        own, other = (error(points, sizes, places, keep) for places in (dest, right))
        whole = torch.cat([rep, sources], 1).sort(1).values == torch.arange(n, device=dest.device)
        facts: Facts = {
            "same": (dest == right).all(1).double().mean().item(),
            "same_tokens": (dest == right).double().mean().item(),
            "worse": ((own - other) / other.clamp_min(1e-30)).max().item(),
            "whole": bool(whole.all() and (dest.gather(1, rep) == torch.arange(keep, device=dest.device)).all()),
            "repeats": all(torch.equal(a, b) for a, b in zip((dest, rep, sources), again, strict=True)),
        }
    return facts | {"first_s": first}


def reference(points: Tensor, sizes: Tensor | None, keep: int) -> TokenMap:
    between = mirrored(costs(points, sizes))
    return map_of_clusters(agglomerate_reference(between, members_of(between, sizes), keep, "ward"), keep)


def maps_of(token_map: TokenMap) -> tuple[Tensor, Tensor, Tensor]:
    dest, rep, sources = token_map.dest, token_map.rep, token_map.sources
    assert dest is not None and rep is not None and sources is not None
    return dest, rep, sources


def error(points: Tensor, sizes: Tensor | None, dest: Tensor, keep: int) -> Tensor:
    """The squared error `(B,)` of clusters, in fp64."""
    x, mass = points.double(), torch.ones_like(points[..., 0]).double() if sizes is None else sizes.double()
    of_cluster = torch.nn.functional.one_hot(dest, keep).double().transpose(1, 2)
    centres = (of_cluster @ (x * mass[..., None])) / (of_cluster @ mass[..., None])
    return ((x - centres.gather(1, dest[..., None].expand_as(x))).square().sum(-1) * mass).sum(1)


def clustered(
    session: Session, warps: int, sweeps: int, keys: Tensor, sizes: Tensor | None, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    if session.tiny:  # Triton cannot run there, the rest of the stage can
        return maps_of(reference(keys.float().mean(1), sizes, keep))
    from tokenreduce.ops.triton.cluster import cluster_in

    return cluster_in(warps or None, sweeps, keys, sizes, None, WIDTH, False, keep)


def timed(session: Session, case: tuple[int, int, int], warps: int, sweeps: int) -> Facts:
    batch, n, keep = case
    keys, sizes = made(session, batch, n, True, False)

    def call() -> object:
        return clustered(session, warps, sweeps, keys, sizes, keep)

    with torch.inference_mode():
        _, first = first_call(call)
        us = microseconds(graphed(call), 5, 2e-3)
    return {"graph_us": us, "us_a_merge": us / max(1, n - keep), "first_s": first}
