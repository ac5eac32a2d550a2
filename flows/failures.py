"""Failures: what a person must know of the error that ended a flow, and the exit code for it.

Reads   the exception that came out of the flow, with what Bytewax has wrapped around it.
Emits   the error to show, and one of the exit codes that `flows.supervisor` goes by.
"""

from flows.remote import RemoteUnavailable
from flows.supervisor import NO_RESTART, NO_TOPIC, TOPICS_CHANGED
from models.encoders import EncoderError
from models.fusion import FusionFileError, FusionMismatchError
from models.value import ValueFileError
from operators.archive_names import ArchiveError, ArchiveUnusable
from operators.kafka_client import KafkaFailure
from operators.kafka_transactions import Fenced
from operators.lineage import CheckpointError
from operators.lineage import Fenced as StateFenced
from operators.policy_table import PolicyError


class TopicsChanged(RuntimeError):
    """The flow ended by itself, as on SIGTERM, for its topics are not what it started with.

    Start the cluster again at once: the next start reads the topics as they are then.
    """


class NoTopic(KafkaFailure):
    """A topic that a flow needs is not there."""


class DiskFull(RuntimeError):
    """There is no room left for the state."""


# As the operating system, RocksDB and SQLite say it.
_FULL = ("no space left on device", "disk is full")

# What says by its message alone what is wrong -> exit code; anything else is a bug, with a trace.
_EXIT_CODES: dict[type[Exception], int] = {
    TopicsChanged: TOPICS_CHANGED,
    NoTopic: NO_TOPIC,
    CheckpointError: NO_RESTART,
    StateFenced: NO_RESTART,
    EncoderError: NO_RESTART,
    FusionFileError: NO_RESTART,
    FusionMismatchError: NO_RESTART,
    ValueFileError: NO_RESTART,
    PolicyError: NO_RESTART,
    Fenced: NO_RESTART,  # by its successor: starting again, the two would take turns for ever
    ArchiveUnusable: NO_RESTART,
    ArchiveError: 1,
    RemoteUnavailable: 1,
    KafkaFailure: 1,
}


def why(error: BaseException) -> tuple[BaseException, int] | None:
    """Return the error, below what Bytewax wraps around it, that a person must know of.

    With it comes the exit code of the process. None: show the trace.

    >>> why(CheckpointError("checkpoint 17 is missing"))
    (CheckpointError('checkpoint 17 is missing'), 2)
    >>> error, code = why(OSError(28, "No space left on device"))
    >>> type(error).__name__, code
    ('DiskFull', 1)
    >>> why(RuntimeError("something else")) is None
    True
    """
    cause: BaseException | None = error
    while cause is not None:
        for kind, code in _EXIT_CODES.items():
            if isinstance(cause, kind):
                return cause, code
        if any(words in str(cause).lower() for words in _FULL):
            return DiskFull(
                f"the disk of the state is full: {cause}. Make room; started again, the flow goes "
                "on from its last checkpoint, and nothing is lost"
            ), 1
        cause = cause.__cause__
    return None
