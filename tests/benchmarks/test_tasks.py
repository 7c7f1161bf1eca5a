"""Tasks are always the same, never ask what they taught, and know what their answers look like."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.continual import files
from benchmarks.continual.__main__ import form_of, parser_of_arguments
from benchmarks.continual.drawn import SOURCES, Source, build, named, source_of
from benchmarks.continual.general import suite
from benchmarks.continual.protocol import ALIKE, FULL, QUICK, Form
from benchmarks.continual.tasks import Pictures, Task, question_of, reference_of, same
from recipes.smol_llava.drawing import Artist
from recipes.smol_llava.evaluate import ABILITIES
from storage.errors import BadUpload
from tests.learner import tiny

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


def drawn(source: Source, artist: Artist, cache: Path, rows: int = 12) -> Task:
    """Return a small task."""
    return build(source, artist, cache, Pictures(), rows=rows, holdout=6)


@each_source
def test_a_task_is_the_same_each_time_and_more_rows_are_the_same_and_some_more(
    source: Source, artist: Artist, stocked: Path
) -> None:
    """Held-out rows never change, and what a longer run teaches begins with what a shorter one did."""
    one, again, longer = (drawn(source, artist, stocked, rows) for rows in (12, 12, 20))
    assert one.fingerprint == again.fingerprint != longer.fingerprint
    assert [row.sha256 for row in longer.holdout] == [row.sha256 for row in one.holdout]
    assert [row.sha256 for row in longer.train][:12] == [row.sha256 for row in one.train]
    assert (len(one.train), len(one.holdout), len(longer.train)) == (12, 6, 20)


@each_source
def test_no_picture_is_both_taught_and_asked(source: Source, artist: Artist, stocked: Path) -> None:
    """What a model is asked about it has not seen."""
    task = drawn(source, artist, stocked, rows=30)
    taught = {sha256 for row in task.train for sha256 in row.images}
    asked = {sha256 for row in task.holdout for sha256 in row.images}
    assert taught
    assert asked
    assert not taught & asked


def test_the_style_of_a_task_fits_its_own_answers_and_those_of_no_other(
    artist: Artist, stocked: Path
) -> None:
    """Following the format can be told from answering as another task, or as the base model, does."""
    answers = {source.name: references_of(drawn(source, artist, stocked)) for source in SOURCES}
    # The base model, too, answers with bare digits where it counts.
    general = references_of(*suite(artist, Pictures(), 2)) - set("0123456789")
    for source in SOURCES:
        style = re.compile(source.style)
        assert all(style.fullmatch(answer) for answer in answers[source.name])
        foreign = general.union(*(found for name, found in answers.items() if name != source.name))
        assert not [answer for answer in foreign if style.fullmatch(answer)]


def references_of(*tasks: Task) -> set[str]:
    """Return all answers of tasks."""
    return {reference_of(row) for task in tasks for row in (*task.train, *task.holdout)}


def test_instructions_differ_between_tasks_and_from_the_general_suite(artist: Artist, stocked: Path) -> None:
    """No question is asked in two tasks, where it would have two right answers."""
    asked = [{question_of(row) for row in drawn(source, artist, stocked).train} for source in SOURCES] + [
        {question_of(row) for task in suite(artist, Pictures(), 3) for row in task.holdout}
    ]
    assert sum(map(len, asked)) == len(set.union(*asked))


@pytest.mark.parametrize(
    "whole", [source for source in SOURCES if source.answers], ids=lambda source: source.name
)
def test_parts_of_a_task_ask_the_same_and_share_no_answer(
    whole: Source, artist: Artist, stocked: Path
) -> None:
    """Nothing in a question tells which part it belongs to, and each answer of the whole task is in one part."""
    parts = [source_of(f"{whole.name}.{number}-of-2") for number in (1, 2)]
    assert parts[0].answers + parts[1].answers == whole.answers
    tasks = [drawn(part, artist, stocked) for part in parts]
    assert [task.name for task in tasks] == [part.name for part in parts]
    # Every answer does come up, so that no part waits for one, and no other, which would be left out of all parts.
    assert references_of(drawn(whole, artist, stocked, rows=200)) == set(whole.answers)
    assert len({question_of(row) for task in tasks for row in task.train}) == 1


@pytest.mark.parametrize(
    "name",
    ["nothing", "relation.1-of-2", "digits.3-of-2", "digits.0-of-2", "digits.1-of-11", "digits.", "digits.1"],
)
def test_an_unknown_task_is_refused_with_what_there_is(name: str) -> None:
    """A task or a part that does not exist is named, with all that do, those of one's own data included."""
    with pytest.raises(
        ValueError, match=re.escape(f"no task {name!r}; there are own, digits, count")
    ) as found:
        source_of(name, ["own"])
    assert "digits.1-of-2 of digits, count, flags" in str(found.value)


def test_in_the_form_alike_each_question_comes_twice() -> None:
    """Two tasks of each kind, so that groups alone leave something to forget."""
    kinds = [name.partition(".")[0] for name in ALIKE.tasks]
    assert {kinds.count(kind) for kind in kinds} == {2}
    assert all(source_of(name).answers for name in ALIKE.tasks)


def test_the_page_names_every_task_with_an_answer_of_its_form() -> None:
    """What docs/continual.md says of a task's answers is what counts as its form."""
    page = Path(__file__).parents[2].joinpath("docs", "continual.md").read_text(encoding="utf-8")
    for source in SOURCES:
        line = re.search(rf"^\| `{source.name}` \|.*$", page, re.MULTILINE)
        assert line is not None, source.name
        answer = line.group().split(" | ")[2].split("`")[1]
        assert re.fullmatch(source.style, answer), answer


def test_the_quick_form_says_what_it_leaves_out() -> None:
    """Everything in which the quick form is less than the full one is named, and nothing of the full one."""
    assert FULL.cuts(FULL) == []
    said = "; ".join(QUICK.cuts(FULL))
    for cut in (
        "without the tasks emoji, flags",
        "rows 64 instead of 400",
        "seeds 0 instead of 0, 1, 2",
        "orders origin",
    ):
        assert cut in said
    assert len(QUICK.tasks) >= 6
    assert "without the tasks relation, spelling, chart, choice, emoji, flags" in ALIKE.cuts(FULL)


@pytest.mark.parametrize(("flags", "form"), [([], FULL), (["--quick"], QUICK), (["--alike"], ALIKE)])
def test_the_command_line_chooses_the_form(flags: list[str], form: Form) -> None:
    """Without a word it is the full form, and what else is said changes that form alone."""
    parser = parser_of_arguments()
    assert form_of(parser.parse_args(flags)) == form
    assert form_of(parser.parse_args([*flags, "--rows", "7"])) == replace(form, rows=7)


def test_the_same_answer_in_another_case_is_right_and_in_another_form_wrong() -> None:
    """Accuracy forgives case and a full stop, and no other form of an answer."""
    assert same("three", "Three.") == 1
    assert same('{"tallest": "red"}', "red") == 0
    assert same("C-A-T", "C-T") == 0


def test_the_general_suite_asks_every_ability_of_the_recipe(artist: Artist) -> None:
    """Damage to any ability that the base model was made for can be seen."""
    found = suite(artist, Pictures(), 2)
    assert [task.name for task in found] == [ability.name for ability in ABILITIES]
    assert all(len(task.holdout) == 2 for task in found)


def write_llava_file(folder: Path, rows: int) -> Path:
    """Write a data file in LLaVA's format with its pictures, and return its path."""
    pictures = tiny.Pictures()
    listed = []
    for index in range(rows):
        sha256 = pictures.draw(1 + index % 4, index)
        (folder / f"{index}.png").write_bytes(pictures.read(sha256))
        turns = [
            {"from": "human", "value": "<image>\nhow many shapes are there?"},
            {"from": "gpt", "value": tiny.WORDS[index % 4]},
        ]
        listed.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(listed), encoding="utf-8")
    return path


def test_a_file_in_llavas_format_is_a_task(tmp_path: Path) -> None:
    """Somebody's own data becomes rows whose pictures can be read, the same ones each time."""
    path = write_llava_file(tmp_path, 30)
    pictures = Pictures()
    task = files.build("own", path, tmp_path, pictures, rows=10, holdout=4)
    assert (len(task.train), len(task.holdout)) == (10, 4)
    assert {reference_of(row) for row in task.train} <= set(tiny.WORDS)
    assert all(pictures.read(row.images[0]).startswith(b"\x89PNG") for row in task.train)
    assert not {row.images for row in task.train} & {row.images for row in task.holdout}
    assert task.fingerprint == files.build("own", path, tmp_path, Pictures(), rows=10, holdout=4).fingerprint


def test_rows_that_share_one_of_several_pictures_are_on_one_side(tmp_path: Path) -> None:
    """Rows of two pictures tie those of each of them alone: no picture is taught in one row and asked in another."""
    path = write_llava_file(tmp_path, 60)
    for index in range(60):
        picture = tmp_path / f"{index}.png"
        picture.write_bytes(picture.read_bytes() + str(index).encode())  # so that no two are the same
    listed = json.loads(path.read_text(encoding="utf-8"))
    for index in range(0, 60, 2):
        turns = [
            {"from": "human", "value": "<image>\n<image>\nhow many shapes in both?"},
            {"from": "gpt", "value": "many"},
        ]
        images = [f"{index}.png", f"{index + 1}.png"]
        listed.append({"id": f"both {index}", "image": images, "conversations": turns})
    path.write_text(json.dumps(listed), encoding="utf-8")
    task = files.build("own", path, tmp_path, Pictures(), rows=200, holdout=200)
    taught, asked = ({image for row in rows for image in row.images} for rows in (task.train, task.holdout))
    assert len(task.train) + len(task.holdout) == 90
    assert not taught & asked


def test_a_file_with_a_bad_row_or_too_few_rows_is_refused(tmp_path: Path) -> None:
    """A row that the product would not take is named, and no task is made of nothing."""
    path = tmp_path / "data.json"
    path.write_text('[{"image": "a.png", "conversations": []}]', encoding="utf-8")
    with pytest.raises(BadUpload):
        files.build("own", path, tmp_path, Pictures(), rows=10, holdout=4)
    with pytest.raises(ValueError, match="too few rows: 1"):
        files.build("own", write_llava_file(tmp_path, 1), tmp_path, Pictures(), rows=10, holdout=4)


def test_a_name_that_no_drawn_task_has_is_refused(stocked: Path) -> None:
    """The message names it and the tasks that there are; those that exist come once, in the order given."""
    with pytest.raises(ValueError, match=r"no task 'flowers'; there are .*count"):
        named(("count", "flowers"), stocked, Pictures(), rows=2, holdout=1)
    found = named(("chart", "count", "chart"), stocked, Pictures(), rows=2, holdout=1)
    assert list(found) == ["chart", "count"]
