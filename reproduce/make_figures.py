"""The figures of a study, from its raw records: PNG and PDF, one style, safe for the colour-blind.

Metrics by cycle of the clean, dirty and quality-controlled models; and for every run of quality control the rates of
misdiagnosis along its verifications, its flags by center and cycle, and what another -error would have flagged.

Example:
    python reproduce/make_figures.py demo --out demo/figures
"""

from pathlib import Path

from travelling import command


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    parser.add_argument("study", type=Path, metavar="STUDY_FOLDER", help="folder of a study")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the figures (default: STUDY_FOLDER/figures)")
    add_image_option(parser)
    return parser.parse_args()


def add_image_option(parser):
    """``--with-images``."""
    parser.add_argument(
        "--with-images",
        action="store_true",
        help="also show slices of the images that were eliminated or flagged by mistake (may be patients' brains)",
    )


def main():
    """Draw the figures."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from study_figures import make_figures, write_figures
    from study_records import read_study

    figures = make_figures(read_study(arguments.study), arguments.with_images)
    folder = arguments.out or arguments.study / "figures"
    write_figures(figures, folder)
    print(f"{len(figures)} figures as PNG and PDF: {folder}")


if __name__ == "__main__":
    command.run(main)
