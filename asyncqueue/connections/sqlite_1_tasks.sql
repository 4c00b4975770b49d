-- The tables of schema version 1: messages, states, locks. Statements end with a semicolon, and no comment holds one.
-- Moments are unix seconds.

-- A message that is not done. It is ready (until is null), delayed (until is when it is due, fence is null) or held
-- by a worker (until is when the lease ends, fence is what the receipt must show). The lowest rank is shown first,
-- then the lowest id: rank is minus the priority, and below -255 for what was shown before and came back.
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    task_uuid TEXT NOT NULL,
    priority INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 1,
    until REAL,
    fence INTEGER
) STRICT;
CREATE INDEX message_ready ON message (queue, rank, id) WHERE until IS NULL;
CREATE INDEX message_until ON message (queue, until) WHERE until IS NOT NULL;

-- The bytes of a message stand apart, so that a showing or a new lease does not write them again.
CREATE TABLE body (
    id INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;

-- Tokens of publications of this minute and the one before, so that a repeated publish is known. mark says which call
-- added them.
CREATE TABLE publication (
    minute INTEGER NOT NULL,
    token TEXT NOT NULL,
    mark INTEGER NOT NULL,
    PRIMARY KEY (minute, token)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    task_uuid TEXT NOT NULL,
    priority INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    reason TEXT NOT NULL,
    error TEXT NOT NULL,
    buried_at REAL NOT NULL,
    bytes BLOB NOT NULL
) STRICT;
CREATE INDEX dead_queue ON dead (queue, id);

-- The state of a task as its JSON. task_name and created_at stand beside it, because they outlive writes that do not
-- say them. created_at is unix nanoseconds, null where nobody said it.
CREATE TABLE task_state (
    id INTEGER PRIMARY KEY,
    task_uuid TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    task_name TEXT NOT NULL,
    created_at INTEGER,
    expires_at REAL NOT NULL,
    document BLOB NOT NULL
) STRICT;
CREATE INDEX task_state_expiry ON task_state (expires_at);

CREATE TABLE lock (
    name TEXT PRIMARY KEY,
    token TEXT NOT NULL,
    ends_at REAL NOT NULL
) STRICT, WITHOUT ROWID;
