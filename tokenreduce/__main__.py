"""`python -m tokenreduce`, which is how torchrun starts the command line."""

from tokenreduce.cli import main

main()
