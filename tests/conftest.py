import timm  # noqa: F401  adapters load only when their library is there
import torch

torch.set_num_threads(1)
