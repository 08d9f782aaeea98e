"""A Ray cluster: one of this machine alone, or one that runs already."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from tokenreduce.errors import InvalidValueError

SECONDS = 5  # to wait for an address to answer


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected: to the cluster at `address` ("auto", HOST:PORT or ray://HOST:PORT), or to a new one of this
    machine that ends with the block. What the process has connected to before is used, and stays.

    Raises: ValueError if Ray is missing, or nothing answers at the address.
    """
    missing = [name for name in ("ray", "pyarrow") if find_spec(name) is None]
    if missing:
        raise InvalidValueError(
            f"embedding collections needs {' and '.join(missing)}, which the extra 'ray' brings: "
            "pip install 'tokenreduce[ray]'"
        )
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    quiet()
    if ray.is_initialized():
        yield ray
        return
    connect(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def quiet() -> None:
    """Ray Data tells its plans and bars where people look for ours."""
    from ray.data import DataContext

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def connect(ray: Any, address: str | None) -> None:
    if address is None:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        return
    if address != "auto":
        knock(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidValueError(
            f"--address {address}: there is no Ray cluster ({str(error).splitlines()[0]}); start one with ray start "
            "--head, or leave --address out"
        ) from None


def knock(address: str) -> None:
    """Raise unless something listens there: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise InvalidValueError(f"--address is {address!r}; give HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InvalidValueError(
            f"--address {address}: nothing answers there ({error}); ray start --head prints the address of its "
            "cluster, or leave --address out"
        ) from None
