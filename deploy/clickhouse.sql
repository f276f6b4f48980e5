-- A table in ClickHouse (tested with 26.9) for the files of any number of collectors.
--
--     clickhouse local --path warehouse --queries-file deploy/clickhouse.sql
--
-- reads collectors/NAME/events-*.jsonl and .jsonl.gz.  On a server those paths are inside its
-- user_files; where a shipper fills the table, leave the INSERT out.

CREATE TABLE IF NOT EXISTS events
(
    id              UUID,
    received_at     DateTime64(3, 'UTC'),
    day             Date DEFAULT toDate(received_at),
    source          Enum8('core' = 1, 'cli' = 2),
    ip              Nullable(String), -- a network or a hash, where TELEMETRY_IP says so
    hostname        Nullable(String),
    browser         Nullable(String),
    browser_version Nullable(String),
    os              Nullable(String),
    os_version      Nullable(String),
    payload Tuple(
        -- core
        providers        Map(String, Bool),
        version          Nullable(String),
        resourceCount    Nullable(UInt32),
        -- cli
        nodeEnv          Nullable(String),
        nodeVersion      Nullable(String),
        os               Nullable(String),
        osVersion        Nullable(String),
        command          Nullable(String),
        packages         Array(Tuple(name String, version Nullable(String))),
        projectFramework Nullable(String),
        -- both
        projectId        Nullable(String)
    )
)
-- A file read or shipped twice adds nothing: of the rows with one id, one is kept.
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (source, day, id);

-- Read again what is new or has grown as often as you like.  The allowed error is the
-- last line of a file that was copied while it was being written.
INSERT INTO events (id, received_at, source, ip, hostname, browser, browser_version, os, os_version, payload)
SELECT id, received_at, source, ip, hostname, browser, browser_version, os, os_version, payload
FROM file('collectors/*/events-*.jsonl*', JSONEachRow)
SETTINGS input_format_allow_errors_num = 1, date_time_input_format = 'best_effort';

-- Ask these views: they have each id once, also before ClickHouse has merged its doubles.
CREATE VIEW IF NOT EXISTS core AS SELECT * FROM events FINAL WHERE source = 'core';
CREATE VIEW IF NOT EXISTS cli AS SELECT * FROM events FINAL WHERE source = 'cli';
