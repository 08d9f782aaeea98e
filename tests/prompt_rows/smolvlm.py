import transformers as hf
from prompting import Row
from torch import nn

from ._idefics import config_of, idefics


def build() -> nn.Module:
    return hf.SmolVLMForConditionalGeneration(config_of(hf.SmolVLMConfig, hf.LlamaConfig))


def make_row() -> Row:
    return idefics("smolvlm", build)
