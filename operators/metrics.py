"""Every Prometheus metric: name, help, unit, labels and buckets, in one table.

Owns    the names. Grafana panels and alerts are checked against this file.

Counters are bound once and added to once a batch, for an increment with labels costs about as
much as the work it counts.
"""

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)

EVENTS_DECODED = Counter("pushflow_messages_decoded", "Messages decoded, by topic.", ["topic"])
DEAD_LETTERS = Counter("pushflow_dead_letters", "Messages that could not be used.", ["reason"])
DUPLICATES = Counter("pushflow_duplicate_events", "Events seen before, by event_id.")
LATE_EVENTS = Counter("pushflow_late_events", "Events behind their partition's watermark.")
TRIGGERS = Counter("pushflow_triggers", "Triggers fired.", ["type"])
DECISIONS = Counter("pushflow_decisions", "Decisions made.", ["outcome", "reason"])
CANDIDATES = Counter("pushflow_candidates", "Candidates proposed, by source.", ["source"])
ARMS = Counter("pushflow_arms", "Arms handed to the policy, by source.", ["source"])
RANK_SECONDS = Histogram(
    "pushflow_rank_seconds", "One batch of triggers ranked, seconds.", buckets=_LATENCY_BUCKETS
)
SCORE_SECONDS = Histogram(
    "pushflow_score_seconds",
    "Users of one batch read by a student, seconds: the served one, or one on trial.",
    ["role"],
    buckets=_LATENCY_BUCKETS,
)
MODELS_REFUSED = Counter(
    "pushflow_models_refused", "Models not taken: corrupt, mismatched, slow.", ["reason"]
)
SHADOW_DRIFT = Histogram(
    "pushflow_shadow_drift",
    "One action set in the order of the model on trial: 1 - rank correlation with the served one.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.25, 1.5, 2),
)
FALLBACKS = Counter(
    "pushflow_fallbacks", "Times a broken neighbour was done without.", ["component"]
)
SINK_SKIPPED = Counter(
    "pushflow_sink_skipped", "Replayed records that stood in the topic already.", ["topic"]
)
REWARDS = Counter("pushflow_rewards", "Rewards learned.", ["kind"])
FEEDBACK_IGNORED = Counter(
    "pushflow_feedback_ignored", "Decisions and feedback that taught nothing.", ["reason"]
)
SIGNALS_IGNORED = Counter(
    "pushflow_signals_ignored", "User signals that changed nothing, by why.", ["reason"]
)
DRIFT_ALARMS = Counter(
    "pushflow_drift_alarms",
    "Means that have moved, of a segment's rewards (reward), or of the learner's errors (error).",
    ["kind"],
)
POLICY_AGE_SECONDS = Gauge("pushflow_policy_age_seconds", "Age of the policy in use, event time.")
TABLE_ROWS = Gauge("pushflow_table_rows", "Rows held of a global table.", ["topic"])
ITEM_CONTENTS = Counter(
    "pushflow_item_contents", "Items that catalog saw: encoded, unchanged, removed.", ["outcome"]
)
ITEM_MEDIA = Counter(
    "pushflow_item_media",
    "Images and sounds left out: outside the roots (refused), absent or too long (failed), "
    "not decoded (unreadable), vectors of another width (misfit).",
    ["reason"],
)
SOURCE_GAPS = Counter(
    "pushflow_source_gaps",
    "Messages gone unread (retention), or after they were read (truncated); topics made anew.",
    ["topic", "reason"],
)
LAG = Gauge("pushflow_source_lag", "Messages behind the end.", ["topic", "partition"])
CHECKPOINT_SECONDS = Histogram(
    "pushflow_checkpoint_seconds",
    "One state checkpoint, seconds.",
    ["store"],
    buckets=_LATENCY_BUCKETS,
)
SAVEPOINTS = Counter("pushflow_savepoints", "Savepoints in state.remote.", ["outcome"])
STATE_TOUCHED = Counter("pushflow_state_touched", "Keys written back at checkpoints.", ["store"])
REDIS_DROPPED = Counter(
    "pushflow_redis_dropped", "Keys dropped unwritten, for too many waited while Redis was away."
)
REDIS_PENDING = Gauge("pushflow_redis_pending", "Keys waiting to be written to Redis.")
ARCHIVE_ROWS = Counter("pushflow_archive_rows", "Messages written to files.", ["topic"])
ARCHIVE_FILES = Counter(
    "pushflow_archive_files", "Files of the archive: written, merged, removed.", ["topic", "kind"]
)
ARCHIVE_BYTES = Counter("pushflow_archive_bytes", "Bytes of files written.", ["topic"])
ARCHIVE_WAITING = Gauge(
    "pushflow_archive_waiting", "Messages read and not in a file yet.", ["topic", "partition"]
)
