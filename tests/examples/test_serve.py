"""The feature server over HTTP: answers, batches, refusals."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from scripts import example

import tokenreduce

WHY = "a library is not installed: pip install 'tokenreduce[serve]' httpx"
httpx = pytest.importorskip("httpx", reason=WHY)
uvicorn = pytest.importorskip("uvicorn", reason=WHY)
pytest.importorskip("fastapi", reason=WHY)

serve = example("serve")


@contextlib.contextmanager
def running(app: Any) -> Iterator[httpx.Client]:
    """A client of this app, which a real server runs on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended before it served"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def app(*arguments: str) -> Any:
    torch.manual_seed(0)  # for all the same random weights
    return serve.make_app(serve.parse(["--model", "test_vit", *arguments]))


PATCHED = ("--method", "ward", "--flops", "0.6", "--batch", "4", "--wait-ms", "300")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running(app(*PATCHED)) as client:
        yield client


def encoded(seed: int, mode: str = "RGB", form: str = "PNG", side: tuple[int, int] = (90, 70)) -> bytes:
    colours = torch.randint(0, 256, (5, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(colours.numpy()).resize(side).convert(mode).save(file, form)
    return file.getvalue()


def post(client: httpx.Client, data: bytes) -> dict[str, Any]:
    answer = client.post("/features", content=data)
    assert answer.status_code == 200, answer.text
    return answer.json()


@torch.no_grad()
def by_hand(data: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """The feature of one image by the unpatched and by the patched model, without a server."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = transform(Image.open(io.BytesIO(data)))[None]
    return model(image)[0], tokenreduce.patch(model, "ward", flops=0.6)(image)[0]


def test_features_are_those_of_the_patched_model(client: httpx.Client) -> None:
    (whole, fewer), found = by_hand(encoded(1)), torch.tensor(post(client, encoded(1))["feature"])
    assert torch.allclose(found, fewer, atol=1e-4) and not torch.allclose(found, whole, atol=1e-3)


def test_requests_that_come_together_share_batches_and_get_their_own_answers(client: httpx.Client) -> None:
    files = [encoded(seed) for seed in range(6)]
    single = [post(client, data) for data in files]
    assert [answer["batch"] for answer in single] == [1] * 6
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda data: post(client, data), files))
    assert max(answer["batch"] for answer in together) > 1
    assert all(answer["batch"] <= 4 for answer in together)
    one, many = (torch.tensor([answer["feature"] for answer in answers]) for answers in (single, together))
    assert torch.allclose(one, many, atol=1e-4)
    assert torch.cdist(one, one).add(torch.eye(6)).min() > 1e-2  # answers in another order would be seen


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_all_modes_are_read(client: httpx.Client, mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert len(post(client, encoded(2, mode, form))["feature"]) == 64


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"no image", 400),
        (encoded(3)[:200], 400),
        (encoded(3, form="JPEG")[:300], 400),
        (bytes(20 * 2**20 + 1), 413),
    ],
    ids=["empty", "text", "half a PNG", "half a JPEG", "too large"],
)
def test_what_is_no_image_gets_one_sentence(client: httpx.Client, data: bytes, status: int) -> None:
    answer = client.post("/features", content=data)
    assert answer.status_code == status
    assert answer.json()["detail"].endswith(".") and "\n" not in answer.json()["detail"]
    assert len(post(client, encoded(3))["feature"]) == 64  # and it goes on


def test_images_of_too_many_pixels_are_refused(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # twice as many are an error
    assert client.post("/features", content=encoded(3)).status_code == 400


def test_health_says_what_runs(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok", "model": "test_vit", "method": "ward", "flops": 0.6}
    assert client.get("/features").status_code == 405


def test_without_a_method_the_model_is_whole() -> None:
    with running(app()) as client:
        assert client.get("/health").json()["method"] is None
        whole, _ = by_hand(encoded(4))
        assert torch.allclose(torch.tensor(post(client, encoded(4))["feature"]), whole, atol=1e-4)


def test_a_failing_batch_does_not_end_the_server() -> None:
    calls = iter([True, False])

    class FailsOnce(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if next(calls):
                raise RuntimeError("once")
            return x

    batches = serve.Batches(FailsOnce(), 2, 0.0, "cpu")
    with pytest.raises(RuntimeError, match="once"):
        batches.submit(torch.ones(3)).result(10)
    assert batches.submit(torch.ones(3)).result(10) == ([1.0, 1.0, 1.0], 1)


def test_who_went_away_is_left_out() -> None:
    held = threading.Event()

    class Waits(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held.wait(10)
            return x

    batches = serve.Batches(Waits(), 1, 0.0, "cpu")
    first, second, third = (batches.submit(torch.full((1,), float(i))) for i in range(3))
    assert second.cancel()
    held.set()
    assert [first.result(10)[0], third.result(10)[0]] == [[0.0], [2.0]]
