-- What schema version 2 adds: groups and plans. Statements end with a semicolon at the end of a line, and nothing else
-- does. Moments are unix seconds.

-- A group. What follows it is sent when it is triggered, or was claimed by owner, to be sent until claimed_until.
-- document is its JSON as it was opened, without its members. Positions of members are below size.
CREATE TABLE task_group (
    id INTEGER PRIMARY KEY,
    group_uuid TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    is_triggered INTEGER NOT NULL,
    owner TEXT,
    claimed_until REAL,
    expires_at REAL NOT NULL,
    document BLOB NOT NULL
) STRICT;
CREATE INDEX task_group_expiry ON task_group (expires_at);

CREATE TABLE group_member (
    group_id INTEGER NOT NULL,
    task_uuid TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (group_id, task_uuid)
) STRICT, WITHOUT ROWID;

-- Members that are not known to have ended. Who ends is deleted here, and so is who is found to have ended.
CREATE TABLE group_unfinished (
    group_id INTEGER NOT NULL,
    task_uuid TEXT NOT NULL,
    PRIMARY KEY (group_id, task_uuid)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER task_group_gone AFTER DELETE ON task_group BEGIN
    DELETE FROM group_member WHERE group_id = old.id; DELETE FROM group_unfinished WHERE group_id = old.id; END;

-- A part of a workflow as its bytes, and the UUIDs of all that is in it as a JSON array.
CREATE TABLE plan (
    id INTEGER PRIMARY KEY,
    plan_uuid TEXT NOT NULL UNIQUE,
    ids TEXT NOT NULL,
    expires_at REAL NOT NULL,
    document BLOB NOT NULL
) STRICT;
CREATE INDEX plan_expiry ON plan (expires_at);
