"""How many mm a registration of prepare_images.py misses, where the truth is known.

    python tests/benchmarks/registration_error.py                        synthetic heads (reproduce/raw_heads.py)
    python tests/benchmarks/registration_error.py --scans FILE [FILE...] real scans, moved by known transforms

Error: mean and largest distance, over the brain of the template, of where a point is put from where it belongs. A
synthetic head without deformation is the template, scaled and moved: the error is against the truth. Real scans have no
truth, only a known movement: the error is against the registration of the same scan without it, or, with --in-space
(scans that lie in MNI space already), against the movement alone. Movements: by 10, 20 and 30 degrees about random axes
and up to 20 mm; written as 1 mm voxels, 1 x 1 x 3 mm, oblique by 20 degrees, and as they are.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).parents[2] / "reproduce"))  # a folder of scripts

import raw_heads
from demo_images import anatomy_transform, draw_subject
from demo_subjects import generator

from prepare_images import registration
from prepare_images.template import BRAIN_CENTER, to_lps
from travelling.images.itk import read_image


def error(found, truth, points):
    """Mean and largest distance (mm) between two transforms of the same points."""
    apart = [np.subtract(found.TransformPoint(point), truth.TransformPoint(point)) for point in points]
    distances = np.linalg.norm(apart, axis=1)
    return distances.mean(), distances.max()


def rotation(rng, degrees, shift):
    """A movement about the brain's center: about a random axis, and by up to ``shift`` mm along x, y and z."""
    axis = rng.standard_normal(3)
    return sitk.VersorRigid3DTransform(
        (axis / np.linalg.norm(axis)).tolist(),
        math.radians(degrees),
        rng.uniform(-shift, shift, 3).tolist(),
        to_lps(BRAIN_CENTER),
    )


def register(scan):
    """The transform by which a scan without a mask is prepared: after N4."""
    return registration.register(registration.without_bias(scan, None, registration.HEAD_BIAS))[0]


def synthetic(degrees, protocol, spacing, seed, deformed=False):
    """A head of a known position: scan, and the true transform from scan to template."""
    row = {"Subject": f"b{seed}", "Study": f"c{protocol}", "Group_bin": seed % 2, "Sex": "FM"[seed % 2], "Scanner": "s"}
    traits, rng = draw_subject(row, 1.0, seed)
    position = rotation(generator(seed, "position"), degrees, raw_heads.SHIFT)
    size = sitk.ScaleTransform(3, [1 / traits["scale"]] * 3)
    size.SetCenter(to_lps(BRAIN_CENTER))
    anatomy = anatomy_transform(traits, rng) if deformed else size
    grid = raw_heads.scanner_grid(raw_heads.PROTOCOLS[protocol], spacing, rng)
    scan = raw_heads.make_head(row, traits, rng, grid, position, spacing, seed, anatomy)
    return sitk.Cast(scan, sitk.sitkFloat32), sitk.CompositeTransform([anatomy, position])


def moved(scan, movement, sizes, oblique):
    """A real scan whose head is moved, in other voxels (mm): new scan (p) = scan (movement (p))."""
    turn = sitk.VersorRigid3DTransform((0.6, 0.0, 0.8), math.radians(oblique))
    direction = np.array(turn.GetMatrix()).reshape(3, 3)
    size = np.ceil(250 / np.array(sizes)).astype(int)
    grid = sitk.Image(size.tolist(), sitk.sitkFloat32)
    grid.SetSpacing(list(sizes))
    grid.SetDirection(direction.ravel().tolist())
    middle = scan.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in scan.GetSize()])
    grid.SetOrigin((np.array(middle) - direction @ (np.array(sizes) * (size - 1) / 2)).tolist())
    return sitk.Resample(scan, grid, movement, sitk.sitkLinear, 0.0)


def main():
    """Measure, and print a row for each registration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", type=Path, default=[])
    parser.add_argument("--in-space", action="store_true", help="the scans lie in MNI space")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    points, rows = registration.brain_points(), []

    def told(name, found, truth):
        rows.append(error(found, truth, points))
        print(f"{name:60} mean {rows[-1][0]:5.2f} mm, largest {rows[-1][1]:5.2f} mm", flush=True)

    identity = sitk.AffineTransform(3)
    if not arguments.scans:
        for repeat in range(arguments.repeats):
            for protocol in range(len(raw_heads.PROTOCOLS)):
                for degrees in (0, 15, 30):
                    scan, truth = synthetic(degrees, protocol, 2.0, 10 * repeat + protocol)
                    found = sitk.CompositeTransform([truth, register(scan)])  # the last one is applied first
                    told(f"head of center {protocol}, tilted by {degrees} degrees", found, identity)
    for number, path in enumerate(arguments.scans):
        scan = sitk.Cast(read_image(path), sitk.sitkFloat32)
        reference = identity if arguments.in_space else register(scan)
        rng = np.random.default_rng(number)
        for degrees, sizes, oblique in (
            (10, (1, 1, 1), 0),
            (20, (1, 1, 3), 0),
            (30, (1, 1, 1), 20),
            (30, (2, 2, 2), 0),
        ):
            movement = rotation(rng, degrees, 20.0)
            affine = register(moved(scan, movement, [float(size) for size in sizes], oblique))
            found = sitk.CompositeTransform([movement, affine])
            told(f"{path.name}, {degrees} degrees, voxels {sizes}, oblique {oblique}", found, reference)
    means = np.array([mean for mean, _ in rows])
    print(f"{len(rows)} registrations: mean {means.mean():.2f} mm, worst {means.max():.2f} mm")


if __name__ == "__main__":
    main()
