"""Requests a second of examples/serve.py, unpatched and patched, over HTTP on this machine.

    python benchmarks/serving.py            # a DeiT-S with random weights; some minutes on two cores
    python benchmarks/serving.py --methods ward tome --rounds 9

All servers are up at once, and the same client asks one after the other, in an order that turns with each round. A
request is a JPEG, decoded by the server; the client sends bytes that it made before. The other servers are idle then.
Server and client share the cores: what the client takes of them is in the results, and so is what decoding takes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
LIBRARIES = ("torch", "timm", "fastapi", "uvicorn", "httpx", "pillow")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224", help="of timm, random weights")
    parser.add_argument("--methods", nargs="+", default=["ward"])
    parser.add_argument("--flops", type=float, default=0.6)
    parser.add_argument("--batch", type=int, default=16, help="images in a batch, at most")
    parser.add_argument("--concurrency", type=int, default=32, help="requests that are always under way")
    parser.add_argument("--requests", type=int, default=96, help="in a round, for each server")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, in each server")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def photographs(count: int = 32) -> list[bytes]:
    """JPEGs of 500 x 375 pixels: coarse colours with finer noise, so that they weigh what photographs do."""
    generator, files = torch.Generator().manual_seed(0), []
    for _ in range(count):
        pixels = torch.zeros(3, 375, 500)
        for side, strength in ((4, 255.0), (32, 90.0), (128, 40.0)):
            noise = torch.rand(1, 3, side, side, generator=generator) * strength
            pixels += torch.nn.functional.interpolate(noise, (375, 500), mode="bicubic")[0]
        file, top = io.BytesIO(), pixels.amax()
        Image.fromarray((pixels.clamp(0) * 255 / top).byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@contextlib.contextmanager
def server(args: argparse.Namespace, method: str | None) -> Iterator[str]:
    """The address of a server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), "--model", args.model, "--port", str(port)]
    command += ["--batch", str(args.batch), "--threads", str(args.threads)]
    command += ["--method", method, "--flops", str(args.flops)] if method else []
    process = subprocess.Popen(command)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_up(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()


def wait_until_up(address: str, process: subprocess.Popen) -> None:
    while True:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{address}/health").raise_for_status()
            return
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode} before it served")
        time.sleep(0.2)


async def ask(address: str, files: list[bytes], count: int, concurrency: int) -> dict[str, Any]:
    """One round: `count` requests, of which `concurrency` are always under way."""
    numbers, seconds, batches = iter(range(count)), [], []
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:

        async def one_after_the_other() -> None:
            for number in numbers:
                start = time.perf_counter()
                answer = await client.post("/features", content=files[number % len(files)])
                seconds.append(time.perf_counter() - start)
                batches.append(answer.raise_for_status().json()["batch"])

        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "requests_per_second": count / wall,
        "latency_ms": 1000 * statistics.median(seconds),
        "batch": statistics.fmean(batches),
        "client_ms": 1000 * cpu / count,
    }


def decoding_ms(args: argparse.Namespace, files: list[bytes]) -> float:
    """What reading a file costs a server: decoding and resizing, on one core."""
    import timm

    model = timm.create_model(args.model, num_classes=0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), normalize=False)
    transform(Image.open(io.BytesIO(files[0])).convert("RGB"))  # the first call is slower
    start = time.process_time()
    for data in files:
        transform(Image.open(io.BytesIO(data)).convert("RGB"))
    return 1000 * (time.process_time() - start) / len(files)


def measure(args: argparse.Namespace) -> dict[str | None, list[dict[str, Any]]]:
    """Rounds of each method; None is the unpatched model."""
    files = photographs()
    methods: list[str | None] = [None, *args.methods]
    found: dict[str | None, list[dict[str, Any]]] = {method: [] for method in methods}
    with contextlib.ExitStack() as stack:
        addresses = {method: stack.enter_context(server(args, method)) for method in methods}
        for address in addresses.values():  # the first forwards are slower
            asyncio.run(ask(address, files, 2 * args.batch, args.concurrency))
        for number in range(args.rounds):
            for method in methods[number % len(methods) :] + methods[: number % len(methods)]:
                one = asyncio.run(ask(addresses[method], files, args.requests, args.concurrency))
                found[method].append(one)
                print(f"round {number}, {method}: {one['requests_per_second']:.2f} requests/s", flush=True)
    return found


def rows(found: dict[str | None, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over the rounds; the gain is that of each round, over the unpatched server's in the same one."""
    made = []
    for method, rounds in found.items():
        pairs = zip(rounds, found[None], strict=True)
        gains = [one["requests_per_second"] / whole["requests_per_second"] for one, whole in pairs]
        medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        every = {"rounds": [one["requests_per_second"] for one in rounds], "gains": gains}
        made.append({"method": method or "unpatched", **medians, "gain": statistics.median(gains), **every})
    return made


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    load = os.getloadavg()[0]
    data: dict[str, Any] = {name: getattr(args, name) for name in ("model", "flops", "batch", "concurrency", "threads")}
    data |= {"requests": args.requests, "cores": os.cpu_count(), "load_before": load}
    data |= {"decoding_ms": decoding_ms(args, photographs())}
    data |= {"versions": {name: importlib.metadata.version(name) for name in LIBRARIES}, "rows": rows(measure(args))}
    args.out.write_text(json.dumps(data, indent=1) + "\n")
    for row in data["rows"]:
        print(f"{row['method']}: {row['requests_per_second']:.2f} requests/s, {row['gain']:.2f} x", end="; ")
        print(f"in batches of {row['batch']:.1f}; of each request {row['client_ms']:.1f} ms are the client's")
    print(f"decoding takes {data['decoding_ms']:.1f} ms of one core; load before: {load:.2f}")


if __name__ == "__main__":
    main()
