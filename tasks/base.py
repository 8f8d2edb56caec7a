"""The base of all tasks: what an error of the tree in `core.errors` means to a message.

Nothing is retried through Celery. Work is found again in PostgreSQL by the reconciler, so a message that met a server
which is away is done with; anything that another try cannot mend is a failure that Flower and the log show.
"""

import logging
from typing import Any

from celery import Task

from core.errors import MillraceError

logger = logging.getLogger(__name__)


class MillraceTask(Task):  # type: ignore[misc]
    abstract = True
    typing = True

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super().__call__(*arguments, **named)
        except MillraceError as error:
            if not error.is_retryable:
                raise
            logger.warning(
                "%s put off: %s. The reconciler finds the work again.",
                self.name,
                error,
                extra={"event": "task.put_off", "task": self.name, "code": error.code},
            )
            return None
