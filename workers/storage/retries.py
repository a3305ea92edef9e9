"""Further attempts to reach a store that does not answer for a moment."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from layersweep.rollout.data.locations import PERMANENT

logger = logging.getLogger(__name__)

T = TypeVar("T")
STORE_DELAYS = (1.0, 4.0, 15.0)
"""Seconds before each further attempt to reach the sweep's files."""


def retried(what: str, call: Callable[[], T]) -> T:
    """Make a call that reads or writes files, and again after an OSError that may pass.

    Args:
        what: a noun phrase for the message.
        call: may be repeated as a whole.

    Raises:
        OSError: that of the last attempt.
    """
    for delay in STORE_DELAYS:
        try:
            return call()
        except PERMANENT:
            raise
        except OSError as error:
            logger.warning("%s: %s; again in %.0f s", what, error, delay)
            time.sleep(delay)
    return call()
