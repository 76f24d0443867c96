"""Brain images: NIfTI files in, arrays (z, y, x) out, each file decoded once."""

import contextlib
import errno
import gzip
import math
import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import SimpleITK as sitk

from travelling.cache import SHARE, ArrayFiles, free_memory
from travelling.errors import InputError
from travelling.run import progress_bar

# NIfTI-1's data types that can hold values that are not finite, by its code.
FLOATING_TYPES = {16: "f4", 64: "f8"}
LARGEST_OFFSET = 2**20  # bytes of header and extensions; more means that the header is damaged
MINIMUM_VOXELS = 33  # per axis: five poolings by 2, rounded up, must leave 2 for the network's average pooling

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own warnings; what matters is an InputError


def open_image(path):
    """Read a 3-D NIfTI image with one value per voxel as a SimpleITK image (axes x, y, z; mm).

    Raises InputError for anything else; :func:`check_image` looks for damage inside the file, too.
    """
    return _read_voxels(_read_header(path), path)


def check_image(path):
    """Read an image as :func:`open_image` does and raise InputError if it is damaged or not finite.

    Looks at the file's bytes as well, because ITK says nothing of two kinds of damage: what a truncated file
    lacks it takes for zeros, and a NaN or infinite voxel, too, becomes zero.
    """
    reader = _read_header(path)
    offset = float(reader.GetMetaData("vox_offset"))
    length = math.prod(reader.GetSize()) * int(reader.GetMetaData("bitpix")) // 8
    if not 0 <= offset <= LARGEST_OFFSET:
        raise InputError(f"{path}: damaged image (its voxels begin at byte {offset:g})")
    try:
        found, finite = _scan_voxels(path, int(offset), int(reader.GetMetaData("datatype")))
    except (EOFError, OSError, struct.error, zlib.error) as error:
        raise InputError(f"{path}: damaged image ({error})") from None
    if found < length:
        raise InputError(f"{path}: damaged image (truncated: {found} of {length} bytes of voxels)")
    image = _read_voxels(reader, path)
    if not finite or not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise InputError(f"{path}: the image has voxels that are NaN or infinite")
    return image


def _scan_voxels(path, offset, data_type):
    """Read a file from byte ``offset`` to its end, which also checks an archive: (bytes, whether all are finite)."""
    length, finite = 0, True
    with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
        byte_order = "<" if struct.unpack("<i", file.read(4))[0] == 348 else ">"  # a header begins with its size
        kind = np.dtype(byte_order + FLOATING_TYPES[data_type]) if data_type in FLOATING_TYPES else None
        file.seek(offset)
        for chunk in iter(lambda: file.read(2**22), b""):
            length += len(chunk)
            if kind:
                finite &= bool(np.isfinite(np.frombuffer(chunk, kind, len(chunk) // kind.itemsize)).all())
    return length, finite


def _read_header(path):
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: not a .nii or .nii.gz file")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NiftiImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: not a NIfTI image ({_reason(error)})") from None
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise InputError(
            f"{path}: a 3-D image with one value per voxel is needed, "
            f"this one is {reader.GetDimension()}-D with {reader.GetNumberOfComponents()}"
        )
    return reader


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
        partial.replace(path)
    except (RuntimeError, InputError):
        raise OSError(errno.EIO, "could not be written", str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def to_array(image):
    """SimpleITK image (x, y, z) -> array (z, y, x) of its own data type."""
    return sitk.GetArrayFromImage(image)


def _reason(error):
    """The last line of ITK's message says what is wrong; the others say where in ITK."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("ITK ERROR: ") if lines else type(error).__name__


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
        self._free = SHARE * free_memory() if cache_gb is None else cache_gb * 1e9  # bytes
        self._reservation = threading.Lock()
        self._buffers = [np.empty((0,)), np.empty((0,))]  # of batch()

    def add(self, cohort):
        """Add the images of a cohort, checking the headers only; raises InputError for the first bad one."""
        for path in cohort["Path"]:
            shape = tuple(reversed(_read_header(path).GetSize()))  # x, y, z -> z, y, x
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
        paths = list(self._files.values())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for _ in progress_bar(
                    pool.map(self._decode, paths), total=len(paths), desc="reading images", unit="image"
                ):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
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
