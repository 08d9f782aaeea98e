import transformers as hf
from prompting import Row
from torch import nn

from ._idefics import config_of, idefics


def build() -> nn.Module:
    return hf.Idefics3ForConditionalGeneration(config_of(hf.Idefics3Config, hf.LlamaConfig))


def make_row() -> Row:
    return idefics("idefics3", build)
