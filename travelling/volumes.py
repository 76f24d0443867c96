"""Brain images: NIfTI files in, arrays (z, y, x) out, each file decoded once."""

import contextlib
import errno
import gzip
import math
import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from travelling.cache import ArrayFiles, memory_for_images
from travelling.checkpoint import replace_whole
from travelling.errors import InputError, name_file
from travelling.run import progress_bar

# NIfTI's data types with one value per voxel, by its code.
DATA_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
# What decides how a NIfTI-1 header is read, and where it is.
HEADER = np.dtype(
    {
        "names": ["dim", "datatype", "pixdim", "vox_offset", "qform_code", "sform_code", "quatern", "srow", "magic"],
        "formats": ["8i2", "i2", "8f4", "f4", "i2", "i2", "6f4", "12f4", "S4"],
        "offsets": [40, 70, 76, 108, 252, 254, 256, 280, 344],
        "itemsize": 348,
    }
)
LARGEST_OFFSET = 2**20  # bytes of header and extensions; more means that the header is damaged
LARGEST_LENGTH = 1e6  # mm, of a voxel or from the origin
GZIP_RATIO = 1032  # no byte of a gzip file can stand for more bytes than that
MINIMUM_VOXELS = 33  # per axis: five poolings by 2, rounded up, must leave 2 for the network's average pooling

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own warnings; what matters is an InputError


def open_image(path):
    """Read a 3-D NIfTI image with one value per voxel as a SimpleITK image (axes x, y, z; mm).

    Raises InputError for anything else; :func:`check_image` looks for damage inside the file, too.
    """
    return _read_voxels(_read_header(path)[0], path)


def check_image(path):
    """Read an image as :func:`open_image` does and raise InputError if it is damaged or not finite.

    Looks at the file's bytes as well, because ITK says nothing of two kinds of damage: what a truncated file
    lacks it takes for zeros, and a NaN or infinite voxel, too, becomes zero.
    """
    reader, header = _read_header(path)
    try:
        found, finite = _scan_voxels(path, header)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: damaged image ({error})") from None
    if found < header.length:
        raise InputError(f"{path}: damaged image (truncated: {found} of {header.length} bytes of voxels)")
    if found > header.length + LARGEST_OFFSET:
        raise InputError(f"{path}: damaged image (longer than the {header.length} bytes of voxels in its header)")
    image = _read_voxels(reader, path)
    with np.errstate(over="ignore"):
        voxels = sitk.GetArrayViewFromImage(image).astype(np.float32, copy=False)  # as batch() gives them
    if not finite or not np.isfinite(voxels).all():
        raise InputError(f"{path}: the image has voxels that are NaN or infinite (or too large for float32)")
    return image


class NiftiHeader(NamedTuple):
    """What the voxels of a NIfTI file are, and where."""

    shape: tuple  # x, y, z
    kind: np.dtype
    offset: int  # bytes
    length: int  # bytes


def read_nifti_header(path):
    """The :class:`NiftiHeader` of a 3-D image; raises InputError for anything else, and where it cannot be true.

    ITK takes many a damaged header for a good one, prints its complaints about others, and allocates whatever size
    a header claims.
    """
    try:
        with _open_bytes(path) as file:
            content = file.read(HEADER.itemsize)
        most = os.stat(path).st_size * (GZIP_RATIO if str(path).endswith(".gz") else 1)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: not a NIfTI image ({getattr(error, 'strerror', None) or error})") from None
    sizes = {"<": int.from_bytes(content[:4], "little"), ">": int.from_bytes(content[:4], "big")}
    if 540 in sizes.values():
        raise InputError(f"{path}: a NIfTI-2 image; NIfTI-1 is needed")
    order = next((order for order, size in sizes.items() if size == HEADER.itemsize == len(content)), None)
    if order is None:
        raise InputError(f"{path}: not a NIfTI image (it does not begin with a header)")
    fields = np.frombuffer(content, HEADER.newbyteorder(order))[0]
    if fields["magic"] != b"n+1":
        raise InputError(f"{path}: not a NIfTI image in one file (no 'n+1' at the end of its header)")
    axes, *shape = (int(number) for number in fields["dim"])
    if not 0 < axes <= len(shape) or min(shape[: min(axes, 3)]) < 1:
        raise InputError(f"{path}: damaged image (its header tells {axes} axes of {shape} voxels)")
    code = int(fields["datatype"])
    if axes < 3 or max(shape[3:axes], default=1) > 1 or code not in DATA_TYPES:
        raise InputError(
            f"{path}: a 3-D image with one value per voxel is needed, "
            f"this one is {_in_words(shape[:axes][::-1])}, data type {code}"
        )
    geometry = [fields["pixdim"][:4]]
    geometry += [fields[name] for name, use in (("quatern", "qform_code"), ("srow", "sform_code")) if fields[use] > 0]
    if not all((np.abs(numbers) < LARGEST_LENGTH).all() for numbers in geometry):  # not of NaN either
        raise InputError(f"{path}: damaged image (its voxel size or its orientation is no possible one)")
    offset = float(fields["vox_offset"])
    if not HEADER.itemsize + 4 <= offset <= LARGEST_OFFSET:
        raise InputError(f"{path}: damaged image (its voxels begin at byte {offset:g})")
    kind = np.dtype(order + DATA_TYPES[code])
    header = NiftiHeader(tuple(shape[:3]), kind, int(offset), math.prod(shape[:3]) * kind.itemsize)
    if header.offset + header.length > most:
        raise InputError(
            f"{path}: damaged image (truncated: its header tells {header.length} bytes of voxels, "
            f"the file has at most {max(most - header.offset, 0)})"
        )
    return header


def _open_bytes(path):
    return gzip.open(path) if str(path).endswith(".gz") else open(path, "rb")


def _scan_voxels(path, header):
    """Read a file from its first voxel on: (bytes, whether all voxels are finite).

    Reads to the end, which checks an archive, unless that is much later than the header says.
    """
    length, finite = 0, True
    with _open_bytes(path) as file:
        file.seek(header.offset)
        for chunk in iter(lambda: file.read(2**22), b""):
            length += len(chunk)
            if header.kind.kind == "f":
                number = len(chunk) // header.kind.itemsize
                finite &= bool(np.isfinite(np.frombuffer(chunk, header.kind, number)).all())
            if length > header.length + LARGEST_OFFSET:
                break
    return length, finite


def _read_header(path):
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: not a .nii or .nii.gz file")
    header = read_nifti_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NiftiImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: not a NIfTI image ({_reason(error)})") from None
    return reader, header


def _read_voxels(reader, path):
    try:
        return reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: unreadable image ({_reason(error)})") from None


def write_image(image, path):
    """Write a SimpleITK image such that ``path`` is at any moment the old file or the whole new one.

    Raises OSError where that fails, for example on a full disk.
    """
    partial = path.with_name(f".part_{path.name}")
    try:
        sitk.WriteImage(image, str(partial))
        check_image(partial)  # ITK does not notice every failure
        replace_whole(partial, path)
    except (RuntimeError, InputError):
        with name_file(path):
            _refuse_full_disk(partial, math.prod(image.GetSize()) * image.GetSizeOfPixelComponent())
        raise OSError(errno.EIO, "could not be written", str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def _refuse_full_disk(path, length):
    """Raise OSError where a file cannot grow by ``length`` bytes: ITK does not say why it failed."""
    with open(path, "ab") as file:
        os.posix_fallocate(file.fileno(), file.tell(), length)


def to_array(image):
    """SimpleITK image (x, y, z) -> array (z, y, x) of its own data type."""
    return sitk.GetArrayFromImage(image)


def _reason(error):
    """The last line of ITK's message says what is wrong; the others say where in ITK."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("ITK ERROR: ") if lines else type(error).__name__


def for_each_image(function, paths, description):
    """Call ``function(path)`` for each path, several at a time, under a progress bar; raises what it raises."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in progress_bar(pool.map(function, paths), total=len(paths), desc=description, unit="image"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class Volumes:
    """The images of one or more cohorts, which all must have one shape; each is decoded once.

    ``shape`` is (z, y, x) in voxels, known once a cohort is added. Decoded images are kept in their own data type: in
    memory up to ``cache_gb`` (10^9 bytes; None: half of what is free), as a rule those that were added first, the
    others in files in ``cache_folder``, which is made when the first one needs it.
    """

    def __init__(self, cache_gb, cache_folder):
        self.shape = None
        self._first = None  # the image that set the shape
        self._files = {}  # subject -> NIfTI file
        self._memory = {}  # NIfTI file -> array
        self._array_files = ArrayFiles(cache_folder)
        self._stored = {}  # NIfTI file -> .npy file
        self._free = memory_for_images(cache_gb)  # bytes
        self._reservation = threading.Lock()
        self._buffers = [np.empty((0,)), np.empty((0,))]  # of batch()

    def add(self, cohort):
        """Add the images of a cohort, checking the headers only; raises InputError for the first bad one."""
        for path in cohort["Path"]:
            _, header = _read_header(path)
            shape = tuple(reversed(header.shape))  # x, y, z -> z, y, x
            if self.shape is None:
                self.shape, self._first = shape, path
            if shape != self.shape:
                raise InputError(
                    f"{path}: {_in_words(shape)} voxels, but {self._first} has {_in_words(self.shape)}; "
                    "all images must have one shape"
                )
            if min(shape) < MINIMUM_VOXELS:
                raise InputError(
                    f"{path}: {_in_words(shape)} voxels; the network needs {MINIMUM_VOXELS} along every axis"
                )
        self._files.update(zip(cohort["Subject"], cohort["Path"], strict=True))

    def decode(self):
        """Decode and check every image once; raises InputError for a bad one, OSError where a file cannot be written.

        Returns what a log should say of it: a list of lines, empty where all fits into memory.
        """
        for_each_image(self._decode, list(self._files.values()), "reading images")
        if not self._stored:
            return []
        size = sum(path.stat().st_size for path in self._stored.values()) / 1e9
        return [
            f"{len(self._memory)} decoded images are in memory (--cache-gb), "
            f"{len(self._stored)} in {self._array_files.folder} ({size:.1f} GB, --cache-dir)"
        ]

    def _decode(self, path):
        stored = self._array_files.find(path)
        array = to_array(check_image(path)) if stored is None else np.load(stored, mmap_mode="r")
        with self._reservation:
            fits = array.nbytes <= self._free
            self._free -= array.nbytes if fits else 0
        if fits:
            self._memory[path] = np.array(array) if stored else array
        else:
            self._stored[path] = stored or self._array_files.store(path, array)

    def batch(self, subjects):
        """Images of the subjects as float32 of shape (subjects, z, y, x, 1).

        The array is overwritten by the next call but one: fresh memory for every batch can cost more than the copy.
        """
        buffer, other = self._buffers
        if len(subjects) > len(buffer):
            buffer = np.empty((len(subjects), *self.shape, 1), np.float32)
        self._buffers = [other, buffer]
        images = buffer[: len(subjects)]
        for image, subject in zip(images, subjects, strict=True):
            image[..., 0] = self._array(self._files[subject])
        return images

    def batches(self, groups):
        """Yield :meth:`batch` of every group of subjects; the next is made ready while the caller works on one."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.batch, groups[0])
            for following in groups[1:]:
                images = ahead.result()
                ahead = pool.submit(self.batch, following)
                yield images
            yield ahead.result()

    def expect(self, subjects):
        """Have the system read the files of these subjects in the background: a batch of them is needed soon."""
        for subject in subjects:
            path = self._files[subject]
            if path not in self._memory:
                with contextlib.suppress(OSError), open(self._stored.get(path, path), "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def _array(self, path):
        if path in self._memory:
            return self._memory[path]
        try:
            return np.load(self._stored[path], mmap_mode="r")
        except (OSError, ValueError):  # somebody has cleaned up
            return to_array(open_image(path))


def _in_words(shape):
    return " x ".join(str(voxels) for voxels in reversed(shape))  # as users know it: x, y, z
