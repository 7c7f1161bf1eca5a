"""The whole way in: good uploads become datasets, bad ones a report, and nothing else is left of them."""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import resource
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from storage import database, datasets, intake
from storage.errors import NameTaken
from storage.intake import receive
from storage.records import DatasetState, Role, Submission, SubmissionState, User, images_of
from storage.settings import MEBIBYTE, StorageSettings
from storage.spool import Pack
from storage.store import Store
from tests.storage.pictures import (
    jsonl,
    llava,
    moving,
    picture,
    png_bomb,
    rows,
    tarred,
    tarred_entries,
    zipped,
    zipped_entries,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An installation with limits that small files can break."""
    settings = StorageSettings(
        data_dir=tmp_path / "data",
        upload_max_bytes=30 * MEBIBYTE,
        archive_max_members=60,
        row_max_bytes=MEBIBYTE,
        image_max_bytes=300_000,
    )
    with Store(settings) as opened:
        yield opened


def send(store: Store, user: User, data: bytes, filename: str = "task.zip", **options: Any) -> Submission:
    """Upload bytes under a name, as a person would."""
    path = store.data_dir.parent / "upload"
    path.write_bytes(data)
    return receive(store, user, filename, path, **options)


def errors(submission: Submission) -> list[tuple[int | None, str]]:
    """Return the row and the code of every error in a report."""
    return [
        (finding.row, finding.code) for finding in submission.report.findings if finding.severity == "error"
    ]


def notes(submission: Submission) -> set[str]:
    """Return the codes of every note in a report."""
    return {finding.code for finding in submission.report.findings if finding.severity == "note"}


def kept(store: Store) -> tuple[int, int, list[Path]]:
    """Return how many datasets and blobs there are, and what lies in the temporary directory."""
    blobs = [path for path in (store.data_dir / "blobs").rglob("*") if path.is_file()]
    return len(store.datasets.list()), len(blobs), list(store.temporary().iterdir())


def with_images(*pictures: bytes, items: list[dict[str, Any]] | None = None) -> bytes:
    """Return a zip of LLaVA rows, one for each picture."""
    data = {"data.json": json.dumps(items or llava(len(pictures)))}
    return zipped(data | {f"images/{index}.png": content for index, content in enumerate(pictures)})


def numbered(count: int) -> list[bytes]:
    """Return different pictures."""
    return [picture(color=(index, 0, 0)) for index in range(count)]


def changed(item: dict[str, Any]) -> bytes:
    """Return a data file of four times this row, with different answers."""
    return jsonl([json.loads(json.dumps(item).replace("ANSWER", f"answer {n}")) for n in range(4)])


def asked(question: Any, answer: Any = "ANSWER", **fields: Any) -> bytes:
    """Return a data file of four exchanges."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return changed({"messages": turns, **fields})


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    """Return a zip entry of this name and Unix mode."""
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def symlink() -> tarfile.TarInfo:
    """Return a tar entry that points at the password file."""
    info = tarfile.TarInfo("images/0.png")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def locked() -> bytes:
    """Return a zip that claims to be encrypted."""
    data = bytearray(zipped({"data.json": json.dumps(rows())}))
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(start) + offset] |= 1
    return bytes(data)


def table(*items: dict[str, Any]) -> bytes:
    """Return a parquet file of these rows."""
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(items)), out)
    return out.getvalue()


def table_bomb() -> bytes:
    """Return a parquet file of a few kilobytes whose rows are 3 GB of text."""
    out = io.BytesIO()
    words = pa.array(["x" * 1_000_000])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 3000), words)
    parquet.write_table(pa.table({"text": column}), out, compression="zstd", use_dictionary=True)
    return out.getvalue()


GOOD_ROWS = jsonl(rows())
NOISE = random.Random(2).randbytes(400_000)
METADATA = "http://169.254.169.254/latest"

REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "empty file": (lambda: b"", "a.zip", "empty_file"),
    "blank file": (lambda: b"\n \n", "a.jsonl", "empty_file"),
    "empty list": (lambda: b"[]", "a.json", "empty_file"),
    "empty zip": (lambda: zipped({}), "a.zip", "no_data_file"),
    "too large": (lambda: bytes(31 * MEBIBYTE), "a.zip", "upload_too_large"),
    "zip climbs out": (lambda: zipped({"data.jsonl": GOOD_ROWS, "../../x": b"x"}), "a.zip", "unsafe_path"),
    "tar absolute": (lambda: tarred({"data.jsonl": GOOD_ROWS, "/etc/x": b"x"}), "a.tar", "unsafe_path"),
    "zip symlink": (
        lambda: zipped_entries(
            (entry("data.jsonl", 0o644), GOOD_ROWS), (entry("a", stat.S_IFLNK | 0o777), b"/etc/passwd")
        ),
        "a.zip",
        "link_in_archive",
    ),
    "tar symlink": (lambda: tarred_entries((symlink(), b"")), "a.tar", "link_in_archive"),
    "zip bomb": (lambda: zipped({"data.jsonl": bytes(200 * MEBIBYTE)}), "a.zip", "archive_too_large"),
    "nested zip": (lambda: zipped({"a.zip": zipped({"data.jsonl": GOOD_ROWS})}), "a.zip", "nested_archive"),
    "encrypted zip": (locked, "a.zip", "encrypted_archive"),
    "case twins": (
        lambda: zipped({"data.jsonl": GOOD_ROWS, "a.png": b"1", "A.png": b"2"}),
        "a.zip",
        "duplicate_name",
    ),
    "many files": (lambda: zipped({f"{n}.png": b"" for n in range(100)}), "a.zip", "too_many_files"),
    "truncated zip": (lambda: zipped({"data.jsonl": NOISE})[:200_000], "a.zip", "corrupt_archive"),
    "truncated tar.gz": (lambda: tarred({"a": NOISE}, mode="w:gz")[:200_000], "a.tgz", "corrupt_archive"),
    "zip without data": (lambda: zipped({"1.png": picture(), "README.md": b"hi"}), "a.zip", "no_data_file"),
    "word file": (lambda: zipped({"[Content_Types].xml": "", "word/a.xml": ""}), "a.docx", "no_data_file"),
    "train and test": (
        lambda: zipped({"train.jsonl": GOOD_ROWS, "test.jsonl": GOOD_ROWS}),
        "a.zip",
        "several_data_files",
    ),
    "pdf": (lambda: b"%PDF-1.7\nhello", "a.pdf", "unsupported_file"),
    "picture": (picture, "a.png", "unsupported_file"),
    "utf-16": (lambda: json.dumps(rows()).encode("utf-16"), "a.json", "encoding"),
    "latin-1": (lambda: asked("caf\u00e9").decode("unicode_escape").encode("latin-1"), "a.jsonl", "encoding"),
    "one object": (lambda: json.dumps(rows(1)[0], indent=1).encode(), "a.json", "not_rows"),
    "a number": (lambda: b"42", "a.json", "not_rows"),
    "list not closed": (lambda: jsonl([rows()])[:-2], "a.json", "invalid_json"),
    "python dicts": (lambda: "\n".join(str(row) for row in rows()).encode(), "a.jsonl", "invalid_json"),
    "NaN": (lambda: asked("hi", score=float("nan")), "a.jsonl", "bad_number"),
    "deep": (lambda: b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "a.jsonl", "too_deep"),
    "one long line": (lambda: b'{"a":"' + b"x" * (20 * MEBIBYTE) + b'"}', "a.jsonl", "line_too_long"),
    "keys twice": (
        lambda: GOOD_ROWS.replace(b'{"messages"', b'{"messages": [], "messages"'),
        "a.jsonl",
        "duplicate_key",
    ),
    "other fields": (lambda: changed({"foo": "ANSWER"}), "a.jsonl", "missing_field"),
    "unknown role": (lambda: GOOD_ROWS.replace(b'"user"', b'"narrator"'), "a.jsonl", "unknown_role"),
    "empty answer": (lambda: asked("hi", ""), "a.jsonl", "nothing_to_learn"),
    "answer first": (lambda: GOOD_ROWS.replace(b'"user"', b'"assistant"'), "a.jsonl", "turn_order"),
    "three tags, two images": (
        lambda: asked("<image><image><image>", images=["1.png", "2.png"]),
        "a.jsonl",
        "image_count",
    ),
    "image not there": (lambda: zipped({"data.json": json.dumps(llava())}), "a.zip", "image_missing"),
    "image beside a lone file": (lambda: json.dumps(llava()).encode(), "a.json", "image_missing"),
    "image climbs out": (
        lambda: json.dumps(llava(image="../../etc/passwd")).encode(),
        "a.json",
        "image_missing",
    ),
    "image absolute": (lambda: json.dumps(llava(image="/etc/passwd")).encode(), "a.json", "image_missing"),
    "image address": (lambda: json.dumps(llava(image=METADATA)).encode(), "a.json", "remote_image_refused"),
    "image file url": (
        lambda: json.dumps(llava(image="file:///etc/passwd")).encode(),
        "a.json",
        "remote_image_refused",
    ),
    "control token": (lambda: asked("hi", "ANSWER <|im_end|><|im_start|>system"), "a.jsonl", "control_token"),
    "control character": (lambda: asked("a\x07"), "a.jsonl", "control_character"),
    "lone surrogate": (lambda: asked("\ud800"), "a.jsonl", "encoding"),
    "long text": (lambda: asked("x" * 200_000), "a.jsonl", "text_too_long"),
    "video": (lambda: asked("hi", videos=["a.mp4"]), "a.jsonl", "unsupported_field"),
    "csv columns": (lambda: b"question,answer\na\nb\nc\nd\n", "a.csv", "wrong_columns"),
    "csv quote": (lambda: b'question,answer\n"a,b\n' + b"x,y\n" * 50_000, "a.csv", "corrupt_table"),
    "parquet garbled": (lambda: b"PAR1" + bytes(500) + b"PAR1", "a.parquet", "corrupt_table"),
    "parquet cut": (lambda: table(*rows(100))[:-20], "a.parquet", "corrupt_table"),
    "parquet bomb": (table_bomb, "a.parquet", "archive_too_large"),
    "image bomb": (lambda: with_images(*[png_bomb(9000)] * 4), "a.zip", "image_too_large"),
    "image heavy": (lambda: with_images(*[picture() + NOISE] * 4), "a.zip", "image_too_large"),
    "image 1 x 1": (lambda: with_images(*[picture(1, 1)] * 4), "a.zip", "image_too_small"),
    "image svg": (lambda: with_images(*[b"<svg/>"] * 4), "a.zip", "image_format"),
    "image psd": (lambda: with_images(*[b"8BPS\0\1" + bytes(99)] * 4), "a.zip", "image_format"),
    "image cut": (lambda: with_images(*[picture(99, 99, kind="JPEG")[:-300]] * 4), "a.zip", "image_corrupt"),
    "image moves": (lambda: with_images(*[moving("WEBP")] * 4), "a.zip", "animated_image"),
    "inline garbled": (
        lambda: asked([{"type": "image_url", "image_url": {"url": "data:image/png;base64,&&&"}}]),
        "a.jsonl",
        "image_data",
    ),
    "inline no image": (
        lambda: asked([{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}]),
        "a.jsonl",
        "image_format",
    ),
    "three rows": (lambda: jsonl(rows(3)), "a.jsonl", "too_few_rows"),
    "one row, often": (lambda: jsonl(rows(1) * 50), "a.jsonl", "too_few_rows"),
    "one good row": (lambda: jsonl(rows(1) + [{}] * 9), "a.jsonl", "too_few_rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_upload_is_refused_and_leaves_nothing(name: str, store: Store, admin: User) -> None:
    """Each bad upload gives a rejected submission whose report names the reason, a line of audit, and nothing else."""
    build, filename, code = REFUSED[name]
    submission = send(store, admin, build(), filename)
    assert submission.state is SubmissionState.REJECTED
    assert submission.dataset_id is None
    assert submission.report.accepted == 0
    found = [finding for finding in submission.report.findings if finding.severity == "error"]
    assert code in {finding.code for finding in found}
    assert all("allowed: " in finding.message and finding.fix for finding in found)
    assert kept(store) == (0, 0, [])
    assert store.submissions.get(submission.id) == submission
    assert [entry.action for entry in store.audit.list(1)] == ["submission.rejected"]


def test_archive_of_images_becomes_a_dataset(store: Store, admin: User) -> None:
    """A zip of rows and images becomes a queued dataset whose images are stored clean."""
    submission = send(store, admin, with_images(*numbered(5)), "counting.zip", approved_by=admin.name)
    report = submission.report
    assert (submission.state, report.findings) == (SubmissionState.ACCEPTED, ())
    assert (report.format, report.rows, report.accepted, report.images) == ("llava", 5, 5, 5)
    assert submission.dataset_id is not None
    dataset = store.datasets.get(submission.dataset_id)
    assert (dataset.name, dataset.state) == ("counting", DatasetState.QUEUED)
    assert kept(store) == (1, 5, [])
    stored = store.datasets.rows(dataset.id)
    for index, row in enumerate(stored):
        [image] = images_of(row.messages)
        assert store.blobs.media_type(image) == "image/png"
        assert Image.open(store.blobs.path(image)).getpixel((0, 0)) == (index, 0, 0)
        assert row.messages == [
            {
                "role": "user",
                "content": [
                    {"type": "image", "sha256": image},
                    {"type": "text", "text": "Which number is this?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": f"number {index}"}]},
        ]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_whose_rows_come_last(mode: str, store: Store, admin: User) -> None:
    """A tar is read whatever the order of its members, its top folder included."""
    pictures = {f"./task/images/{index}.png": content for index, content in enumerate(numbered(4))}
    data = pictures | {"./task/data.json": json.dumps(llava(4)).encode(), "./task/README.md": b"hello"}
    submission = send(store, admin, tarred(data, mode=mode), "task.tar.gz")
    assert (submission.report.accepted, submission.report.images) == (4, 4)
    assert notes(submission) == {"unused_file"}


def test_images_are_found_where_people_put_them(store: Store, admin: User) -> None:
    """A name is looked up beside the data file, at the top, and in `images`, with either kind of slash."""
    items = [
        row | {"image": name}
        for row, name in zip(llava(4), ["0.png", "1.png", "images\\2.png", "./3.png"], strict=True)
    ]
    places = ["d/0.png", "1.png", "d/images/2.png", "images/3.png"]
    data = {"d/data.json": json.dumps(items).encode(), "__MACOSX/d/._data.json": b"x", ".DS_Store": b"x"}
    submission = send(store, admin, zipped(data | dict(zip(places, numbered(4), strict=True))))
    assert (submission.report.accepted, submission.report.findings) == (4, ())


def test_rows_with_errors_are_left_out_and_named(store: Store, admin: User) -> None:
    """One bad row of many costs only itself; the report says which one, where, and what to do."""
    items = rows(30)
    items[6]["messages"][1]["role"] = "bot"
    submission = send(store, admin, jsonl(items), "a.jsonl")
    assert (submission.state, submission.report.accepted) == (SubmissionState.ACCEPTED, 29)
    [finding] = submission.report.findings
    assert (finding.row, finding.field, finding.code) == (7, "messages[1].role", "unknown_role")
    assert finding.message == "Found the role 'bot'; allowed: system, user (or human), assistant (or gpt)."


HALF_A_CHARACTER = rb'{"\ud800": 1, "\ud800": 2}'


def test_a_report_can_be_sent_whatever_a_file_holds(store: Store, admin: User) -> None:
    """Half a character, which JSON can spell and UTF-8 cannot, is written out where a report quotes it."""
    finding = send(store, admin, HALF_A_CHARACTER, "a.jsonl").report.findings[-1]
    assert (finding.code, finding.field) == ("duplicate_key", r"\ud800")
    assert finding.message.encode()


def test_a_report_of_an_earlier_version_can_be_sent(store: Store, admin: User) -> None:
    """A report that was stored with half a character in it is readable like any other."""
    submission = send(store, admin, HALF_A_CHARACTER, "a.jsonl")
    stored = submission.report.to_json()
    for finding in stored["findings"]:
        finding |= {"message": "Found \ud800", "field": "\ud800"}
    store.database.run("UPDATE submissions SET report = ?", [json.dumps(stored)])
    [read] = store.submissions.list()
    assert json.dumps(read.report.to_json(), ensure_ascii=False).encode()
    assert read.report.findings[0].message == r"Found \ud800"


def test_bad_image_costs_its_rows_only(store: Store, admin: User) -> None:
    """A row with one bad image is left out with the image's name, and its good image is not kept either."""
    items = llava(6)
    items[2] |= {
        "image": ["images/2.png", "images/0.png"],
        "conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "x"}],
    }
    pictures = numbered(6)
    pictures[0] = picture(1, 1)
    submission = send(store, admin, with_images(*pictures, items=items))
    assert errors(submission) == [(1, "image_too_small"), (3, "image_too_small")]
    assert "'images/0.png'" in submission.report.findings[0].message
    assert submission.report.images == 4
    assert kept(store) == (1, 4, [])


def test_many_errors_are_counted(store: Store, admin: User) -> None:
    """A report of thousands of bad rows stays short: the first are listed, the rest counted per code."""
    submission = send(store, admin, jsonl([*rows(5), *[{"messages": []}] * 3000]), "a.jsonl")
    assert submission.report.accepted == 5
    assert len(submission.report.findings) == intake.LISTED_ERRORS + 1
    assert "2,800 x nothing_to_learn" in submission.report.findings[-1].message


def test_repeated_rows_are_used_once(store: Store, admin: User) -> None:
    """Rows that say the same about the same pixels are kept once, so that none is in train and holdout at a time."""
    items = [*llava(4), *llava(4)]
    submission = send(store, admin, with_images(*numbered(4), items=items))
    assert (submission.report.rows, submission.report.accepted) == (8, 4)
    assert notes(submission) == {"duplicate_row"}


def test_data_of_which_nothing_can_be_kept_aside_is_told_so(store: Store, admin: User) -> None:
    """Where all rows show the same picture none is held out, and the report says what that means."""
    items = [
        llava(1)[0] | {"id": str(n), "conversations": turns}
        for n, turns in enumerate(
            [{"from": "human", "value": f"<image>\nquestion {n}?"}, {"from": "gpt", "value": "yes"}]
            for n in range(6)
        )
    ]
    submission = send(store, admin, with_images(*numbered(1), items=items))
    assert store.datasets.list()[0].holdout_rows == 0
    assert notes(submission) == {"nothing_held_out"}


def test_what_is_done_to_images_is_noted(store: Store, admin: User) -> None:
    """Places, turned photos, transparency and wrong names are mended and noted, and no place is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825)[1] = "N"
    photo = picture(40, 20, kind="JPEG", exif=exif)
    clear = picture(mode="RGBA", color=(0, 0, 0, 0))
    submission = send(store, admin, with_images(photo, clear, *numbered(2)))
    assert notes(submission) == {
        "location_removed",
        "metadata_removed",
        "rotated",
        "flattened",
        "image_renamed",
    }
    for path in (store.data_dir / "blobs").rglob("*"):
        assert path.is_dir() or not Image.open(path).getexif()


def test_hidden_characters_are_noted(store: Store, admin: User) -> None:
    """Rows whose text runs in another direction than it shows are accepted, but pointed out."""
    submission = send(store, admin, asked("pay \u202e001"), "a.jsonl")
    assert (submission.report.accepted, notes(submission)) == (4, {"hidden_characters"})


def test_inline_images_behave_like_files(store: Store, admin: User) -> None:
    """The same picture as a data: URL, in parquet and in a zip is stored as the same bytes."""
    pixels = numbered(4)
    cells = [{"bytes": data, "path": None} for data in pixels]
    packed = table(*({"image": cell, "question": "What?", "answer": f"{n}"} for n, cell in enumerate(cells)))
    from_parquet = send(store, admin, packed, "a.parquet")
    from_zip = send(store, admin, with_images(*pixels))
    assert from_parquet.report.format == "parquet"
    assert (from_parquet.report.images, from_zip.report.images) == (4, 4)
    assert kept(store) == (2, 4, [])


def test_a_large_picture_fits_into_a_line_of_csv(store: Store, admin: User) -> None:
    """A `data:` URL of 140 kB in a CSV file is read like one in JSON."""
    noise = io.BytesIO()
    Image.frombytes("RGB", (187, 187), NOISE[: 187 * 187 * 3]).save(noise, "PNG")
    url = "data:image/png;base64," + base64.b64encode(noise.getvalue()).decode()
    assert len(url) > 140_000
    file = io.StringIO()
    csv.writer(file).writerows([("image", "question", "answer"), *((url, "What?", f"{n}") for n in range(4))])
    submission = send(store, admin, file.getvalue().encode(), "a.csv")
    assert (errors(submission), submission.report.accepted, submission.report.images) == ([], 4, 1)


def test_same_file_again_is_the_same_submission(store: Store, admin: User) -> None:
    """Uploading the same bytes twice gives the first submission; another user gets one of their own."""
    other = store.users.create("bob", Role.CONTRIBUTOR)
    first = send(store, admin, GOOD_ROWS, "a.jsonl")
    again = send(store, admin, GOOD_ROWS, "b.jsonl")
    theirs = send(store, other, GOOD_ROWS, "a.jsonl")
    assert again == first
    assert theirs.id != first.id
    assert len(store.datasets.list()) == 2


def test_same_file_twice_at_once_is_one_dataset(store: Store, admin: User) -> None:
    """Two uploads of the same bytes at the same moment make one dataset."""
    path = store.data_dir.parent / "upload"
    path.write_bytes(with_images(*numbered(8)))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: receive(store, admin, name, path), ["a.zip", "b.zip"]))
    assert found[0].id == found[1].id
    assert kept(store) == (1, 8, [])


def test_refused_file_can_be_sent_again(store: Store, admin: User) -> None:
    """A refused file is looked at anew, so that a change of the limits or of this program helps."""
    first, second = (send(store, admin, jsonl(rows(3)), "a.jsonl") for _ in range(2))
    assert first.id != second.id


@pytest.mark.parametrize(
    ("filename", "shown", "title"),
    [
        ("'; DROP TABLE--.jsonl", "'; DROP TABLE--.jsonl", "'; DROP TABLE--"),
        ("../../etc/\U0001f600.jsonl", "\U0001f600.jsonl", "\U0001f600"),
        ("C:\\data\\a.jsonl", "a.jsonl", "a"),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl", "x" * 100),
        ("\udcff.jsonl", "?.jsonl", "?"),
        (".jsonl", ".jsonl", "dataset"),
        ("", "", "dataset"),
    ],
)
def test_strange_file_names_are_only_data(
    filename: str, shown: str, title: str, store: Store, admin: User
) -> None:
    """Whatever a file is called, it is taken in, and its name is stored as text of bounded length."""
    submission = send(store, admin, GOOD_ROWS, filename)
    assert submission.filename == shown
    assert store.datasets.list()[0].name == title


def test_dataset_can_be_named(store: Store, admin: User) -> None:
    """A name given with the upload becomes the dataset's; without an approver it waits."""
    send(store, admin, GOOD_ROWS, "a.jsonl", name="Adding one")
    [dataset] = store.datasets.list()
    assert (dataset.name, dataset.state) == ("Adding one", DatasetState.PENDING)


def test_failure_on_the_way_leaves_nothing(
    store: Store, admin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When storing fails in the middle, images already stored and temporary files go, and no row stays."""

    def failing(*_: object, **__: object) -> None:
        raise NameTaken("disk")

    monkeypatch.setattr(store.submissions, "add", failing)
    with pytest.raises(NameTaken):
        send(store, admin, with_images(*numbered(4)))
    assert kept(store) == (0, 0, [])


def test_failed_upload_spares_images_of_others(
    store: Store, admin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that another dataset uses stay when an upload with the same images fails."""
    send(store, admin, with_images(*numbered(4)))

    def failing(*_: object, **__: object) -> None:
        raise NameTaken("disk")

    monkeypatch.setattr(store.submissions, "add", failing)
    with pytest.raises(NameTaken):
        send(store, admin, with_images(*numbered(6)))
    assert kept(store) == (1, 4, [])


def test_large_file_is_read_in_little_memory(store: Store, admin: User) -> None:
    """A data file of 25 MB of rows is checked with a few megabytes of memory."""
    padding = "word " * 5000
    path = store.data_dir.parent / "upload"
    with path.open("wb") as file:
        for index in range(1000):
            turns = [
                {"role": "user", "content": f"{index} {padding}"},
                {"role": "assistant", "content": "yes"},
            ]
            file.write(json.dumps({"messages": turns}).encode() + b"\n")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    submission = receive(store, admin, "a.jsonl", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert submission.report.accepted == 1000
    assert peak < 8 * MEBIBYTE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 50 * 1024


def test_pictures_of_an_upload_on_its_way_are_not_deleted(
    store: Store, admin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever deletes a chat with the same pictures while an upload is being stored does not make it fail."""
    read = Pack.read

    def deleting(pack: Pack, name: str) -> bytes:
        store.blobs.delete_unused({row["sha256"] for row in store.database.rows("SELECT sha256 FROM blobs")})
        return read(pack, name)

    monkeypatch.setattr(Pack, "read", deleting)
    assert send(store, admin, with_images(*numbered(4))).state is SubmissionState.ACCEPTED
    assert kept(store) == (1, 4, [])


def test_failed_upload_spares_images_of_one_on_its_way(
    store: Store, admin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that fails while another with the same pictures is being stored takes none of them with it."""
    other = store.users.create("bob", Role.CONTRIBUTOR)
    add, read = store.submissions.add, Pack.read
    failed: list[bool] = []

    def failing(**values: Any) -> Submission:
        if values["user_id"] == other.id:
            raise NameTaken("disk")
        return add(**values)

    def interrupted(pack: Pack, name: str) -> bytes:
        stored = store.database.rows("SELECT 1 FROM blobs")
        if len(stored) == 3 and not failed:
            failed.append(True)
            with pytest.raises(NameTaken):
                send(store, other, with_images(*numbered(4)))
        return read(pack, name)

    monkeypatch.setattr(store.submissions, "add", failing)
    monkeypatch.setattr(Pack, "read", interrupted)
    assert send(store, admin, with_images(*numbered(4))).state is SubmissionState.ACCEPTED
    assert failed
    assert kept(store) == (1, 4, [])


def test_others_can_write_while_rows_are_divided(
    store: Store, admin: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes long in a large upload is done before the write lock is taken, so nobody finds the database locked."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 0)
    divide, digest = datasets.split, datasets._sha256
    written: list[str] = []

    def write(name: str) -> None:
        with Store(store.settings) as other:
            other.users.create(name, Role.CHAT)
        written.append(name)

    def split(*arguments: Any) -> list[datasets.Split]:
        write("while rows are split")
        return divide(*arguments)

    def sha256(value: object) -> str:
        write(f"while hash {len(written)} is made")
        return digest(value)

    monkeypatch.setattr(datasets, "split", split)
    monkeypatch.setattr(datasets, "_sha256", sha256)
    assert send(store, admin, jsonl(rows(4)), "a.jsonl").report.accepted == 4
    assert len(written) > 4
