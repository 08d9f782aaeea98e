"""The source that TorchInductor makes of a function's own Triton kernels, for a GPU that need not be there."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from cubins import Cubin, compiled
from torch import Tensor
from torch._functorch.aot_autograd import aot_module_simplified
from torch._inductor import config
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget

KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", re.DOTALL)
PROPERTIES = {
    "type": "cuda", "index": 0, "multi_processor_count": 132, "cc": 90, "major": 9, "minor": 0, "warp_size": 32,
    "regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024,
    "total_memory": 2**36, "name": "", "shared_memory_per_block_optin": 232448,
}  # fmt: skip


@contextmanager
def gpu_in_name() -> Iterator[None]:
    """What TorchInductor asks of a GPU is answered, as by an H100."""
    known = {name: PROPERTIES[name] for name in DeviceProperties._fields if name in PROPERTIES}
    target = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0)
    driver: Any = triton.runtime.driver
    with pytest.MonkeyPatch.context() as patch:
        for name, answer in {
            "is_available": True,
            "current_device": 0,
            "device_count": 1,
            "get_device_capability": (9, 0),
            "get_device_properties": SimpleNamespace(**PROPERTIES),
            "get_rng_state": torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": None,
        }.items():
            patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        patch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda *_: None)
        patch.setattr("torch._inductor.scheduler.has_triton", lambda: True)  # the answer may have been kept before
        patch.setattr(DeviceProperties, "create", staticmethod(lambda _: DeviceProperties(**known)))
        patch.setattr(type(driver), "active", property(lambda _: target))
        yield


def emitted(function: Callable[..., Any], *like: Tensor) -> dict[str, str]:
    """Sources of all kernels of `function`, which gives a tuple, for CUDA tensors like these, by their names."""
    codes: list[Any] = []

    def lower(graph: Any, inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        post_grad_passes(graph, is_inference=True)
        lowering = GraphLowering(graph, example_inputs=inputs, is_inference=True)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            codes.append(lowering.codegen()[0])
        return lambda *x: x

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with gpu_in_name(), config.patch(compile_threads=1), mode, V.set_fake_mode(mode), torch.no_grad():
        fakes = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in like]
        graph = make_fx(function)(*fakes)
        aot_module_simplified(
            graph, fakes, fw_compiler=lower, bw_compiler=lower, inference_compiler=lower,
            decompositions=select_decomp_table(),
        )  # fmt: skip
    return dict(KERNEL.findall(getattr(codes[0], "value", codes[0])))


def cubin(name: str, source: str, folder: Path) -> Cubin:
    """What becomes of the kernel `name` in its emitted source."""
    found = re.search(r"triton_meta=(\{'signature'.*\}),$", source, re.MULTILINE)
    assert found is not None, source
    meta = re.sub(r"DeviceProperties\(.*?\)", "None", found[1])
    described: Mapping[str, Any] = ast.literal_eval(meta)
    launch = re.search(r"'num_warps': (\d+), 'num_stages': (\d+)", source)
    warps, stages = map(int, launch.groups()) if launch else (4, 3)
    file = folder / f"{name}.py"
    file.write_text(re.sub(r"@triton_heuristics\.\w+\(.*?\n\)\n", "", source, flags=re.DOTALL))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    types = {key: kind for key, kind in described["signature"].items() if kind != "constexpr"}
    return compiled(getattr(module, name), types, described["constants"], warps=warps, stages=stages)
