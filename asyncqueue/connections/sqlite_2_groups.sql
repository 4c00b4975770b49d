-- What schema version 2 adds: groups and plans. Statements end with a semicolon at the end of a line, and nothing else
-- does. Moments are unix seconds.

-- A group. What follows it is sent when it is triggered, or was claimed by owner, to be sent until claimed_until.
-- document is its JSON as it was opened, without its members.
CREATE TABLE task_group (
    id INTEGER PRIMARY KEY,
    group_uuid TEXT NOT NULL UNIQUE,
    is_triggered INTEGER NOT NULL,
    owner TEXT,
    claimed_until REAL,
    expires_at REAL NOT NULL,
    document BLOB NOT NULL
) STRICT;
CREATE INDEX task_group_expiry ON task_group (expires_at);

-- A member of a group, in the order of id. is_unfinished is 0 where it is known to have ended.
CREATE TABLE group_member (
    id INTEGER PRIMARY KEY,
    group_id INTEGER NOT NULL,
    task_uuid TEXT NOT NULL,
    is_unfinished INTEGER NOT NULL DEFAULT 1,
    UNIQUE (group_id, task_uuid)
) STRICT;
CREATE INDEX group_member_unfinished ON group_member (group_id, id) WHERE is_unfinished;

CREATE TRIGGER task_group_gone AFTER DELETE ON task_group BEGIN DELETE FROM group_member WHERE group_id = old.id; END;

-- A part of a workflow as its bytes, and the UUIDs of all that is in it as a JSON array.
CREATE TABLE plan (
    id INTEGER PRIMARY KEY,
    plan_uuid TEXT NOT NULL UNIQUE,
    ids TEXT NOT NULL,
    expires_at REAL NOT NULL,
    document BLOB NOT NULL
) STRICT;
CREATE INDEX plan_expiry ON plan (expires_at);
