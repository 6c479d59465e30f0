from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import skip_or_fail
from saccade.errors import InputError, PictureError
from saccade.pipeline.sources import SourceItem, count, expand


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str | bytes) -> None:
    for name in map(os.fsdecode, names):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        Path(name).write_bytes(b"x")


def names(*inputs: object) -> list[str]:
    items = list(expand(list(inputs)))
    assert [item.index for item in items] == list(range(len(items)))
    assert count(list(inputs)) == len(items)
    return [item.name if item.kind != "error" else f"!{item.name}" for item in items]


def errors(*inputs: object) -> list[str]:
    return [str(item.error) for item in expand(list(inputs)) if item.kind == "error"]


def test_one_file_keeps_its_name_and_its_ending_does_not_matter(here: Path) -> None:
    touch("a.jpg", "model.onnx", "pictures.zip", "noending")
    assert names("a.jpg", "./a.jpg", str(here / "a.jpg"), "model.onnx", "noending") == [
        "a.jpg",
        "./a.jpg",
        str(here / "a.jpg"),
        "model.onnx",
        "noending",
    ]
    [item] = expand("pictures.zip")
    assert (item.kind, item.value, item.error) == ("path", Path("pictures.zip"), None)


def test_a_path_a_string_and_a_list_are_the_same(here: Path) -> None:
    touch("d/a.jpg")
    wanted = ["d/a.jpg"]
    for inputs in ("d", Path("d"), ["d"], (Path("d"),), iter(["d"]), "d/"):
        assert [item.name for item in expand(inputs)] == wanted
    assert count("d") == count(Path("d")) == 1
    assert count(iter(["d"])) is None


def test_folders_are_walked_by_name_and_hidden_names_left_out(here: Path) -> None:
    touch(
        "d/b.JPG", "d/a.png", "d/c/z.webp", "d/c/.hidden.jpg", "d/.git/x.jpg", "d/notes.txt",
        "d/film.mp4", "d/d.jpeg", "d/e.TIFF", "d/noending", "d/jpg", "d/.jpg",
    )  # fmt: skip
    assert names("d") == ["d/a.png", "d/b.JPG", "d/c/z.webp", "d/d.jpeg", "d/e.TIFF"]


def test_a_folder_named_like_a_picture_is_said_and_still_walked(here: Path) -> None:
    touch("d/album.jpg/a.jpg", "d/z.jpg")
    assert names("d") == ["!d/album.jpg", "d/album.jpg/a.jpg", "d/z.jpg"]
    assert "is a directory" in errors("d")[0]
    assert names("d/album.jpg") == ["d/album.jpg/a.jpg"]


def test_links_in_a_circle_end_and_links_to_pictures_are_followed(here: Path) -> None:
    touch("d/a/x.jpg", "other/y.jpg")
    os.symlink("..", "d/a/up")
    os.symlink("../other", "d/link")
    os.symlink("../other", "d/link2")
    os.symlink("a/x.jpg", "d/m.jpg")
    os.symlink("nowhere", "d/n.jpg")
    os.symlink("self", "d/self")
    assert names("d") == ["d/a/x.jpg", "d/link/y.jpg", "d/m.jpg", "!d/n.jpg"]


def test_pipes_never_block(here: Path) -> None:
    touch("d/a.jpg")
    os.mkfifo("d/pipe.jpg")
    assert names("d", "d/pipe.jpg", "/dev/zero") == [
        "d/a.jpg",
        "!d/pipe.jpg",
        "!d/pipe.jpg",
        "!/dev/zero",
    ]


def test_a_folder_that_cannot_be_read_is_an_error_in_its_place(here: Path) -> None:
    if os.geteuid() != 0:
        skip_or_fail("root", "another user's identity needs root")
    touch("d/a.jpg", "d/b/x.jpg", "d/c.jpg")
    os.chmod("d/b", 0)
    here.chmod(0o755)
    for parent in here.parents:
        if not os.stat(parent).st_mode & 0o001:
            os.chmod(parent, os.stat(parent).st_mode | 0o011)
    os.seteuid(65534)
    try:
        assert names("d") == ["d/a.jpg", "!d/b", "d/c.jpg"]
        assert names("d/b", "d/a.jpg") == ["!d/b", "d/a.jpg"]
    finally:
        os.seteuid(0)


def test_very_deep_folders(here: Path) -> None:
    depth = 1100  # more than Python's calls may nest
    for i in range(1, depth + 1):
        os.mkdir("n/" * i)
    deepest = "n/" * depth
    touch("z.jpg", f"{deepest}a.jpg")
    try:
        assert names(".") == [f"./{deepest}a.jpg", "./z.jpg"]
    finally:  # deeper than the test's own cleaning up can go
        os.unlink(f"{deepest}a.jpg")
        for i in range(depth, 0, -1):
            os.rmdir("n/" * i)


def test_order_does_not_depend_on_creation(here: Path, rng: np.random.Generator) -> None:
    wanted = [f"d/{i:04d}.jpg" for i in range(300)]
    touch(*rng.permutation(wanted).tolist())
    assert names("d") == wanted


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.jpg", ["a.jpg", "b.jpg"]),
        ("?.jp*", ["a.jpg", "b.jpg"]),
        ("[b-z].jpg", ["b.jpg"]),
        ("[!a].jpg", ["b.jpg"]),
        ("**/*.jpg", ["a.jpg", "b.jpg", "d/c.jpg", "d/e/e/f.jpg"]),
        ("**/e/**/*.jpg", ["d/e/e/f.jpg"]),
        ("d/**/f.jpg", ["d/e/e/f.jpg"]),
        ("**/**/c.jpg", ["d/c.jpg"]),
        ("d*", ["d/c.jpg", "d/e/e/f.jpg", "d/e/g.png"]),
        ("d/**", ["d/c.jpg", "d/e/e/f.jpg", "d/e/g.png"]),
        ("*/*.jpg", ["d/c.jpg"]),
        ("*.dat", ["x.dat"]),
        ("*", ["a.jpg", "b.jpg", "d/c.jpg", "d/e/e/f.jpg", "d/e/g.png"]),
        ("./?.jpg", ["./a.jpg", "./b.jpg"]),
    ],
)
def test_patterns(here: Path, pattern: str, wanted: list[str]) -> None:
    touch("a.jpg", "b.jpg", ".h.jpg", "x.dat", "d/c.jpg", "d/e/e/f.jpg", "d/e/g.png", "d/.e/h.jpg")
    assert names(pattern) == wanted
    assert names(Path(pattern)) == [str(Path(name)) for name in wanted]
    absolute = os.path.join(here, pattern)
    assert names(absolute) == [os.path.join(here, name) for name in wanted]


def test_a_file_that_is_named_like_a_pattern_is_that_file(here: Path) -> None:
    touch("a[1].jpg", "a1.jpg", "d/[x]/b.jpg")
    assert names("a[1].jpg") == ["a[1].jpg"]
    assert names("d/[x]") == ["d/[x]/b.jpg"]


@pytest.mark.parametrize("pattern", ["*.jpg", "no/*.jpg", "**/x.png", "[", "*/../a"])
def test_a_pattern_without_a_match_is_refused_at_once(here: Path, pattern: str) -> None:
    touch("a.png")
    with pytest.raises(InputError, match="matches none"):
        expand(["a.png", pattern])


def test_lists(here: Path) -> None:
    touch("l/a.jpg", "l/sub/b.jpg", "l/ lead.jpg", b"l/caf\xe9.jpg", "c.jpg")
    lines = (
        b"\xef\xbb\xbfa.jpg\r\n\r\n# comment\n  # comment\nmissing.jpg\nsub\n lead.jpg\n"
        b"caf\xe9.jpg\n   \n../c.jpg\n" + os.fsencode(here) + b"/c.jpg\nfilm.mp4\nnul\0.jpg\na.jpg"
    )
    Path("l/list.txt").write_bytes(lines)
    wanted = [
        "l/a.jpg", "!l/missing.jpg", "l/sub/b.jpg", "l/ lead.jpg", "l/caf\udce9.jpg",
        "l/../c.jpg", f"{here}/c.jpg", "!l/film.mp4", "!l/nul\0.jpg", "l/a.jpg",
    ]  # fmt: skip
    assert names("l/list.txt") == wanted
    assert names("@l/list.txt") == wanted
    os.rename("l/list.txt", "l/list")
    assert names("@l/list") == wanted


def test_lists_that_are_none(here: Path) -> None:
    touch("a.jpg")
    Path("wide.txt").write_bytes("a.jpg\n".encode("utf-16"))
    Path("junk.txt").write_bytes(b"\x00" * 200_000)
    assert names("wide.txt", "junk.txt", "@no.txt", "no.txt", "a.jpg") == [
        "!wide.txt",
        "!junk.txt",
        "!no.txt",
        "!no.txt",
        "a.jpg",
    ]
    assert "UTF-16" in errors("wide.txt")[0]


def test_an_at_sign_may_begin_a_name(here: Path) -> None:
    touch("@a.jpg")
    assert names("@a.jpg") == ["@a.jpg"]


def test_standard_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch("a.jpg", "b.jpg")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b.jpg\nno.jpg\n")))
    assert count("-") is None
    assert count(["a.jpg", "-"]) is None
    items = list(expand(["a.jpg", "-"]))
    assert [item.name for item in items] == ["a.jpg", "b.jpg", "no.jpg"]
    assert items[2].error is not None
    with pytest.raises(InputError, match="once"):
        expand(["-", "-"])


def test_arrays_and_bytes(here: Path) -> None:
    touch("a.jpg")
    array = np.zeros((4, 5, 3), np.uint8)
    items = list(expand(["a.jpg", b"bytes", array, array[::2, ::-1], memoryview(b"m")]))
    assert [item.kind for item in items] == ["path", "bytes", "array", "array", "bytes"]
    assert [item.name for item in items[1:]] == [
        "<bytes 1>",
        "<array 2>",
        "<array 3>",
        "<bytes 4>",
    ]
    assert items[2].value is array
    assert [item.kind for item in expand(array)] == ["array"]
    assert [item.value for item in expand(b"x")] == [b"x"]
    assert count(array) == 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((2, 4, 5, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((), np.uint8),
    ],
)
def test_wrong_arrays(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"\(height, width, 3\) uint8 RGB"):
        expand(array)
    good = np.zeros((1, 1, 3), np.uint8)
    items = list(expand([good, array, good]))
    assert [item.kind for item in items] == ["array", "error", "array"]
    assert isinstance(items[1].error, PictureError)


def test_wrong_types() -> None:
    for wrong in (5, None):
        with pytest.raises(InputError, match="paths, bytes or arrays"):
            expand(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got int"):
        expand([5])  # type: ignore[list-item]
    assert [i.kind for i in expand([5, b"x"])] == ["error", "bytes"]  # type: ignore[list-item]


def test_a_missing_file_costs_one_place_unless_all_are_missing(here: Path) -> None:
    touch("a.jpg")
    assert names("no.jpg", "a.jpg", "x" * 300, "a.jpg/b.jpg") == [
        "!no.jpg",
        "a.jpg",
        f"!{'x' * 300}",
        "!a.jpg/b.jpg",
    ]
    for inputs in ("no.jpg", ["no.jpg"], ["no.jpg", "@no.txt", "nul\0"], Path("no.jpg")):
        with pytest.raises(InputError, match="must exist"):
            expand(inputs)


def test_nothing_at_all(here: Path) -> None:
    os.mkdir("empty")
    Path("list.txt").write_text("# nothing\n")
    with pytest.raises(InputError, match="at least one"):
        expand([])
    for inputs in ("empty", "list.txt", ["empty", "list.txt"]):
        with pytest.raises(InputError, match="none was found"):
            list(expand(inputs))


def test_a_folder_that_is_named_like_a_picture(here: Path) -> None:
    touch("full.jpg/a.jpg", "b.jpg")
    os.mkdir("empty.jpg")
    assert names("b.jpg", "empty.jpg", "full.jpg") == ["b.jpg", "!empty.jpg", "full.jpg/a.jpg"]
    assert "is a folder" in errors("b.jpg", "empty.jpg")[0]


def test_a_video_is_called_one(here: Path) -> None:
    touch("film.MP4", "a.jpg")
    assert names("film.MP4", "a.jpg") == ["!film.MP4", "a.jpg"]
    assert "video" in errors("film.MP4", "a.jpg")[0]


def test_the_same_picture_may_be_given_twice(here: Path) -> None:
    touch("d/a.jpg")
    assert names("d", "d", "d/a.jpg") == ["d/a.jpg"] * 3


def test_nothing_is_looked_at_before_its_turn(here: Path) -> None:
    touch("a.jpg", "d/b.jpg")
    items = expand(["a.jpg", "d"])
    assert next(items).name == "a.jpg"
    touch("d/a.jpg")
    assert [item.name for item in items] == ["d/a.jpg", "d/b.jpg"]


def test_items_are_frozen() -> None:
    with pytest.raises(AttributeError):
        SourceItem(0, "a", "path").index = 1  # type: ignore[misc]
