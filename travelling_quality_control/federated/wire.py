"""How a list of arrays becomes the parameters of a FLARE model, and back."""


def pack(arrays):
    """Arrays by their number, as text that sorts as the numbers do: data types and shapes survive the way."""
    return {f"{number:04d}": array for number, array in enumerate(arrays)}


def unpack(params):
    """The arrays of :func:`pack`, in their order."""
    return [params[number] for number in sorted(params or {})]
