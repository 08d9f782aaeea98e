"""What a patch costs and saves on this machine: `compare` times it against the unpatched model and the limit."""

from tokenreduce.bench.comparison import compare, slower_sentences
from tokenreduce.bench.lanes import Arm

__all__ = ["Arm", "compare", "slower_sentences"]
