"""Archives as people make them, and that no bytes whatsoever do more than be refused."""

import gzip
import io
import os
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.worker.datasets.hostile import Zip, header, member, pax, picture, pictures, tar, zipped
from worker.datasets.archive import Unpacked, unpack
from worker.jobs.errors import ArchiveTooLarge, BadArchive, UnsafePath
from worker.jobs.settings import Settings

Files = dict[str, bytes]
Pack = Callable[[Files], bytes]
MIB = 2**20


def by_zipfile(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def by_tarfile(files: Files, form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


PACKS: dict[str, Pack] = {
    "zip": by_zipfile,
    "zip, stored": lambda files: by_zipfile(files, zipfile.ZIP_STORED),
    "tar, GNU": by_tarfile,
    "tar, pax": lambda files: by_tarfile(files, tarfile.PAX_FORMAT),
    "tar.gz": lambda files: gzip.compress(by_tarfile(files), mtime=0),
    "tar.gz, in two parts": lambda files: b"".join(
        gzip.compress(part, mtime=0) for part in (by_tarfile(files)[:700], by_tarfile(files)[700:])
    ),
}
packed = pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)


class Opened:
    """An archive as it was unpacked."""

    def __init__(self, archive: bytes, **limits: int) -> None:
        self.watched: list[tuple[int, int]] = []
        with TemporaryDirectory() as folder:
            path, blob = Path(folder) / "archive", Path(folder) / "blob"
            path.write_bytes(archive)
            allowed = Settings(data_dir=Path(folder)).model_copy(update=limits)
            self.unpacked = Unpacked()
            self.yielded = list(unpack(path, blob, allowed, self.unpacked, lambda *done: self.watched.append(done)))
            assert self.yielded == self.unpacked.members
            self.blob = blob.read_bytes()

    @property
    def files(self) -> Files:
        return {str(each.path): self.blob[each.offset : each.offset + each.size] for each in self.unpacked.members}

    @property
    def folders(self) -> set[str]:
        return {str(path) for path in self.unpacked.folders}


@packed
def test_pictures_come_out_as_they_went_in_and_in_order(pack: Pack) -> None:
    files = pictures() | {"cat/large.PNG": os.urandom(3 * MIB), "dog/even.jpeg": bytes(512), "dog/empty.gif": b""}
    opened = Opened(pack(files))
    assert opened.files == files
    assert list(opened.files) == list(files)
    assert len(opened.blob) == sum(map(len, files.values()))


@packed
@pytest.mark.parametrize("name", ["猫/🐈.png", "e\u0301.png", "x" * 251 + ".png", ("y" * 99 + "/") * 9 + "ü.png"])
def test_long_and_foreign_names_are_kept(pack: Pack, name: str) -> None:
    assert Opened(pack({name: b"1"})).files == {name: b"1"}


@packed
def test_only_what_has_an_entry_is_among_the_folders(pack: Pack) -> None:
    opened = Opened(pack({"cat/": b"", "cat/0.png": b"0", "dog/0.png": b"0", "empty/inner/": b""}))
    assert opened.folders == {"cat", "empty/inner"}


@packed
def test_what_is_no_picture_is_counted_by_its_ending(pack: Pack) -> None:
    others = {"readme.TXT": b"", "cat/note.txt": b"", "cat/x.tiff": b"", "Makefile": b"", "cat/labels.csv.bak": b""}
    opened = Opened(pack(pictures() | others))
    assert opened.unpacked.ignored == {".txt": 2, ".tiff": 1, "": 1, ".bak": 1}
    assert opened.files == pictures()


@packed
def test_what_systems_leave_in_folders_is_not_even_counted(pack: Pack) -> None:
    clutter = ["__MACOSX/cat/._0.png", "cat/._0.png", ".DS_Store", "cat/Thumbs.db", "cat/desktop.ini", ".git/x.png"]
    opened = Opened(pack(pictures() | dict.fromkeys(clutter, b"x") | {"__MACOSX/": b""}))
    assert opened.files == pictures()
    assert not opened.unpacked.ignored
    assert not opened.folders


@packed
def test_tables_are_kept_with_their_places(pack: Pack) -> None:
    opened = Opened(pack({"a/Labels.CSV": b"1", "a/0.png": b"0", "labels.csv": b"2"}))
    assert opened.unpacked.labels == {PurePosixPath("a/Labels.CSV"): b"1", PurePosixPath("labels.csv"): b"2"}


@packed
def test_a_picture_that_is_too_large_is_left_out_and_the_next_one_is_whole(pack: Pack) -> None:
    files = {"a/0.png": b"0" * 100, "a/1.png": b"1" * 101, "a/2.png": b"2" * 3 * MIB, "a/3.png": b"3" * 100}
    opened = Opened(pack(files), max_image_bytes=100)
    assert opened.files == {name: files[name] for name in ("a/0.png", "a/3.png")}
    assert [str(path) for path in opened.unpacked.oversized] == ["a/1.png", "a/2.png"]
    assert opened.blob == b"0" * 100 + b"3" * 100


@packed
def test_entries_may_reach_the_limit_and_not_pass_it(pack: Pack) -> None:
    assert len(Opened(pack(pictures()), max_entries=6).files) == 6
    with pytest.raises(ArchiveTooLarge, match="more than 5 files and folders"):
        Opened(pack(pictures()), max_entries=5)


@packed
def test_bytes_may_reach_the_limit_and_not_pass_it(pack: Pack) -> None:
    """Of a tar its headers and its padding count too: they come out of the gz like everything else."""
    archive = pack({"a/0.png": os.urandom(MIB), "b/0.png": os.urandom(MIB)})
    assert Opened(archive, max_unpacked_bytes=2 * MIB + 20_000).files
    with pytest.raises(ArchiveTooLarge, match=f"more than {2 * MIB - 1} bytes"):
        Opened(archive, max_unpacked_bytes=2 * MIB - 1)


@packed
def test_a_small_archive_may_be_packed_very_tightly(pack: Pack) -> None:
    """A hundred times its size is suspicious, but not below 64 MiB: plain drawings shrink that much."""
    assert len(Opened(pack({f"a/{n}.bmp": bytes(19 * MIB) for n in range(3)})).blob) == 57 * MIB


@packed
def test_progress_is_told_and_the_total_where_it_is_known(pack: Pack) -> None:
    archive = pack(pictures())
    total = 6 if archive.startswith(b"PK") else 0
    assert Opened(archive).watched == [(done, total) for done in range(1, 7)]


@packed
def test_an_archive_without_pictures_says_what_it_holds_instead(pack: Pack) -> None:
    with pytest.raises(BadArchive, match=r"holds no pictures \(.*\.png.*\), but 2 \.txt, 1 without an ending\."):
        Opened(pack({"a.txt": b"", "b.txt": b"", "c": b""}))


def test_an_archive_whose_pictures_are_all_too_large_is_left_to_the_report() -> None:
    opened = Opened(zipped(pictures()), max_image_bytes=1)
    assert (len(opened.files), len(opened.unpacked.oversized)) == (0, 6)


# Zips


def test_a_zip_of_a_mac_says_nothing_of_its_utf8() -> None:
    assert Opened(Zip().add("Müll/é.png".encode(), b"1", flags=0).ended()).files == {"Müll/é.png": b"1"}


@pytest.mark.parametrize("end", ["own numbers", "no numbers"])
def test_a_zip64_is_read(end: str) -> None:
    """Go leaves the old end record without numbers; others write there what they can."""
    made = Zip(pictures())
    old = made.end() if end == "own numbers" else made.end(count=0xFFFF, size=0xFFFFFFFF)
    assert Opened(made.ended(made.end64() + old)).files == pictures()


def test_a_zip64_of_go_may_be_larger_than_a_directory_may() -> None:
    made = Zip(pictures()).add(b"cat/noise.png", os.urandom(100_000))
    archive = made.ended(made.end64() + made.end(count=0xFFFF, size=0xFFFFFFFF))
    assert len(Opened(archive, max_entries=10).files) == 7


@pytest.mark.parametrize("said", [0xFFFF, 5])
def test_a_zip_of_more_entries_than_it_can_count_is_read(said: int) -> None:
    """Without zip64, macOS writes the count without its upper bits; others write the largest count."""
    made = Zip()
    for n in range(0x10000 + 5):
        made.add(b"a/%d.txt" % n if n else b"a/0.png")
    assert set(Opened(made.ended(made.end(count=said))).files) == {"a/0.png"}


def test_a_zip_may_have_a_comment() -> None:
    comment = b"made for a test"
    archive = zipped(pictures()).removesuffix(bytes(2)) + len(comment).to_bytes(2, "little") + comment
    assert Opened(archive).files == pictures()


# Tars


def test_a_tar_of_a_folder_itself_begins_with_a_dot() -> None:
    files = {f"./{name}": data for name, data in pictures().items()}
    archive = header("./", kind=tarfile.DIRTYPE) + header("./cat/", kind=tarfile.DIRTYPE) + tar(files)
    opened = Opened(archive)
    assert opened.files == pictures()
    assert opened.folders == {"cat"}


def test_a_tar_of_a_repository_begins_with_a_header_for_all() -> None:
    """`git archive` writes the commit into one."""
    for_all = member("pax_global_header", b"52 comment=" + b"0" * 40 + b"\n", tarfile.XGLTYPE)
    assert Opened(for_all + tar(pictures())).files == pictures()


def test_a_pax_header_is_of_the_next_member_only() -> None:
    more = pax(("mtime", "1.5"), ("path", "cat/näme.png"), ("comment", "path=x")) + member("short", b"1")
    assert Opened(tar(pictures(), more + member("dog/9.png", b"2"))).files == pictures() | {
        "cat/näme.png": b"1",
        "dog/9.png": b"2",
    }


def test_a_pax_header_may_say_the_size() -> None:
    data = picture(0)
    sized = pax(("size", str(len(data)))) + header("a/0.png") + data + bytes(-len(data) % 512)
    assert Opened(tar({}, sized + member("a/1.png", b"1"))).files == {"a/0.png": data, "a/1.png": b"1"}


def test_a_folder_has_no_contents_whatever_its_size_says() -> None:
    assert Opened(header("cat/", 5000, tarfile.DIRTYPE) + tar(pictures())).files == pictures()


def test_what_follows_the_end_of_a_tar_is_not_looked_at() -> None:
    assert Opened(tar(pictures()) + b"anything at all").files == pictures()


def test_a_full_disk_is_not_the_fault_of_the_archive(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "x").write_bytes(zipped({"a/0.png": os.urandom(MIB)}))
    with pytest.raises(OSError, match="No space left"):
        list(unpack(tmp_path / "x", full, Settings(data_dir=tmp_path), Unpacked(), lambda *_: None))


# Anything


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08", bytes(257) + b"ustar\x0000"]), st.binary(max_size=2000))
def test_noise_behind_the_first_bytes_of_an_archive_is_refused(magic: bytes, noise: bytes) -> None:
    with pytest.raises(BadArchive):
        Opened(magic + noise)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(list(PACKS.values())),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=4), st.integers(0, 600)), min_size=1, max_size=5),
)
@example(by_tarfile, [(1024, b"", 512)])
def test_damage_anywhere_is_refused_or_harmless(pack: Pack, damage: list[tuple[int, bytes, int]]) -> None:
    """Each time some bytes are put in the place of others, of as many or of more or fewer."""
    archive = pack(pictures() | {"labels.csv": b"file,label\n", "dog/": b""})
    for place, put, cut in damage:
        at = place % (len(archive) + 1)
        archive = archive[:at] + put + archive[at + (cut if cut < 300 else len(put)) :]
    try:
        opened = Opened(archive, max_entries=100)
    except (BadArchive, ArchiveTooLarge, UnsafePath):
        return
    assert len(opened.blob) == sum(map(len, opened.files.values()))


NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\:."), min_size=1, max_size=30)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(list(PACKS.values())),
    NAMES,
    st.dictionaries(NAMES, st.binary(max_size=1500), min_size=1, max_size=8),
)
def test_any_names_and_contents_come_out_as_they_went_in(pack: Pack, folder: str, contents: Files) -> None:
    assume(folder.casefold() != "__macosx")
    assume(len({unicodedata.normalize("NFC", name).casefold() for name in contents}) == len(contents))
    files = {f"{folder}/{name}.png": data for name, data in contents.items()}
    assert Opened(pack(files)).files == files
