"""What became of the models that a process of `decide` was told of, for people and for tools.

Reads   the table of models.
Emits   the log, and one row a process on push.model-trials.v1.

Only the process itself knows whether it could open a file, and how fast a model is beside another
there. `pushflow models` reads the rows: a model that any process refuses is not promoted.
"""

import logging
from collections.abc import Callable

from flows.settings import Settings
from operators.codec import encode, headers
from operators.kafka_client import KafkaFailure
from operators.kafka_sink import Writer
from operators.messages import TrialReport
from operators.model_table import ModelTable

log = logging.getLogger("pushflow")

REPORTS = "push.model-trials.v1"
EVERY_S = 10.0  # between two reports where nothing has changed


class ModelNews:
    """Tells of changes as they come.

    Parameters
    ----------
    models
        What is told of.
    process
        The process's place in its cluster.
    send
        Takes reports; it must not wait.
    clock, now_ms
        Monotonic seconds, and milliseconds since 1970.
    """

    def __init__(
        self,
        models: ModelTable,
        process: str,
        send: Callable[[TrialReport], None],
        *,
        clock: Callable[[], float],
        now_ms: Callable[[], int],
    ) -> None:
        self._models = models
        self._process = process
        self._send = send
        self._clock, self._now_ms = clock, now_ms
        self._told: tuple[object, ...] = ("none", "", "shadow", 0.0, {})
        self._sent_s = float("-inf")

    def tell(self) -> None:
        """Tell what has changed since the last call; call it between batches."""
        models, before = self._models, self._told
        trial = models.trial.version if models.trial is not None else ""
        stage, share = (models.stage, models.share) if trial else ("shadow", 0.0)
        self._told = (models.version, trial, stage, share, dict(models.refusals))
        now_s = self._clock()
        if self._told == before:
            if now_s - self._sent_s >= EVERY_S:
                self._report(trial, now_s)
            return
        if models.version != before[0]:
            log.info("model %s serves now", models.version)
        if trial and (trial, stage, share) != before[1:4]:
            what = "decides for" if stage == "canary" else "scores in the shadow of the model for"
            log.info("model %s is on trial: it %s %.1f%% of users", trial, what, 100 * share)
        if before[1] and not trial:
            log.info("model %s is not on trial any more", before[1])
        for version, reason in models.refusals.items():
            log.error("model %s is refused, %s goes on: %s", version, models.version, reason)
        self._report(trial, now_s)

    def _report(self, trial: str, now_s: float) -> None:
        models = self._models
        self._sent_s = now_s
        served_p99, trial_p99 = models.times.p99()
        self._send(
            TrialReport(
                process=self._process,
                time_ms=self._now_ms(),
                served=models.version,
                trial=trial,
                refusals=dict(models.refusals),
                n_calls=models.times.n,
                served_p99=served_p99,
                trial_p99=trial_p99,
            )
        )


def sender(settings: Settings) -> Callable[[TrialReport], None]:
    """Return what puts reports on their topic; where it cannot, decisions go on without."""
    client, topic = settings.kafka.client(), settings.kafka.topic(REPORTS)
    writers = [Writer(client)]

    def send(report: TrialReport) -> None:
        record = headers(f"{report.process}:{report.time_ms}", "push.trial-report.v1", "pushflow")
        try:
            writers[0].send(topic, report.process, encode(report), record)
        except KafkaFailure as error:
            log.warning("a report of models is lost: %s", error)
            writers[0] = Writer(client)  # the old one would say so for ever

    return send
