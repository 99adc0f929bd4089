import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.datasets.names import Names, is_clutter
from worker.jobs.errors import ArchiveTooLarge, UnsafePath

# Names as people and attackers make them: of few parts, so that they meet.
PARTS = st.sampled_from(
    ["a", "A", "b", "é", "e\u0301", "ß", "SS", "..", ".", "", "x.png", "X.png", "con", " ", "a.", "C:"]
)
HOSTILE = st.lists(PARTS, min_size=1, max_size=4).map("/".join) | st.text(max_size=20)


def check(name: str, *, is_folder: bool = False) -> PurePosixPath | None:
    return Names(1000).check(name, is_folder=is_folder)


@pytest.mark.parametrize(
    "name",
    [
        "x.png",
        "cat/x.png",
        "a b/ x..y.png",
        "...png",
        "Ünïcode/猫/🐈.png",
        "x" * 251 + ".png",
        "/".join(["x" * 99] * 10),
        "/".join("x" * 32),
        "ab:c/x.png",
    ],
)
def test_a_good_name_stays_as_it_is(name: str) -> None:
    assert check(name) == PurePosixPath(name)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("..", "leads out"),
        ("../x.png", "leads out"),
        ("cat/../../x.png", "leads out"),
        ("cat/..", "leads out"),
        ("cat//x.png", "leads out"),
        ("cat/./x.png", "leads out"),
        ("././x.png", "leads out"),
        ("cat/", "leads out"),
        ("/x.png", "begins at the root"),
        ("./" + "/x.png", "begins at the root"),
        ("C:x.png", "begins with a drive"),
        ("C:/x.png", "begins with a drive"),
        ("cat\\x.png", "backslash"),
        ("..\\x.png", "backslash"),
        ("cat./x.png", "ends in a dot"),
        ("x.png.", "ends in a dot"),
        ("cat /x.png", "ends in a dot or a space"),
        ("x.png ", "ends in a dot or a space"),
        ("x\0.png", "control characters"),
        ("x\n.png", "control characters"),
        ("x\x7f.png", "control characters"),
        ("x\x9b.png", "control characters"),
        ("x\udce4.png", "not valid UTF-8"),
        ("x" * 256, "longer than 255"),
        ("ä" * 128, "longer than 255"),
        ("/".join(["x" * 99] * 11), "its path longer than 1024"),
        ("/".join("x" * 33), "more than 32 folders deep"),
    ],
)
def test_a_bad_name_is_refused_with_the_reason(name: str, problem: str) -> None:
    with pytest.raises(UnsafePath, match=problem):
        check(name)


@pytest.mark.parametrize("name", [".", "./", ""])
def test_the_root_itself_is_no_entry(name: str) -> None:
    assert check(name, is_folder=True) is None


def test_a_folder_may_end_in_a_slash_and_come_again() -> None:
    names = Names(1000)
    assert names.check("cat/", is_folder=True) == names.check("cat", is_folder=True) == PurePosixPath("cat")
    names.check("cat/x.png", is_folder=False)
    assert names.check("./cat/", is_folder=True) == PurePosixPath("cat")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["x.png", "x.png"], "a name twice: x.png"),
        (["x.png", "./x.png"], "a name twice: x.png"),
        (["a", "a/x.png"], "as a file and as a folder: a"),
        (["a", "a/b/c/x.png"], "as a file and as a folder: a"),
        (["a/b/x.png", "a"], "a name twice: a"),
        (["a", "a/"], "as a file and as a folder: a"),
        (["a/", "a"], "a name twice: a"),
        (["x.png", "X.png"], "upper and lower case: X.png"),
        (["a/x.png", "A/y.png"], "upper and lower case: A"),
        (["a/b/x.png", "a/B/"], "upper and lower case: a/B"),
        (["a", "A/x.png"], "upper and lower case"),
        (["straße.png", "STRASSE.png"], "upper and lower case"),
        (["\u00e9.png", "e\u0301.png"], "upper and lower case"),
    ],
)
def test_names_that_are_one_file_on_some_system_are_refused(names: list[str], problem: str) -> None:
    judge = Names(1000)
    judge.check(names[0], is_folder=names[0].endswith("/"))
    with pytest.raises(UnsafePath, match=problem):
        judge.check(names[1], is_folder=names[1].endswith("/"))


def test_what_cannot_be_shown_is_not() -> None:
    with pytest.raises(UnsafePath) as caught:
        check("cat/\x1b[2J" + "x" * 300)
    assert caught.value.detail.endswith(": cat/?[2J" + "x" * 72 + "….")


def test_folders_without_an_entry_count_too() -> None:
    """A hundred short names may hold three thousand folders, and each would be remembered."""
    names = Names(100)

    def check_all() -> None:
        for n in range(100):
            names.check(f"{n}/" + "a/" * 30 + "x.png", is_folder=False)

    with pytest.raises(ArchiveTooLarge, match="more than 100 files and folders"):
        check_all()


def test_usual_names_are_never_too_many() -> None:
    names = Names(1000)
    for n in range(900):
        names.check(f"training/{n % 100:03}-a-class-of-birds/{'picture' * 8}{n}.png", is_folder=False)


@pytest.mark.parametrize(
    ("path", "clutter"),
    [
        ("__MACOSX/cat/._0.png", True),
        ("cat/.DS_Store", True),
        ("cat/.thumbnails/0.png", True),
        ("cat/Thumbs.db", True),
        ("cat/desktop.ini", True),
        (".git/x.png", True),
        ("cat/0.png", False),
        ("thumbs/0.png", False),
    ],
)
def test_what_systems_leave_in_folders_is_clutter(path: str, clutter: bool) -> None:
    assert is_clutter(PurePosixPath(path)) == clutter


@settings(deadline=None)
@given(HOSTILE, st.booleans())
def test_no_name_leads_out_of_its_folder(name: str, is_folder: bool) -> None:
    try:
        path = check(name, is_folder=is_folder)
    except UnsafePath:
        return
    if path is not None:
        assert not path.is_absolute()
        assert not {"..", ".", ""} & set(path.parts)
        assert not {"Cc", "Cs"} & set(map(unicodedata.category, str(path)))
        assert str(path) in (name, name.removeprefix("./"), name.removeprefix("./").removesuffix("/"))
        assert all(0 < len(part.encode()) <= 255 for part in path.parts)


@settings(deadline=None)
@given(st.lists(st.tuples(HOSTILE, st.booleans()), max_size=12))
def test_accepted_names_make_a_tree_on_any_system(entries: list[tuple[str, bool]]) -> None:
    names, files, folders = Names(1000), set[PurePosixPath](), set[PurePosixPath]()
    for name, is_folder in entries:
        try:
            path = names.check(name, is_folder=is_folder)
        except UnsafePath:
            return
        if path is not None:
            assert path not in files
            (folders if is_folder else files).add(path)
            folders |= set(path.parents) - {PurePosixPath()}
    assert not files & folders
    spelled = [unicodedata.normalize("NFC", str(path)).casefold() for path in files | folders]
    assert len(spelled) == len(set(spelled))
