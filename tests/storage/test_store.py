"""What an installation promises: private secrets, and settings that are refused in plain words."""

from __future__ import annotations

import pytest

from storage.errors import BadSetting
from storage.settings import StorageSettings, load, refuse_unknown
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
    with pytest.raises(BadSetting, match="LLACA_HOLDOUT_SHAER"):
        refuse_unknown([StorageSettings], {"LLACA_HOLDOUT_SHAER": "0.1"})
    with pytest.raises(BadSetting, match="colour"):
        load(StorageSettings, {"colour": "red"})
