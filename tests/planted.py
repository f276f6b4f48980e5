"""Faults that the collector once had, to prove that tests catch them."""


def plant(fault: str) -> None:
    """Put the fault of that name into this process."""
