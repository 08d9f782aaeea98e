"""`attend` in the interpreter against softmax in fp64, and what it becomes on a GPU."""

from __future__ import annotations

import pytest
import torch
from cubins import compiled
from torch import Tensor
from torch.nn import functional as F

triton = pytest.importorskip("triton")
from tokenreduce.ops.triton.attend import STRIDES, Tiles, _attend, attend, attend_in, tiles  # noqa: E402

HALF = (torch.float16, torch.bfloat16)
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# A rounding of the output and one of the weights. Logits are of the size 1.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SMALL = Tiles(16, 32, 16, 4, 1)


def fused(
    n: int, d: int = 32, heads: int = 2, batch: int = 2, dtype: torch.dtype = torch.float16, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values as views of one projection's output, and logarithms of sizes from 1 to 300."""
    g = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, n, 3, heads, d, generator=g).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v, torch.randint(1, 301, (batch, 1, 1, n), generator=g).float().log()


def truth(q: Tensor, k: Tensor, v: Tensor, logs: Tensor, scale: float) -> Tensor:
    return (q.double() @ k.double().mT * scale + logs.double()).softmax(-1) @ v.double()


def check(q: Tensor, k: Tensor, v: Tensor, logs: Tensor, cut: Tiles | None = None) -> Tensor:
    scale = q.shape[-1] ** -0.5
    found = attend(q, k, v, logs, scale) if cut is None else attend_in(cut, q, k, v, logs, scale)
    assert found.shape == q.shape and found.dtype == q.dtype and found.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(found.double(), truth(q, k, v, logs, scale), rtol=0, atol=TOLERANCE[q.dtype])
    return found


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", [1, 17, 64, 65, 197])
def test_numbers_of_tokens_and_types(n: int, dtype: torch.dtype) -> None:
    check(*fused(n, dtype=dtype, heads=1 if n > 100 else 2))


@pytest.mark.interpreted
@pytest.mark.parametrize("d", [8, 16, 40, 64, 72, 80, 96, 128])
def test_heads_of_any_width(d: int) -> None:
    check(*fused(33, d))
    check(*fused(21, d, dtype=torch.float32))


@pytest.mark.interpreted
@pytest.mark.parametrize("cut", [SMALL, SMALL._replace(last=32), Tiles(32, 16, 16, 4, 1), Tiles(16, 64, 32, 4, 1)])
@pytest.mark.parametrize("n", [1, 15, 32, 33, 63, 70, 96])
def test_any_tiles(n: int, cut: Tiles) -> None:
    check(*fused(n, 16), cut)


@pytest.mark.interpreted
def test_any_strides() -> None:
    q, k, v, logs = fused(37, dtype=torch.float16)
    expected = check(q, k, v, logs, SMALL)
    odd = [F.pad(t, (1, 2))[..., 1:-2] for t in (q, k, v)]  # rows of 35, which 8 does not divide, from an odd place
    assert torch.equal(check(*odd, logs, SMALL), expected)
    assert torch.equal(check(q.contiguous(), k.flip(0).flip(0), v, logs, SMALL), expected)
    assert torch.equal(check(q, k, v, logs.repeat_interleave(2, -1)[..., ::2], SMALL), expected)
    one = logs[:1].expand(2, -1, -1, -1)
    assert torch.equal(check(q, k, v, one, SMALL), check(q, k, v, one.contiguous(), SMALL))
    check(q, k[:, :1].expand_as(k), v[:1].expand_as(v), logs[..., :1].expand_as(logs), SMALL)
    check(q, k, v, logs.new_zeros(()).expand_as(logs), SMALL)


@pytest.mark.interpreted
def test_other_queries_than_keys() -> None:
    q, k, v, logs = fused(40)
    for few in (q[:, :, :1], q[:, :, 3:20], torch.cat([q, q], 2)):
        check(few, k, v, logs, SMALL)


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", HALF)
def test_sizes_are_exact(dtype: torch.dtype) -> None:
    """The error does not grow by them, where a mask in half precision rounds them."""
    errors: dict[str, list[Tensor]] = {"attend": [], "none": [], "mask": []}
    for seed in range(3):
        q, k, v, logs = fused(130, 64, heads=1, dtype=dtype, seed=seed)
        exact, scale = truth(q, k, v, logs, 0.125), 0.125
        errors["attend"].append(attend(q, k, v, logs, scale).double() - exact)
        errors["none"].append(exact.to(dtype).double() - exact)
        errors["mask"].append(F.scaled_dot_product_attention(q, k, v, logs.to(dtype)).double() - exact)
    rms = {name: torch.cat(found).square().mean().sqrt() for name, found in errors.items()}
    assert rms["attend"] <= 1.5 * rms["none"] and rms["attend"] <= 0.8 * rms["mask"]


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", TYPES)
def test_keys_of_size_0_get_nothing(dtype: torch.dtype) -> None:
    q, k, v, logs = fused(70, dtype=dtype)
    logs[0, ..., 50:], logs[1, ..., :40] = -torch.inf, -torch.inf  # whole tiles before and after the others
    found = check(q, k, v, logs, SMALL)
    v[0, :, 50:], k[0, :, 50:] = 1e4, 1e4
    assert torch.equal(attend_in(SMALL, q, k, v, logs, 32**-0.5), found)


@pytest.mark.interpreted
def test_images_without_any_key_get_0_as_from_pytorch() -> None:
    q, k, v, logs = fused(20, dtype=torch.float32)
    logs[0] = -torch.inf
    expected = F.scaled_dot_product_attention(q, k, v, logs)
    assert not expected[0].any()
    torch.testing.assert_close(attend(q, k, v, logs, 32**-0.5), expected, rtol=0, atol=3e-6)


@pytest.mark.interpreted
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_images_with_nan_or_infinity_leave_others_right(which: int, bad: float) -> None:
    parts = fused(40, batch=3)
    expected = attend_in(SMALL, *parts, 32**-0.5)
    parts[which][1, 0, 7] = bad
    found = attend_in(SMALL, *parts, 32**-0.5)
    assert torch.equal(found[::2], expected[::2]) and torch.equal(found[1, 1], expected[1, 1])
    reference = F.scaled_dot_product_attention(*(t.float() for t in parts[:3]), parts[3])
    assert torch.equal(found[1, 0].isfinite(), reference[1, 0].isfinite())


@pytest.mark.interpreted
def test_offsets_over_32_bits() -> None:
    """The second image, the second head and token 32 each lie further than that from the first; few pages of the 6 GB
    are ever written."""
    far, cut = 2**31 + 64, Tiles(16, 16, 16, 4, 1)
    _, k, _, logs = fused(34, 16)
    room = torch.empty(3 * far, dtype=torch.uint8).view(torch.float16)
    for shape, strides in (
        ((2, 1, 2, 16), (far, 16, 16)),
        ((1, 2, 2, 16), (16, far, 16)),
        ((1, 1, 34, 16), (16, 16, 2**26)),
    ):
        view = room.as_strided(shape, (*strides, 1))
        view.copy_(k[: shape[0], : shape[1], : shape[2]])
        check(view, view, view, logs[: shape[0], ..., : shape[2]], cut)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(
    ("d", "dtype"), [(64, torch.float16), (64, torch.bfloat16), (32, torch.float16), (80, torch.float16)]
)
def test_what_a_gpu_gets(d: int, dtype: torch.dtype, short: bool, arch: int) -> None:
    cut = tiles(197, d, dtype)
    numbers = constants(d, cut) | {"SHORT": short}
    cubin = compiled(_attend, arguments(dtype), numbers, warps=cut.warps, stages=cut.stages, arch=arch)
    assert cubin.spills == 0
    assert ("HGMMA" if arch == 90 else "HMMA") in cubin.mnemonics
    assert any(name.startswith("LDGSTS") and name.endswith(".128") for name in cubin.instructions), "copies of 16 bytes"
    assert "STG.E.128" in cubin.instructions


@pytest.mark.parametrize("dtype", TYPES)
def test_compilers_may_pass_the_scale_in_fp64(dtype: torch.dtype) -> None:
    """TorchInductor does, where a launch passes fp32."""
    cut = tiles(197, 64, dtype)
    for scale in ("fp32", "fp64"):
        types = arguments(dtype) | {"scale": scale}
        assert compiled(_attend, types, constants(64, cut), warps=cut.warps, stages=cut.stages).uses_tensor_cores


def arguments(dtype: torch.dtype) -> dict[str, str]:
    pointers = dict.fromkeys(("q", "k", "v", "out"), f"*{TYPES[dtype]}") | {"logs": "*fp32"}
    numbers = dict.fromkeys((*STRIDES[:-1], "heads", "queries", "n"), "i32")
    return pointers | numbers | {"scale": "fp32"}


def constants(d: int, cut: Tiles) -> dict[str, object]:
    shape = {"D": d, "WIDE": triton.next_power_of_2(d), "PACK": 8, "FAR": False, "PRECISION": "tf32", "logs_n": 1}
    ways = {"SHORT": False, "WAIT": True}
    return shape | ways | {"BM": cut.queries, "BN": cut.keys, "LAST": cut.last}
