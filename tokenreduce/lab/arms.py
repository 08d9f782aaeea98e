"""`Arm`: a way to reduce a model, as a value."""

from __future__ import annotations

from typing import Any

BUDGETS = ("ratio", "r", "flops", "schedule", "keep")


class Arm:
    """A way to reduce the model: a method and the arguments of `tokenreduce.patch`, as in `Arm("tome", flops=0.6)`."""

    def __init__(self, method: str, **arguments: Any) -> None:
        self.method, self.arguments = method, arguments

    @property
    def budget(self) -> str:
        """The budget as the user would type it, such as "flops=0.6"; "none" if there is none."""
        return next((f"{name}={self.arguments[name]}" for name in BUDGETS if name in self.arguments), "none")

    @property
    def options(self) -> dict[str, Any]:
        """The arguments besides the budget."""
        return {name: value for name, value in self.arguments.items() if name not in BUDGETS}

    @property
    def name(self) -> str:
        """The method, with its budget if it has one."""
        return self.method if self.budget == "none" else str(self)

    def __repr__(self) -> str:
        return f"{self.method} at {self.budget}"
