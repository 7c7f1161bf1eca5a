"""One open installation: the database and the files, with everything that is kept in them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from storage.audit import Audit
from storage.blobs import Blobs
from storage.conversations import Conversations
from storage.database import Database
from storage.datasets import Datasets
from storage.evaluations import Evaluations
from storage.generations import Generations
from storage.processes import Processes
from storage.rounds import Rounds
from storage.settings import StorageSettings
from storage.submissions import Submissions
from storage.users import Users


class Store:
    """Opens, and on first use creates, the data directory; safe to use from any thread of one process."""

    def __init__(self, settings: StorageSettings) -> None:
        self.settings = settings
        self.data_dir = settings.data_dir.resolve()
        for name in ("blobs", "generations", "secrets", "logs", "work", "tmp"):
            (self.data_dir / name).mkdir(parents=True, exist_ok=True)
        (self.data_dir / "secrets").chmod(0o700)
        self.database = Database(self.data_dir / "llaca.sqlite")
        self.audit = Audit(self.database)
        self.blobs = Blobs(self.database, self.data_dir / "blobs")
        self.users = Users(self.database, self.audit)
        self.submissions = Submissions(self.database)
        self.datasets = Datasets(self.database, self.audit, settings.holdout_share)
        self.rounds = Rounds(self.database, self.audit)
        self.generations = Generations(self.database, self.audit, self.data_dir / "generations")
        self.evaluations = Evaluations(self.database)
        self.conversations = Conversations(self.database)
        self.processes = Processes(self.database)

    def secret(self, name: str) -> str:
        """Return a random secret that is made once and readable only by the owner of the data directory."""
        path = self.data_dir / "secrets" / name
        # Written aside and linked into place: of two processes that start together one wins and both read the same.
        temporary = path.with_name(f"{name}.{os.getpid()}.{secrets.token_hex(4)}")
        if not path.exists():
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        return path.read_text()

    def temporary(self) -> Path:
        """Return the directory for files that need not survive a restart."""
        return self.data_dir / "tmp"

    def clear_temporary(self) -> None:
        """Remove what killed processes have left in the temporary directory, and stored pictures that nothing uses.

        Only while none is running.
        """
        shutil.rmtree(self.temporary())
        self.temporary().mkdir()
        self.blobs.sweep()

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
