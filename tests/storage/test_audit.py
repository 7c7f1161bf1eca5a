"""What the audit log promises: nobody changes it unnoticed."""

from __future__ import annotations

import pytest

from storage.errors import AuditBroken
from storage.store import Store


@pytest.mark.parametrize(
    "tamper", ["UPDATE audit SET actor = 'nobody' WHERE id = 2", "DELETE FROM audit WHERE id = 2"]
)
def test_a_changed_log_shows(store: Store, tamper: str) -> None:
    """A line of the audit log that was edited or removed is found."""
    for number in range(4):
        store.audit.write("ada", "test", str(number))
    assert store.audit.verify() == 4
    store.database.run(tamper)
    with pytest.raises(AuditBroken):
        store.audit.verify()
