"""Cohort CSVs, the travelling order and the batches."""

import numpy as np
import pandas as pd
import pytest

from travelling.errors import InputError
from travelling.images.cohort import persons, read_cohort, subjects_by_center
from travelling.images.test_set import refuse_one_class, refuse_overlap
from travelling.method.order import batches, travelling_order
from travelling.method.protocol import PROTOCOLS

GOOD = {
    "Subject": ["007", "NA", "b"],
    "Study": ["x", "y", "x"],
    "Path": ["1.nii", "2.nii", "3.nii"],
    "Group_bin": ["0", "1", "1.0"],
    "Sex": ["M", "F", "F"],
    "Age": ["61.5", "", "70"],
    "Scanner": ["A", "B", "C"],
}


@pytest.fixture
def write(tmp_path):
    """Function that writes a cohort CSV with changed columns, and its (empty) images."""
    for name in ("1.nii", "2.nii", "3.nii", "4.nii"):
        (tmp_path / name).touch()

    def write(name="set.csv", drop=(), **changes):
        path = tmp_path / name
        pd.DataFrame({**GOOD, **changes}).drop(columns=list(drop)).to_csv(path, index=False)
        return path

    return write


def test_ids_stay_text_and_further_columns_are_carried_along(write, tmp_path):
    cohort = read_cohort(write())
    assert list(cohort["Subject"]) == ["007", "NA", "b"] == list(cohort.index)
    assert list(cohort["Group_bin"]) == [0, 1, 1]
    assert list(cohort["Path"]) == [str(tmp_path / name) for name in ("1.nii", "2.nii", "3.nii")]
    assert cohort["Age"].isna().to_list() == [False, True, False]
    assert list(cohort["Scanner"]) == ["A", "B", "C"]


def test_age_is_optional(write):
    assert read_cohort(write(drop=["Age"]))["Age"].isna().all()


def test_cells_that_say_nothing_are_no_name_that_all_share(write):
    cohort = read_cohort(write(Scanner=["n/a", "NA", ""], Participant=["n/a", "N/A", "p"], Age=["n/a", "nan", "70"]))
    assert cohort[["Scanner", "Participant"]].to_numpy().tolist() == [["", ""], ["", ""], ["", "p"]]
    assert list(persons(cohort)) == ["007", "na", "p"]
    assert cohort["Age"].isna().to_list() == [True, True, False]


@pytest.mark.parametrize(
    ("changes", "row", "words"),
    [
        ({"Group_bin": ["0", "2", "1"]}, 3, "Group_bin must be 0 or 1 ('2')"),
        ({"Group_bin": ["0", "1", ""]}, 4, "Group_bin is empty"),
        ({"Subject": ["a", "a", "b"]}, 3, "Subject appears before"),
        ({"Subject": ["a", " ", "b"]}, 3, "Subject is empty"),
        ({"Subject": ["a", "b;c", "b"]}, 3, "must not contain ';'"),
        ({"Subject": ["a", "batch", "b"]}, 3, "must not be 'batch'"),
        ({"Study": ["", "y", ""]}, 2, "Study is empty (and 1 more rows)"),
        ({"Study": ["x", "n/a", "x"]}, 3, "Study is n/a"),
        ({"Sex": ["M", "F", "x"]}, 4, "Sex must be M or F ('x')"),
        ({"Age": ["61", "old", ""]}, 3, "Age must be years"),
        ({"Age": ["61", "-1", ""]}, 3, "Age must be years"),
        ({"Path": ["1.nii", "none.nii", "3.nii"]}, 3, "no such image ('none.nii')"),
        ({"Path": ["1.nii", "~/2.nii", "3.nii"]}, 3, "no such image ('~' does not stand for the home folder"),
        ({"Path": ["1.nii", "a\\2.nii", "3.nii"]}, 3, "no such image (a backslash, as of Windows"),
        ({"Path": ["1.nii", "2.nii", "./1.nii"]}, 4, "belongs to another subject"),
    ],
)
def test_a_bad_row_is_named(write, changes, row, words):
    path = write(**changes)
    with pytest.raises(InputError) as error:
        read_cohort(path)
    assert str(error.value).startswith(f"{path}, row {row}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_link_to_what_was_not_fetched_is_told(write):
    path = write(Path=["1.nii", "link.nii", "3.nii"])
    (path.parent / "link.nii").symlink_to(".git/annex/objects/1.nii")
    with pytest.raises(InputError, match=r"row 3: no such image \(a link to a file that is not there; of git-annex"):
        read_cohort(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: f"sep=,\n{text}", "row 1: is Excel's line 'sep=', which no CSV file has"),
        (lambda text: f"\ufeffsep=;\n{text}", "row 1: is Excel's line 'sep=', which no CSV file has"),
        (lambda text: text.replace(",", "\t"), "(separated by tabs? commas are needed)"),
        (lambda text: text.replace(",", ";"), "(separated by semicolons? commas are needed)"),
    ],
)
def test_another_dialect_of_csv_is_named(write, change, told):
    path = write()
    path.write_text(change(path.read_text()), encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_cohort(path)
    assert told in str(error.value)


@pytest.mark.parametrize("column", ["Subject", "Study", "Path", "Group_bin", "Sex"])
def test_a_missing_column_is_named(write, column):
    with pytest.raises(InputError, match=rf"missing column\(s\) {column};"):
        read_cohort(write(drop=[column]))


HEADER = b"Subject,Study,Path,Group_bin,Sex\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "not a CSV file"),
        (HEADER, "no subjects"),
        (b"\xff\xfe\x00\x01", "not a CSV file"),
        (bytes(range(128, 256)), "not a CSV file"),
        (b'a,b\n"1,2\n', "not a CSV file"),
        (HEADER + b"a,x,1.nii,0,M\nb,x,2.nii,1,M,z\n", "line 3"),
        (HEADER + b"a,x,1.nii,0,M,5\nb,x,2.nii,1,M,2\n", "more cells than its header (a decimal comma?)"),
        (HEADER + b"a,x,1.nii,0,M\n\nb,x,2.nii,2,M\n", ", row 4: Group_bin"),  # blank lines count
    ],
)
def test_what_is_no_cohort_is_refused(write, content, words):
    path = write().with_name("other.csv")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_cohort(path)
    assert str(error.value).startswith(str(path))
    assert words in str(error.value)
    with pytest.raises(InputError):
        read_cohort(path.parent)  # a folder


def test_overlap_of_training_and_test_set_is_refused(write):
    training = read_cohort(write())
    for changes, words in (
        ({"Subject": ["c", "d", "007"], "Path": ["4.nii", "2.nii", "3.nii"]}, "row 4: Subject"),
        ({"Subject": ["c", "d", "e"], "Path": ["4.nii", "2.nii", "1.nii"]}, "row 3: Path"),
    ):
        test = read_cohort(write("test.csv", **changes))
        with pytest.raises(InputError, match=words):
            refuse_overlap(training, test, "set.csv", "test.csv")


def test_one_class_is_refused(write):
    test = read_cohort(write(Group_bin=["1", "1", "1"]))
    with pytest.raises(InputError, match="every subject is PD"):
        refuse_one_class(test, "test.csv")
    refuse_one_class(read_cohort(write()), "test.csv")


def test_centers_and_subjects_keep_the_order_of_the_csv(write):
    centers = subjects_by_center(read_cohort(write()))
    assert centers == {"x": ["007", "b"], "y": ["NA"]}
    assert list(centers) == ["x", "y"]


def test_travelling_order_is_the_published_one():
    centers = [f"c{number}" for number in range(83)]
    expected = np.array(centers, dtype=object)
    np.random.seed(42)  # the definition, with NumPy's global generator
    np.random.shuffle(expected)
    for cycle, order, generator in travelling_order(centers, 42, range(10, 14)):
        np.random.seed(42 + cycle)
        np.random.shuffle(expected)
        assert order == list(expected)
        # the same generator goes on with the subjects, center by center
        for size in (7, 1, 12):
            subjects = np.arange(size)
            np.random.shuffle(subjects)
            assert sum(batches(range(size), 5, generator, True), []) == list(subjects)


def test_order_does_not_depend_on_what_the_caller_does_with_it():
    orders = []
    for _, order, _ in travelling_order("abcdef", 1, range(3)):
        orders.append(list(order))
        order.clear()
    assert orders == [order for _, order, _ in travelling_order("abcdef", 1, range(3))]


@pytest.mark.parametrize(
    ("size", "protocol", "sizes"),
    [
        (12, "corrected", [5, 5, 2]),
        (12, "published", [5, 5]),
        (10, "published", [5, 5]),
        (3, "corrected", [3]),
        (3, "published", [3]),
        (1, "published", [1]),
        (0, "published", []),
    ],
)
def test_short_batches(size, protocol, sizes):
    cut = batches(list(range(size)), 5, np.random.RandomState(0), PROTOCOLS[protocol].trains_short_batch)
    assert [len(batch) for batch in cut] == sizes
    assert len(set(sum(cut, []))) == sum(sizes)


def test_shuffling_leaves_the_center_as_it_was():
    subjects = list(range(9))
    batches(subjects, 5, np.random.RandomState(0), True)
    assert subjects == list(range(9))
