"""What an installation promises: private secrets, and settings that are refused in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.blobs import GRACE_SECONDS
from storage.clock import now
from storage.errors import BadSetting, UnknownBlob
from storage.settings import StorageSettings, load, names_of, refuse_unknown
from storage.store import Store


def test_secrets_are_made_once_and_private(store: Store) -> None:
    """A secret is the same for every process and readable by its owner only."""
    with Store(store.settings) as other:
        assert other.secret("vllm") == store.secret("vllm")
    assert (store.data_dir / "secrets" / "vllm").stat().st_mode & 0o777 == 0o600


def test_bad_settings_say_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be used, or does not exist, is refused by name."""
    monkeypatch.setenv("LLACA_HOLDOUT_SHARE", "2")
    with pytest.raises(BadSetting, match=r"LLACA_HOLDOUT_SHARE: found '2'.*0\.5"):
        load(StorageSettings)
    with pytest.raises(BadSetting, match="did you mean LLACA_HOLDOUT_SHARE"):
        refuse_unknown(names_of(StorageSettings), {"LLACA_HOLDOUT_SHAER": "0.1"})
    with pytest.raises(BadSetting, match="colour"):
        load(StorageSettings, {"colour": "red"})


def test_what_a_process_announced_is_known_to_the_others(store: Store) -> None:
    """The newest announcement counts, and a process that never started has none."""
    assert store.processes.facts("learner") == {}
    store.processes.announce("learner", {"cron": ""})
    store.processes.announce("learner", {"cron": "0 3 * * *"})
    with Store(store.settings) as other:
        assert other.processes.facts("learner") == {"cron": "0 3 * * *"}


def test_leftovers_are_cleared(store: Store) -> None:
    """What a killed process left in the temporary directory goes, the directory stays."""
    (store.temporary() / "half").mkdir()
    (store.temporary() / "half" / "upload").write_bytes(b"x")
    store.clear_temporary()
    assert list(store.temporary().iterdir()) == []


def test_pictures_that_nothing_shows_are_cleared(store: Store) -> None:
    """What undone messages and killed uploads have left goes when leftovers do, an hour after it came."""
    old, young = (store.blobs.put(data, "image/png") for data in (b"old", b"young"))
    store.database.run("UPDATE blobs SET created_at = ? WHERE sha256 = ?", [now(-GRACE_SECONDS - 1), old])
    store.clear_temporary()
    assert store.blobs.read(young) == b"young"
    with pytest.raises(UnknownBlob):
        store.blobs.read(old)


def test_a_misspelt_line_of_the_env_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file .env is looked through like the environment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LLACA_HOLDOUT_SHAER=0.1\n")
    with pytest.raises(BadSetting, match="did you mean LLACA_HOLDOUT_SHARE"):
        refuse_unknown(names_of(StorageSettings))
