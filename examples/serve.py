"""A server of image features: requests that come together are one batch, and the model processes fewer tokens.

    python examples/serve.py --method ward --flops 0.6                       # a DeiT-S with random weights
    python examples/serve.py --model vit_base_patch16_224 --pretrained       # any model of timm, unpatched
    curl --data-binary @cat.jpg http://127.0.0.1:8000/features               # {"feature": [...], "batch": 1}

The body of a request is the image file itself. It needs `pip install "tokenreduce[timm,serve]" torchvision`. One
process and one model: for more than one, start more of them, with fewer --threads each.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import timm
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

import tokenreduce

LARGEST = 20 * 2**20  # bytes of a file


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small_patch16_224", help="of timm")
    parser.add_argument("--pretrained", action="store_true", help="download the weights; without it they are random")
    parser.add_argument("--method", help="such as ward; without it the model stays unpatched")
    parser.add_argument("--flops", type=float, default=0.6, help="share of the model's multiply-adds left")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch, at most")
    parser.add_argument("--wait-ms", type=float, default=10, help="how long the first image of a batch waits")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: one for each core")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_args(arguments)


class Batches:
    """Runs the model in a thread of its own, on all images that arrive within `wait` seconds, at most `size`."""

    def __init__(self, model: Callable[[Tensor], Tensor], size: int, wait: float, device: str) -> None:
        self.model, self.size, self.wait, self.device = model, size, wait, device
        self.waiting: queue.SimpleQueue[tuple[Tensor, Future]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, image: Tensor) -> Future:
        """The future feature of one image, with the number of images in its batch."""
        future: Future = Future()
        self.waiting.put((image, future))
        return future

    def _run(self) -> None:
        while True:
            taken, end = [self.waiting.get()], time.monotonic() + self.wait
            while len(taken) < self.size:
                try:
                    taken.append(self.waiting.get(timeout=max(0, end - time.monotonic())))
                except queue.Empty:
                    break
            taken = [(image, future) for image, future in taken if future.set_running_or_notify_cancel()]
            if taken:
                self._answer(*zip(*taken, strict=True))

    @torch.inference_mode()
    def _answer(self, images: tuple[Tensor, ...], futures: tuple[Future, ...]) -> None:
        try:
            features = self.model(torch.stack(images).to(self.device)).float().cpu().tolist()
            for future, feature in zip(futures, features, strict=True):
                future.set_result((feature, len(images)))
        except Exception as error:  # the thread must go on: later images may be well
            for future in futures:
                future.set_exception(error)


async def body_of(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST:
            raise HTTPException(413, f"The file is larger than {LARGEST >> 20} MiB; send a smaller one.")
    return bytes(data)


def make_app(args: argparse.Namespace) -> FastAPI:
    model = timm.create_model(args.model, pretrained=args.pretrained, num_classes=0).eval().to(args.device)
    config = resolve_model_data_config(model)
    # Threads that read files give bytes: with arithmetic on tensors each would start PyTorch's threads for itself.
    transform = create_transform(**config, normalize=False)
    mean, std = (255 * torch.tensor(config[key], device=args.device)[:, None, None] for key in ("mean", "std"))
    if args.method:
        tokenreduce.patch(model, args.method, flops=args.flops)

    def predict(images: Tensor) -> Tensor:
        return model((images.float() - mean) / std)

    batches, app = Batches(predict, args.batch, args.wait_ms / 1000, args.device), FastAPI(title="Image features")
    about = {"model": args.model, "method": args.method, "flops": args.flops if args.method else None}

    def read(data: bytes) -> Tensor:
        try:
            return transform(Image.open(io.BytesIO(data)).convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            sentence = "The body is no image that can be read: send the bytes of a JPEG, PNG or WebP file."
            raise HTTPException(400, sentence) from error

    @app.post("/features")
    async def features(request: Request) -> dict:
        image = await asyncio.to_thread(read, await body_of(request))
        feature, batch = await asyncio.wrap_future(batches.submit(image))
        return {"feature": feature, "batch": batch}

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", **about}

    return app


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    uvicorn.run(make_app(args), host=args.host, port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
