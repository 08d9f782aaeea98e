"""`ward_cluster` against its reference, index by index; and how long a call takes, by warps an image."""

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
# By what is timed first: how many warps are tried. 0: as many as the operator takes by itself.
TIMED = (
    ((32, 196, 160), (0, 2, 8)),
    ((1, 1369, 1146), (0, 8, 32)),
    ((32, 1369, 1146), (0, 8, 32)),
    ((256, 196, 160), (0, 2, 8)),
    ((1, 196, 160), (0, 2, 8)),
    ((32, 196, 196), (0,)),  # costs alone: nothing merges
    ((1, 1369, 1369), (0,)),
    ((32, 1369, 1369), (0,)),
    ((32, 576, 460), (0, 8)),
)
WIDTH = 64
PATIENCE = 60.0  # seconds for the first calls
FIRST_CALLS = """
import torch
from tokenreduce.ops.triton.cluster import ward_cluster

for n in (196, 1369):
    ward_cluster(torch.randn(2, n, 64, device="cuda"), None, None, 64, False, n * 4 // 5)
    torch.cuda.synchronize()
    print(n, end="; ", flush=True)
"""


def run(session: Session) -> None:
    if not session.tiny:
        session.measure(first_calls, what="first calls")
        if not any(row.get("ended") for row in session.rows if row.get("what") == "first calls"):
            dispatch.TRITON -= {"ward_cluster", "ward_cluster_attended"}  # for the stages that follow
            return
    cases = TINY if session.tiny else CASES
    for sized, ties in itertools.product((False, True), repeat=2):
        compare(session, cases[0], sized, ties)
    for case, warps in TIMED if not session.tiny else ((TINY[0], (0, 1)),):
        for number in warps:
            session.measure(lambda c=case, w=number: timed(session, c, w), shape=list(case), what=f"{number} warps")
    for case, ties in itertools.product(cases[1:], (False, True)):
        compare(session, case, True, ties)


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


def compare(session: Session, case: tuple[int, int, int], sized: bool, ties: bool) -> None:
    key = {"shape": list(case), "ties": ties, "what": "sizes" if sized else "no sizes"}
    session.measure(lambda: compared(session, case, sized, ties), **key)


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


def compared(session: Session, case: tuple[int, int, int], sized: bool, ties: bool) -> Facts:
    """`same`: the share of images whose maps are the reference's; `worse`: by which share the squared error of the
    clusters is above the reference's, where a tie within rounding was broken otherwise."""
    batch, n, keep = case
    keys, sizes = made(session, batch, n, sized, ties)
    with torch.inference_mode():
        (dest, rep, sources), first = first_call(lambda: clustered(session, 0, keys, sizes, keep))
        again = clustered(session, 0, keys, sizes, keep)
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
    session: Session, warps: int, keys: Tensor, sizes: Tensor | None, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    if session.tiny:  # Triton cannot run there, the rest of the stage can
        return maps_of(reference(keys.float().mean(1), sizes, keep))
    from tokenreduce.ops.triton.cluster import cluster_in

    return cluster_in(warps or None, keys, sizes, None, WIDTH, False, keep)


def timed(session: Session, case: tuple[int, int, int], warps: int) -> Facts:
    batch, n, keep = case
    keys, sizes = made(session, batch, n, True, False)

    def call() -> object:
        return clustered(session, warps, keys, sizes, keep)

    with torch.inference_mode():
        _, first = first_call(call)
        us = microseconds(graphed(call), 5, 2e-3)
    return {"graph_us": us, "us_a_merge": us / max(1, n - keep), "first_s": first}
