"""The table that the bench prints."""


class Table:
    """Prints rows as they come."""

    def __init__(self):
        self.missed = 0

    def heading(self, text):
        print(f"\n{text:<52}{'measured':>12}  {'goal':>8}", flush=True)

    def row(self, name, value, goal=None, digits=1):
        """A figure; `goal` is the most it may be."""
        verdict = ""
        if goal is not None:
            self.missed += value > goal
            verdict = f"  ≤ {goal:>6g}  {'reached' if value <= goal else 'MISSED'}"
        print(f"  {name:<50}{value:>12.{digits}f}{verdict}", flush=True)
