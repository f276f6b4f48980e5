-- The report's questions, asked by ClickHouse (tested with 26.9) of the files of any number of collectors.
--
--     clickhouse local --path warehouse --queries-file deploy/clickhouse.sql
--
-- reads collectors/NAME/events-*.jsonl and .jsonl.gz.  On a server those paths are
-- inside its user_files; for questions about the stored table only, leave the INSERT out.
-- Each answer has the numbers of the same place in `flask report --format json`; `refused` is not asked for.

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

-- Questions count each id once, also before ClickHouse has merged its doubles.
CREATE VIEW IF NOT EXISTS core AS SELECT * FROM events FINAL WHERE source = 'core';
CREATE VIEW IF NOT EXISTS cli AS SELECT * FROM events FINAL WHERE source = 'cli';

-- The days asked about, inclusive.
SET param_since = '2026-11-01';
SET param_until = '2026-11-30';

-- events
SELECT countIf(source = 'core') AS core, countIf(source = 'cli') AS cli
FROM events FINAL
WHERE day BETWEEN {since:Date} AND {until:Date};

-- days
SELECT day AS date,
    countIf(source = 'core') AS core_events,
    uniqExactIf(ip, source = 'core') AS core_addresses,
    uniqExactIf(hostname, source = 'core') AS core_hostnames,
    uniqExactIf(payload.projectId, source = 'core') AS core_projects,
    countIf(source = 'cli') AS cli_events,
    uniqExactIf(ip, source = 'cli') AS cli_addresses,
    uniqExactIf(payload.projectId, source = 'cli') AS cli_projects
FROM events FINAL
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY date
ORDER BY date WITH FILL FROM {since:Date} TO {until:Date} + 1;

-- active
SELECT arrayJoin([1, 7, 30]) AS days,
    uniqExactIf(ip, source = 'core' AND day > {until:Date} - days) AS core_addresses,
    uniqExactIf(hostname, source = 'core' AND day > {until:Date} - days) AS core_hostnames,
    uniqExactIf(payload.projectId, source = 'core' AND day > {until:Date} - days) AS core_projects,
    uniqExactIf(ip, source = 'cli' AND day > {until:Date} - days) AS cli_addresses,
    uniqExactIf(payload.projectId, source = 'cli' AND day > {until:Date} - days) AS cli_projects
FROM events FINAL
WHERE day BETWEEN {until:Date} - 29 AND {until:Date}
GROUP BY days
ORDER BY days;

-- core.versions
SELECT payload.version AS value, count() AS events, uniqExact(payload.projectId) AS projects
FROM core
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY value
ORDER BY events DESC, value;

-- core.providers
SELECT arrayJoin(mapKeys(mapFilter((name, is_set) -> is_set, payload.providers))) AS value,
    count() AS events, uniqExact(payload.projectId) AS projects
FROM core
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY value
ORDER BY events DESC, value;

-- core.browsers
SELECT browser AS value, browser_version AS version, count() AS events
FROM core
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY value, version
ORDER BY events DESC, value, version;

-- core.operating_systems
SELECT os AS value, os_version AS version, count() AS events
FROM core
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY value, version
ORDER BY events DESC, value, version;

-- core.resource_count
SELECT min(payload.resourceCount) AS min,
    quantileExactLow(0.5)(payload.resourceCount) AS median,
    arraySort(groupArray(payload.resourceCount))[intDiv(count() * 9 + 9, 10)] AS p90,
    max(payload.resourceCount) AS max
FROM core
WHERE day BETWEEN {since:Date} AND {until:Date};

-- cli.commands
SELECT payload.command AS value, count() AS events
FROM cli
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY value
ORDER BY events DESC, value;

-- cli.node_versions
SELECT payload.nodeVersion AS value, count() AS events
FROM cli
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY value
ORDER BY events DESC, value;

-- cli.operating_systems
SELECT payload.os AS value, payload.osVersion AS version, count() AS events
FROM cli
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY value, version
ORDER BY events DESC, value, version;

-- cli.frameworks
SELECT payload.projectFramework AS value, count() AS events
FROM cli
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY value
ORDER BY events DESC, value;

-- cli.environments
SELECT payload.nodeEnv AS value, count() AS events
FROM cli
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY value
ORDER BY events DESC, value;

-- cli.packages
SELECT (arrayJoin(arrayDistinct(payload.packages)) AS package).name AS name,
    package.version AS version, count() AS events
FROM cli
WHERE day BETWEEN {since:Date} AND {until:Date}
GROUP BY name, version
ORDER BY events DESC, name, version;
