"""Every method at every budget on images of yours, row by row, and the report of it: `compare_methods`."""

from tokenreduce.lab.comparing.measuring import Speed
from tokenreduce.lab.comparing.running import Comparison, compare_methods
from tokenreduce.lab.comparing.writing import write_report

__all__ = ["Comparison", "Speed", "compare_methods", "write_report"]
