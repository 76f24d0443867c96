"""Numbers in sentences."""


def some(number: int, what: str) -> str:
    """So many of a thing: "1 image", "2 images", "2 batches"."""
    return f"{number} {what if number == 1 else what + ('es' if what.endswith('ch') else 's')}"


def was(number: int) -> str:
    """The verb after a number."""
    return "was" if number == 1 else "were"
