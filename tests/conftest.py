import choosing
import pytest
import timm  # noqa: F401  adapters load only when their library is there
import torch

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    choosing.full_product = "full" in config.option.markexpr.replace("not full", "")
