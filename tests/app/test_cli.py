"""What the command promises: it does what it says on the data directory, speaks JSON if asked, and exits honestly."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from storage.records import Role, User
from storage.store import Store
from tests.app.places import jsonl, promote, until
from tests.fake_vllm import FakeVLLM


@pytest.fixture(autouse=True)
def environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command works on the test's data directory."""
    monkeypatch.setenv("LLACA_DATA_DIR", str(store.data_dir))


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A dataset file."""
    path = tmp_path / "task.jsonl"
    path.write_bytes(jsonl())
    return path


def llaca(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def as_json(*arguments: object, status: int = 0) -> Any:
    """Run the command with --json and return what it printed."""
    done = llaca(*arguments, "--json")
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


def test_a_task_goes_from_file_to_round(store: Store, admin: User, task: Path) -> None:
    """Add, list, show, run, list, show, cancel: each says the same in words and in JSON."""
    added = as_json("data", "add", task, "--user", admin.name, "--name", "numbers")
    assert (added["state"], added["dataset_state"], added["report"]["accepted"]) == ("accepted", "queued", 10)
    assert [dataset["name"] for dataset in as_json("data", "list")] == ["numbers"]
    assert "numbers" in llaca("data", "list", "--state", "queued").stdout
    assert len(as_json("data", "show", 1, "--limit", 2)["rows"]) == 2
    assert len(as_json("data", "show", 1, "--limit", 2**63)["rows"]) == 10
    assert "train_rows: 8" in llaca("data", "show", 1).stdout
    started = as_json("rounds", "run", "--policy", "ema")
    assert (started["state"], started["policy"]) == ("queued", "ema")
    assert [found["id"] for found in as_json("rounds", "list")] == [started["id"]]
    assert len(as_json("rounds", "list", "--limit", 2**63)) == 1
    assert as_json("rounds", "show", started["id"])["datasets"] == [1]
    assert "queued: asked for by command line" in llaca("rounds", "show", started["id"]).stdout
    assert as_json("rounds", "cancel", started["id"])["state"] == "cancelled"


def test_a_contributors_task_waits_for_approval(store: Store, task: Path) -> None:
    """A file added for somebody who is no admin is pending until `data approve`."""
    store.users.create("carl", Role.CONTRIBUTOR)
    assert as_json("data", "add", task, "--user", "carl")["dataset_state"] == "pending"
    assert as_json("rounds", "run", status=1)["error"]["code"] == "nothing_to_learn"
    assert as_json("data", "approve", 1)["state"] == "queued"


def test_a_rejected_file_exits_1_with_its_report(admin: User, tmp_path: Path) -> None:
    """A file that cannot be used is explained and the exit code says so."""
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    done = llaca("data", "add", empty, "--user", admin.name)
    assert done.exit_code == 1
    assert "[empty_file]" in done.stdout
    assert as_json("data", "add", empty, "--user", admin.name, status=1)["state"] == "rejected"


def test_waiting_for_a_round_exits_by_its_end(store: Store, admin: User, task: Path) -> None:
    """`rounds run --wait` tells events on stderr as they happen, and exits 1 unless the round was promoted."""
    llaca("data", "add", task, "--user", admin.name)

    def somebody_cancels() -> None:
        until(lambda: store.rounds.unfinished() is not None)
        store.rounds.cancel(1, "somebody")

    with ThreadPoolExecutor() as pool:
        cancelling = pool.submit(somebody_cancels)
        done = llaca("rounds", "run", "--wait", "--json")
        cancelling.result()
    assert done.exit_code == 1
    assert json.loads(done.stdout)["state"] == "cancelled"
    assert "cancelled by somebody" in done.stderr


def test_generations_list_and_roll_back(store: Store, admin: User, tmp_path: Path) -> None:
    """Rolling back goes to the parent once, and is refused where there is nothing behind."""
    with FakeVLLM() as fake:
        promote(store, admin, fake, tmp_path)
    listed = as_json("generations", "list")
    assert (listed["champion"], listed["data"][0]["name"], listed["data"][0]["serving"]) == (
        1,
        "assistant@1",
        True,
    )
    assert as_json("generations", "rollback") == {"champion": 0}
    assert "assistant@0 serves." in llaca("generations", "list").stdout
    assert as_json("generations", "rollback", status=1)["error"]["code"] == "nothing_to_roll_back"
    assert as_json("generations", "rollback", "--to", 1) == {"champion": 1}
    assert store.audit.list(1)[0].actor == "command line"


def test_people(store: Store) -> None:
    """Add gives a link that works, role and key take effect, list shows everybody."""
    added = as_json("users", "add", "grace", "--role", "contributor")
    token = added["link"].removeprefix("http://127.0.0.1:7860/welcome/")
    invited = store.users.invited(token)
    assert invited is not None
    assert (invited.name, invited.role) == ("grace", Role.CONTRIBUTOR)
    assert as_json("users", "role", "grace", "admin")["role"] == "admin"
    user = store.users.key_user(as_json("users", "key", "grace", "--label", "ci")["key"])
    assert user is not None
    assert user.role is Role.ADMIN
    assert as_json("users", "link", "grace")["link"] != added["link"]
    assert [user["name"] for user in as_json("users", "list")] == ["grace"]
    assert as_json("users", "add", "grace", status=1)["error"]["code"] == "name_taken"
    assert as_json("users", "link", "nobody", status=1)["error"]["code"] == "unknown_user"


def test_links_use_the_public_address(monkeypatch: pytest.MonkeyPatch, admin: User) -> None:
    """LLACA_PUBLIC_URL is what people can open, so printed links begin with it."""
    monkeypatch.setenv("LLACA_PUBLIC_URL", "https://llaca.example.org")
    assert llaca("users", "link", admin.name).stdout.startswith("https://llaca.example.org/welcome/")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["data", "nonsense"],
        ["data", "add"],
        ["data", "add", "/no/such/file"],
        ["data", "show", "x"],
        ["data", "show", "9" * 5000],
        ["data", "list", "--state", "lost"],
        ["rounds", "show"],
        ["rounds", "list", "--limit", "0"],
        ["users", "role", "ada", "king"],
        ["generations", "rollback", "--to", "-1"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_wrong_use_exits_2(arguments: list[str]) -> None:
    """A command, argument or option that does not exist or cannot be read is exit code 2 with a hint."""
    done = llaca(*arguments)
    assert done.exit_code == 2
    assert "Usage:" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "show", 9],
        ["data", "show", 2**63],
        ["rounds", "show", 9],
        ["rounds", "show", 2**63],
        ["data", "approve", 9],
    ],
    ids=str,
)
def test_what_is_not_there_exits_1_with_a_sentence(arguments: list[object]) -> None:
    """A refusal is one sentence on stderr, no traceback, and nothing on stdout."""
    done = llaca(*arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("llaca: There is no")
    assert done.stdout == ""


@pytest.mark.parametrize("command", [["up"], ["users", "link", "ada"]], ids=str)
def test_a_bad_setting_is_said_in_words(
    admin: User, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """A setting that cannot be used is named with its value, and nothing is started."""
    monkeypatch.setenv("LLACA_PORT", "abc")
    done = llaca(*command)
    assert done.exit_code == 1
    assert "LLACA_PORT: found 'abc'" in done.stderr


def test_logs_show_the_end_of_a_log_and_name_those_there_are(store: Store) -> None:
    """The last lines of a process's log are shown; for a name without a log the others are listed."""
    (store.data_dir / "logs" / "vllm.log").write_text("one\ntwo\nthree\n")
    assert llaca("logs", "--lines", 2).stdout == "two\nthree\n"
    assert as_json("logs", "vllm", "--lines", 1) == {"name": "vllm", "lines": ["three"]}
    refused = llaca("logs", "../../etc/passwd")
    assert refused.exit_code == 1
    assert "allowed: vllm" in refused.stderr
