"""What every command line shares: its options, its error line and its exit status.

Imports nothing that is slow, so that ``--help`` answers at once.
"""

import argparse
import math
import os
import signal
import sys
import warnings
from pathlib import Path

from travelling import stopping
from travelling.console import Output
from travelling.errors import AlreadyDone, InputError, Stopped

FALSE_ALARMS = 0.01  # of the screen, unless told otherwise
AGE_EDGES = (60.0, 70.0)  # years


def run(main):
    """Call ``main()`` and exit with a status that says how it went; an error is one line on stderr.

    0: done. 1: the machine failed (disk full, no permission). 2: the input is wrong. 130, 143: interrupted.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr, may_fail=True)
    try:
        if sys.warnoptions:  # PYTHONWARNINGS=error, of another project, would end the run at any remark of a library
            warnings.resetwarnings()
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)  # as Python does
        with stopping.process_of_a_run():
            if os.name == "nt":
                raise InputError("Windows is not supported; its Subsystem for Linux (WSL) is: wsl --install")
            main()
            sys.stdout.flush()
    except AlreadyDone as message:
        print(message, file=sys.stderr)
    except Stopped as stop:
        _fail(128 + stop.signal, "interrupted; the same command goes on from here")
    except InputError as error:
        _fail(2, f"error: {error}")
    except OSError as error:
        _fail(1, f"error: {error.filename or 'input/output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail(128 + signal.SIGINT, "interrupted")
    except Exception as error:
        if not _is_lack_of_memory(error):
            raise
        _fail(1, "error: not enough memory; smaller batches, --precision bfloat16 or a smaller --cache-gb take less")
    finally:
        sys.stdout, sys.stderr = streams
    sys.exit(0)


def _is_lack_of_memory(error):
    """Of the machine, or of the GPU as TensorFlow or JAX report it (told by name: neither is imported here)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "ResourceExhaustedError"
        or "RESOURCE_EXHAUSTED" in str(error)
    )


def _fail(status, message):
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults, and one line instead of its usage where an option is wrong."""

    def __init__(self, description, prog=None):
        description = (description or "").strip()  # none under PYTHONOPTIMIZE=2
        super().__init__(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)

    def error(self, message):
        """Print the message and exit with status 2."""
        _fail(2, f"error: {message} (--help lists the options)")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        if action.default in (None, False):  # nothing to show: a required option, a flag, or said in words
            return action.help
        return super()._get_help_string(action)


def number(kind, low=-math.inf, high=math.inf):
    """An argparse type: an int or a float within [low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            word = "a whole number" if kind is int else "a number"
            bounds = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(f"'{text}' is not {word} {bounds}")
        return value

    return parse


def result_name(text):
    """An argparse type: a path whose last part begins the names of the results."""
    if not Path(text).name or text.endswith(("/", "..")):
        raise argparse.ArgumentTypeError(f"'{text}' is not a file name")
    return Path(text)


def add_training_options(parser, step_options=True):
    """The published options of the scripts that train; returns their group."""
    count = number(int, 1)
    group = parser.add_argument_group("published options")
    group.add_argument("-fn_train", type=Path, required=True, metavar="CSV", help="training set")
    group.add_argument(
        "-cycles", type=count, default=30, metavar="N", help="cycles in all; in each, all centers are visited"
    )
    if step_options:
        group.add_argument("-epochs", type=count, default=1, metavar="N", help="epochs per visit to a center")
        group.add_argument("-batch_size", type=count, default=5, metavar="N", help="images per training step")
    return group


def add_pretrained_options(group):
    """``-en`` and ``-pd``: the model to go on from."""
    group.add_argument("-en", type=Path, required=True, metavar="FILE", help="encoder to go on from (.keras or .h5)")
    group.add_argument("-pd", type=Path, required=True, metavar="FILE", help="its classifier (.keras or .h5)")


def add_method_options(parser, seed):
    """The further options of the scripts that train; ``seed`` is the published one. Returns the group."""
    group = parser.add_argument_group("method")
    group.add_argument(
        "--protocol",
        choices=["corrected", "published"],
        default="corrected",
        help="as the paper describes it, or as its published code does it (docs/protocols.md)",
    )
    group.add_argument(
        "--learning-rate", type=number(float, 0), default=1e-4, metavar="RATE", help="Adam's learning rate in cycle 0"
    )
    group.add_argument(
        "--seed",
        type=number(int, 0, 2**31),
        default=seed,
        help="of the travelling order; where training begins anew, of the weights and the dropout, too",
    )
    return group


def add_first_cycle_option(parser):
    """``--first-cycle`` of the scripts that go on from a pre-trained model."""
    parser.add_argument(
        "--first-cycle",
        type=number(int, 0),
        metavar="CYCLE",
        help="first cycle of this run (default: the one after the pre-trained model's)",
    )


def add_quality_control_options(parser, seed):
    """The options of quality control, wherever it runs; ``seed`` is the published one."""
    published = add_training_options(parser, step_options=False)
    add_pretrained_options(published)
    published.add_argument("-fn_test", type=Path, required=True, metavar="CSV", help="test set, which only home holds")
    published.add_argument(
        "-revisit",
        type=number(int, 1),
        default=2,
        metavar="CYCLES",
        help="cycles that a flagged image waits; it is revisited at the end of the last of them",
    )
    published.add_argument(
        "-error",
        type=number(float, 0, 1),
        default=0.02,
        metavar="RATE",
        help="tolerated rise of FPR or FNR, as a fraction of 1, per image of a training step",
    )
    published.add_argument("-fn_save", type=result_name, required=True, metavar="NAME", help="results, without '.csv'")
    method = add_method_options(parser, seed)
    method.add_argument("--batch-size", type=number(int, 1), default=5, metavar="N", help="images per training step")
    method.add_argument(
        "--allow-saturated",
        action="store_true",
        help="go on where the pre-trained model errs so much that verification cannot see harm",
    )
    add_first_cycle_option(parser)
    better = parser.add_argument_group("beyond the published method (docs/settings.md)")
    better.add_argument(
        "--rule",
        choices=["published", "evidence"],
        default="published",
        help="evidence: a step is harmful if it makes AUROC or rates worse by more than chance (paired tests)",
    )
    better.add_argument(
        "--screen", action="store_true", help="put images aside that look like nothing the model has learned of"
    )
    better.add_argument(
        "--false-alarms",
        type=number(float, 1e-6, 0.5),
        metavar="RATE",
        help=f"share of good images that --screen may suspect at a look (default: {FALSE_ALARMS})",
    )


def check_quality_control_options(parser, arguments):
    """Check how the options of quality control go together, and fill in what depends on others."""
    if arguments.false_alarms is not None and not arguments.screen:
        parser.error("--false-alarms: is an option of --screen")
    if arguments.screen and arguments.false_alarms is None:
        arguments.false_alarms = FALSE_ALARMS
    if arguments.output_folder == parser.get_default("output_folder"):
        arguments.output_folder = arguments.fn_save.with_name(f"{arguments.fn_save.name}_run")
    return arguments


def add_age_option(parser):
    """``--age-edges``, for all that evaluates by age."""
    parser.add_argument(
        "--age-edges",
        type=number(float, 0, 120),
        nargs="*",
        default=list(AGE_EDGES),
        metavar="YEARS",
        help="ages at which a new age group begins",
    )


def add_evaluation_options(parser):
    """``--eval-batch-size``, for the scripts that evaluate."""
    parser.add_argument(
        "--eval-batch-size",
        type=number(int, 1),
        metavar="N",
        help="test images at a time (default: as many as make two million voxels, at full size one)",
    )


def add_device_options(parser):
    """``--precision`` and ``--deterministic``, for every script that computes on a GPU where there is one."""
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the encoder's arithmetic; weights, their updates and the diagnosis are float32 in any case",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same results to the last bit in every run on the same GPU; slower (a CPU does it always)",
    )


def add_image_options(parser, folder="run_image_cache in the folder of the results, removed at the end"):
    """``--cache-gb`` and ``--cache-dir``, for every script that reads images; ``folder`` tells the latter's default."""
    parser.add_argument(
        "--cache-gb",
        type=number(float, 0),
        metavar="GB",
        help="memory for decoded images (default: half of what is free)",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="FOLDER",
        help=f"for the decoded images beyond that; it stays and may be shared by runs (default: {folder})",
    )
    parser.add_argument(
        "--reorient",
        action="store_true",
        help="turn images whose axes are only permuted or flipped as those of the first one are",
    )


def add_output_options(parser, default):
    """``--output-folder`` and ``--overwrite``."""
    parser.add_argument(
        "--output-folder", type=Path, default=Path(default), metavar="FOLDER", help="for the models of every cycle"
    )
    parser.add_argument(
        "--keep-every",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="keep the models of every N-th cycle (and of the last) only",
    )
    add_overwrite_option(parser)


def add_overwrite_option(parser):
    """``--overwrite``."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the results of another or of a complete run; an interrupted run goes on",
    )
