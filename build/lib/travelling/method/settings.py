"""The options of the method itself: what the travelling model and its quality control are told."""

from dataclasses import dataclass

from travelling.method.protocol import PROTOCOLS
from travelling.option import METHOD, Options, changed, number, option, published


@dataclass(kw_only=True)
class Travelling(Options):
    """What decides how a model travels."""

    cycles: int = published("cycles in all; in each, all centers are visited", "-cycles", number(int, 1), 30)
    batch_size: int = published("images per training step", "-batch_size", number(int, 1), 5)
    protocol: str = option(
        "as the paper describes it, or as its published code does it (docs/protocols.md)",
        str,
        "corrected",
        choices=tuple(PROTOCOLS),
        group=METHOD,
    )
    learning_rate: float = option(
        "Adam's learning rate in cycle 0", number(float, 0), 1e-4, metavar="RATE", group=METHOD
    )
    seed: int = option(
        "of the travelling order; where training begins anew, of the weights and the dropout, too",
        number(int, 0, 2**31),
        42,
        group=METHOD,
    )


@dataclass(kw_only=True)
class WithoutControl(Travelling):
    """The same, without quality control."""

    epochs: int = published("epochs per visit to a center", "-epochs", number(int, 1), 1)


@dataclass(kw_only=True)
class Control(Travelling):
    """The same, with quality control."""

    batch_size: int = changed(Travelling, "batch_size", flag="--batch-size", group=METHOD)
    revisit: int = published(
        "cycles that a flagged image waits; it is revisited at the end of the last of them",
        "-revisit",
        number(int, 1),
        2,
        "CYCLES",
    )
    error: float = published(
        "tolerated rise of FPR or FNR, as a fraction of 1, per image of a training step",
        "-error",
        number(float, 0, 1),
        0.02,
        "RATE",
    )
