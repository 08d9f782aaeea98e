"""What a patch costs and saves on this machine: `compare` times it against the unpatched model and the limit."""

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.speed.comparison import compare, slower_sentences

__all__ = ["Arm", "compare", "slower_sentences"]
