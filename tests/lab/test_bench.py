"""`tokenreduce bench`: what it measures, on a tiny model; never how long something took."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import tokenreduce
from tokenreduce.cli.arguments import literal, parse_options
from tokenreduce.cli.bench import bench
from tokenreduce.errors import InvalidTypeError, InvalidValueError, TokenReduceError
from tokenreduce.forward.marks import patch_of
from tokenreduce.lab.lanes import limit_lane, patched_lane, twin, unpatched_lane
from tokenreduce.lab.speed import Arm, compare, slower_sentences
from tokenreduce.lab.speed.profiling import MIB, attention_backend, peak_memory
from tokenreduce.lab.speed.stages import stage_microseconds
from tokenreduce.lab.speed.timing import Times, bootstrap_interval, interleave, quantile

CPU = torch.device("cpu")
ARMS = [Arm("tome", flops=0.7), Arm("evit", ratio=0.5), Arm("tome", r=3, metric="features")]
NUMBERS = [
    *("batch_size", "macs", "flops_share", "tokens_left", "median_ms", "p90_ms", "images_per_second"),
    *("speedup", "limit_share", "peak_memory_mib", "plan_us", "apply_us"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 10}
    return VisionTransformer(**(shape | changes)).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def quick(model: nn.Module, arms: list[Arm] = ARMS, **arguments: Any) -> list[dict[str, Any]]:
    return compare(model, arguments.pop("inputs", images()), arms, rounds=3, min_time=0, **arguments)


def tokens_of_each_layer(model: nn.Module, image: Tensor) -> list[int]:
    """Tokens, protected ones too, that reach the first Linear of each block's MLP."""
    seen: list[int] = []
    blocks: Any = model.blocks
    hooks = [b.mlp.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])) for b in blocks]
    model(image)
    for hook in hooks:
        hook.remove()
    return seen


# compare


def test_rows_have_every_key_and_finite_values() -> None:
    rows = quick(tiny_vit(), inputs=[images(1), images(2)])
    assert [(row["method"], row["budget"], row["batch_size"]) for row in rows] == [
        (method, budget, size)
        for size in (1, 2)
        for method, budget in (("unpatched", None), ("tome", "flops=0.7"), ("evit", "ratio=0.5"), ("tome", "r=3"))
    ]
    for row in rows:
        assert all(math.isfinite(row[key]) and row[key] >= 0 for key in NUMBERS), row
        low, high = row["speedup_interval"]
        assert low <= row["speedup"] <= high and row["median_ms"] <= row["p90_ms"]
        assert row["attention"] == "flash (CPU)" and row["uncounted"] == {}
        assert row["images_per_second"] == pytest.approx(1000 * row["batch_size"] / row["median_ms"])
        assert row["peak_memory_mib"] > 0 and (row["method"] == "unpatched" or min(row["plan_us"], row["apply_us"]) > 0)
    assert json.loads(json.dumps(rows)) == rows
    assert rows[3]["options"] == {"metric": "features"}


def test_macs_and_tokens_are_those_of_the_patched_model() -> None:
    model = tiny_vit()
    unpatched, *reduced = quick(model)
    base = tokenreduce.count_flops(model, images(1)).total
    assert (unpatched["macs"], unpatched["flops_share"], unpatched["tokens_left"]) == (base, 1.0, 16)
    for row, arm in zip(reduced, ARMS, strict=True):
        patched = tokenreduce.patch(twin(model), arm.method, **arm.arguments)
        assert row["macs"] == tokenreduce.count_flops(patched, images(1)).total
        assert row["flops_share"] == row["macs"] / base
        assert row["tokens_left"] == tokenreduce.report(patched).tokens_left < 16


def test_identity_has_no_tokens_to_slice() -> None:
    rows = quick(
        tiny_vit(dynamic_img_size=True), [Arm("tome", r=0), Arm("tome", r=4)], inputs=torch.randn(1, 3, 48, 48)
    )
    assert [row["tokens_left"] for row in rows] == [36, 36, 24]
    assert all(math.isfinite(row["limit_share"]) for row in rows)


@pytest.mark.parametrize("patched_before", [False, True])
def test_the_given_model_stays_as_it_is(patched_before: bool) -> None:
    model = tiny_vit().train()
    if patched_before:
        tokenreduce.patch(model, "random", r=2)
    modules = {name: (type(m), dict(m._forward_hooks), m.training) for name, m in model.named_modules()}
    weights = {name: (id(p), p.detach().clone()) for name, p in model.state_dict(keep_vars=True).items()}
    for dtype in (torch.float32, torch.bfloat16):
        rows = quick(model, [Arm("evit", flops=0.7)], inputs=images().to(dtype))
        assert rows[0]["flops_share"] == 1 and rows[0]["tokens_left"] == 16
    assert {name: (type(m), dict(m._forward_hooks), m.training) for name, m in model.named_modules()} == modules
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == weights[name][0] and torch.equal(tensor, weights[name][1])
    if patched_before:
        assert tokenreduce.report(model).method == "random"


def test_post_norm_blocks_have_a_limit() -> None:
    rows = quick(tiny_vit(block_fn=ResPostBlock), [Arm("tome", r=3)])
    assert rows[1]["limit_share"] > 0


def test_a_family_that_cannot_slice_has_no_limit() -> None:
    """Between windows all tokens are needed."""
    model = VisionTransformerSAM(
        img_size=32, patch_size=4, embed_dim=32, depth=3, num_heads=2, window_size=4, global_attn_indexes=(1,)
    )
    rows = quick(model.eval(), [Arm("tome", r=3)])
    assert rows[1]["limit_share"] is None and math.isfinite(rows[1]["speedup"])


def test_progress_runs_from_zero_to_one() -> None:
    seen: list[float] = []
    quick(tiny_vit(), ARMS[:1], progress=lambda fraction, what: seen.append(fraction))
    assert seen == sorted(seen) and 0 < seen[0] < 0.2 and seen[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"inputs": []}, InvalidTypeError),
        ({"inputs": torch.zeros(0, 3, 32, 32)}, InvalidTypeError),
        ({"inputs": [images(), images().double()]}, InvalidValueError),
        ({"arms": []}, InvalidTypeError),
        ({"arms": ["tome"]}, InvalidTypeError),
        ({"arms": [Arm("tom", flops=0.6)]}, InvalidValueError),
        ({"arms": [Arm("tome")]}, InvalidTypeError),
        ({"rounds": 0}, InvalidValueError),
        ({"min_time": -1}, InvalidValueError),
        ({"model": nn.Linear(2, 2)}, InvalidValueError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        compare(**({"model": tiny_vit(), "inputs": images(), "arms": ARMS} | arguments))


def test_sentences_for_slower_rows_only() -> None:
    row = {"method": "tome", "budget": "flops=0.6", "batch_size": 1}
    rows = [row | {"speedup": speedup} for speedup in (0.934, 0.996, 1.2)] + [{"method": "unpatched", "speedup": 1.0}]
    assert slower_sentences(rows) == [
        "tome at flops=0.6 is slower than the unpatched model at batch 1 (0.93 x): reduction does not pay here."
    ]


# lanes


@pytest.mark.parametrize("arm", [*ARMS, Arm("pool", flops=0.6), Arm("random", r=[5, 0, 2])], ids=repr)
def test_the_limit_has_the_token_counts_of_the_patched_model(arm: Arm) -> None:
    model = tiny_vit()
    patched = patched_lane(model, arm)
    reduced = tokens_of_each_layer(patched, images())
    assert reduced[-1] == tokenreduce.report(patched).tokens_left + 1 < 17
    with limit_lane(model, tokenreduce.report(patched).tokens, "mid") as limit:
        assert tokens_of_each_layer(limit, images()) == reduced
    assert tokens_of_each_layer(model, images()) == [17, 17, 17]


def test_lanes_share_weights_and_nothing_else() -> None:
    model = tiny_vit()
    lane = unpatched_lane(model, images())
    assert all(a is b for a, b in zip(lane.parameters(), model.parameters(), strict=True))
    assert not set(map(id, lane.modules())) & set(map(id, model.modules()))
    assert torch.equal(lane(images()), model(images()))
    half = unpatched_lane(model, images().half())
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# timing


def test_every_lane_runs_in_every_round_and_none_is_always_first() -> None:
    calls: list[str] = []
    lanes = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    times = interleave(lanes, 3, 0, lambda: None)
    timed = calls[-9:]
    assert [timed[i : i + 3] for i in (0, 3, 6)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert all(len(lane.rounds) == 3 for lane in times.values())


def test_fast_lanes_run_several_times_a_turn() -> None:
    times = interleave({"a": lambda: None}, 1, 1e-3, lambda: None)
    assert len(times["a"].rounds[0]) > 1


def test_statistics() -> None:
    slow, fast = Times(((2.0, 4.0), (8.0, 8.0))), Times(((1.0, 1.0), (2.0, 2.0)))
    assert (slow.median, slow.ratios(fast)) == (6.0, [3.0, 4.0])
    assert Times((tuple(float(i) for i in range(11)),)).p90 == 9.0
    assert quantile([1, 2], 0.5) == 1.5
    assert bootstrap_interval([2.0, 2.0]) == (2.0, 2.0)
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 5.0]
    low, high = bootstrap_interval(values)
    assert 1.0 <= low < 1.25 < high <= 5.0 and bootstrap_interval(values) == (low, high)


# profiler


def test_peak_memory_of_a_known_program() -> None:
    def program() -> Tensor:
        a = torch.zeros(MIB // 4)  # 1 MiB
        b = torch.zeros(2 * MIB // 4)  # 3 MiB
        del a
        c = b * 2  # 4 MiB
        d = c[: MIB // 4] + 1  # 5 MiB, the peak
        del b, c
        return d + 1  # 2 MiB

    assert peak_memory(program, CPU) == pytest.approx(5, rel=0.001)
    assert peak_memory(lambda: None, CPU) == 0


def test_peak_memory_of_a_linear_layer_leaves_out_weights_and_input() -> None:
    layer, x = nn.Linear(512, 2048), torch.randn(256, 512)
    with torch.inference_mode():
        assert peak_memory(lambda: layer(x), CPU) == pytest.approx(2, rel=0.01)
        assert peak_memory(lambda: F.relu(layer(x)), CPU) == pytest.approx(4, rel=0.01)


def test_attention_backends_have_names() -> None:
    model, unfused = tiny_vit(), tiny_vit()
    for block in unfused.blocks:
        block.attn.fused_attn = False
    assert attention_backend(lambda: model(images())) == "flash (CPU)"
    assert attention_backend(lambda: unfused(images())) == "manual softmax"
    assert attention_backend(lambda: nn.Linear(2, 2)(torch.ones(2))) == "none"
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_backend(lambda: model(images())) == "math"

    def mixed() -> None:
        model(images())
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            model.blocks[0](torch.randn(1, 17, 32))

    assert attention_backend(mixed) == "flash (CPU) x 3 + math x 1"


# stages


def test_stages_leave_the_patched_model_as_it_was() -> None:
    model = tokenreduce.patch(tiny_vit(), "tome", r=3)
    reducer, before = patch_of(model).reducer, model(images())
    plan, apply = stage_microseconds(model, images())
    assert plan > 0 and apply > 0 and patch_of(model).reducer is reducer
    assert torch.equal(model(images()), before)
    assert all(type(token_map) is tokenreduce.TokenMap for _, token_map in tokenreduce.report(model).maps)
    assert stage_microseconds(tokenreduce.patch(model, "tome", r=0), images()) == (0, 0)


# command line


def run(*arguments: str) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("bench")(bench)
    return CliRunner().invoke(app, [*arguments, "--rounds", "2", "--min-time", "0", "--threads", "1"])


def test_command_prints_tables_and_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.json"
    result = run(
        *("--model", "fashion_vit", "--method", "tome,evit", "--r", "4,8", "--batch-size", "1,2"),
        *("--option", "tome.metric=features", "--json", str(file)),
    )
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "cpu, float32, 1 thread, tokenreduce" in words and "attention: flash (CPU)" in words
    data = json.loads(file.read_text())
    assert data["command"] == "bench" and data["environment"]["threads"] == 1
    assert data["settings"]["model"] == "fashion_vit" and data["settings"]["input"] == [1, 28, 28]
    found = [(row["method"], row["budget"], row["batch_size"]) for row in data["rows"]]
    arms = [("unpatched", None)] + [(method, f"r={r}") for method in ("tome", "evit") for r in (4, 8)]
    assert found == [(*arm, size) for size in (1, 2) for arm in arms]
    assert data["rows"][1]["options"] == {"metric": "features"} and data["rows"][3]["options"] == {}
    assert all(math.isfinite(row[key]) for row in data["rows"] for key in NUMBERS)
    slower = [row for row in data["rows"] if round(row["speedup"], 2) < 1]
    assert words.count("is slower than the unpatched model") == len(slower)


def test_command_takes_a_timm_model_of_another_size_and_dtype(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    result = run(
        *("--model", "vit_tiny_patch16_224", "--flops", "0.7", "--batch-size", "1", "--image-size", "64"),
        *("--dtype", "bfloat16", "--json", str(file)),
    )
    assert result.exit_code == 0, result.output
    data = json.loads(file.read_text())
    assert data["settings"]["input"] == [3, 64, 64] and data["settings"]["dtype"] == "bfloat16"
    assert data["rows"][0]["tokens_left"] == 16 and abs(data["rows"][1]["flops_share"] - 0.7) < 0.02


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "tomee", "--flops", "0.6"], "did you mean 'tome'?"),
        ([], "got no budget; give exactly one of --flops, --ratio and --r"),
        (["--flops", "0.6", "--r", "13"], "got --flops 0.6 and --r 13"),
        (["--flops", "half"], "--flops is 'half'; give numbers separated by commas"),
        (["--flops", "1.5"], "flops is 1.5"),
        (["--flops", "0.05"], "reachable minimum"),
        (["--r", "2.5"], "--r is '2.5'; give whole numbers"),
        (["--r", "2", "--batch-size", "1,x"], "--batch-size is '1,x'"),
        (["--r", "2", "--batch-size", "0"], "batch sizes are 1 or more"),
        (["--r", "2", "--dtype", "int8"], "unknown dtype 'int8'"),
        (["--r", "2", "--device", "tpu"], "unknown device 'tpu'"),
        (["--r", "2", "--device", "cuda:99"], "is not available"),
        (["--r", "2", "--image-size", "32"], "fashion_vit takes 28"),
        (["--r", "2", "--option", "metric"], "it must be key=value"),
        (["--r", "2", "--option", "metrics=keys"], "unknown option of tome 'metrics'"),
        (["--r", "2", "--option", "evit.metric=keys"], "unknown method in --option 'evit'"),
        (["--r", "2", "--method", "tome,evit", "--option", "metric=keys"], "such as tome.metric=keys"),
        (["--r", "2", "--model", "deit_smal_patch16_224"], "did you mean deit_small_patch16_224"),
        (["--r", "2", "--model", "resnet18"], "holds no backbone"),
        (["--r", "2", "--model", "resnet18", "--image-size", "64"], "timm cannot run resnet18 with --image-size 64"),
        (
            ["--r", "2", "--model", "vit_tiny_patch16_224", "--image-size", "8"],
            "timm cannot run vit_tiny_patch16_224 with",
        ),
    ],
)
def test_command_answers_bad_input_with_one_sentence(arguments: list[str], words: str) -> None:
    result = run("--model", "fashion_vit", *arguments)  # a later --model wins
    assert isinstance(result.exception, TokenReduceError) and words in str(result.exception), result.exception
    assert "\n" not in str(result.exception)


def test_options_read_as_python_values() -> None:
    assert [literal(text) for text in ("true", "None", "3", "0.5", "keys", "[1, 2]")] == [
        True,
        None,
        3,
        0.5,
        "keys",
        [1, 2],
    ]
    chosen = parse_options(["tome.metric=features", "evit.fuse=yes=no"], ["tome", "evit"])
    assert chosen == {"tome": {"metric": "features"}, "evit": {"fuse": "yes=no"}}
