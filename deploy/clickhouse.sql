-- The files of any number of collectors in ClickHouse (tested with 26.9), and the report's
-- questions as views.
--
--     clickhouse local --path warehouse --queries-file deploy/clickhouse.sql
--
-- reads collectors/NAME/events-*.jsonl and .jsonl.gz.  On a server those paths are inside its
-- user_files; if a shipper fills the table, leave the INSERT out.
--
-- Ask the views with the last day as a parameter, for example
--
--     SELECT * FROM active(until = '2026-11-22');

CREATE TABLE IF NOT EXISTS events
(
    id              UUID,
    received_at     DateTime64(3, 'UTC'),
    day             Date DEFAULT toDate(received_at),
    source          Enum8('core' = 1, 'cli' = 2),
    ip              Nullable(String), -- a network or a hash if TELEMETRY_IP says so
    hostname        Nullable(String),
    browser         Nullable(String),
    browser_version Nullable(String),
    os              Nullable(String),
    os_version      Nullable(String),
    payload         String -- JSON, as it stands in the file
)
-- A file that is read or shipped twice adds nothing: of the rows with one id, one is kept.
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (source, day, id);

-- Repeat this as often as you like, to read what is new or has grown.  The allowed error is the
-- last line of a file that was copied while it was being written.
INSERT INTO events (id, received_at, source, ip, hostname, browser, browser_version, os, os_version, payload)
SELECT id, received_at, source, ip, hostname, browser, browser_version, os, os_version, payload
FROM file('collectors/*/events-*.jsonl*', JSONEachRow)
SETTINGS input_format_allow_errors_num = 1, date_time_input_format = 'best_effort';

-- The events, a column for each field.  FINAL: each id once, even before ClickHouse has merged
-- its duplicates.

CREATE OR REPLACE VIEW core AS
WITH
    ['0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12',
     '192.0.0.0/24', '192.0.2.0/24', '192.168.0.0/16', '198.18.0.0/15', '198.51.100.0/24',
     '203.0.113.0/24', '240.0.0.0/4', '::/127', '::ffff:0:0/96', '100::/64', '2001::/23',
     '2001:db8::/32', 'fc00::/7', 'fe80::/10'] AS networks_that_are_not_global,
    assumeNotNull(hostname) AS host
SELECT
    id, received_at, day, source, ip, hostname, browser, browser_version, os, os_version, payload,
    hostname IS NOT NULL AND multiIf(
        isIPv4String(host) OR isIPv6String(host),
            arrayExists(network -> isIPAddressInRange(host, network), networks_that_are_not_global),
        position(host, '.') = 0
            OR match(host, '\\.(localhost|local|test|example|invalid|internal|home\\.arpa)$')
    ) AS is_local,
    mapKeys(mapFilter((name, is_set) -> is_set, JSONExtract(payload, 'providers', 'Map(String, Bool)'))) AS providers,
    JSONExtract(payload, 'version', 'Nullable(String)') AS version,
    JSONExtract(payload, 'resourceCount', 'Nullable(UInt32)') AS resourceCount,
    JSONExtract(payload, 'projectId', 'Nullable(String)') AS projectId
FROM events FINAL
WHERE source = 'core';

CREATE OR REPLACE VIEW cli AS
SELECT
    id, received_at, day, source, ip, payload,
    JSONExtract(payload, 'nodeEnv', 'Nullable(String)') AS nodeEnv,
    JSONExtract(payload, 'nodeVersion', 'Nullable(String)') AS nodeVersion,
    JSONExtract(payload, 'os', 'Nullable(String)') AS os,
    JSONExtract(payload, 'osVersion', 'Nullable(String)') AS osVersion,
    JSONExtract(payload, 'command', 'Nullable(String)') AS command,
    JSONExtract(payload, 'packages', 'Array(Tuple(name Nullable(String), version Nullable(String)))') AS packages,
    JSONExtract(payload, 'projectFramework', 'Nullable(String)') AS projectFramework,
    JSONExtract(payload, 'projectId', 'Nullable(String)') AS projectId
FROM events FINAL
WHERE source = 'cli';

-- A row for each event and each unit that it belongs to.  The definitions are in docs/report.md.

CREATE OR REPLACE VIEW sent AS
SELECT source, id, day, payload, pair.1 AS unit, assumeNotNull(pair.2) AS member,
    unit LIKE '%addresses' AND match(member, '^[0-9a-fA-F]{64}$') AS is_hashed
FROM
(
    SELECT 'core' AS source, id, day, payload, arrayJoin(
        [('hosts', if(is_local, NULL, hostname)), ('projects', projectId), ('addresses', ip),
         ('local_addresses', if(is_local, ip, NULL))]) AS pair
    FROM core
    UNION ALL
    SELECT 'cli', id, day, payload, arrayJoin([('projects', projectId), ('addresses', ip)])
    FROM cli
)
WHERE pair.2 IS NOT NULL;

CREATE OR REPLACE VIEW units AS
SELECT pair.1 AS source, pair.2 AS unit
FROM (SELECT arrayJoin([('core', 'hosts'), ('core', 'projects'), ('core', 'addresses'),
    ('core', 'local_addresses'), ('cli', 'projects'), ('cli', 'addresses')]) AS pair);

-- How many are active in 7 and 28 days, and in as many days before.  NULL: nothing is as old as
-- the earlier days, or addresses are hashed, which cannot be counted beyond a day.

CREATE OR REPLACE VIEW active AS
WITH (SELECT min(day) FROM events) > {until:Date} - 2 * days + 1 AS has_no_before
SELECT source, unit, days,
    if(max(is_hashed AND in_now), NULL, countIf(in_now)) AS now,
    if(has_no_before OR max(is_hashed AND in_before), NULL, countIf(in_before)) AS before,
    if(has_no_before OR max(is_hashed AND in_now AND in_before), NULL,
        countIf(in_now AND in_before)) AS stayed,
    if(has_no_before OR max(is_hashed AND in_now AND NOT in_before), NULL,
        countIf(in_now AND NOT in_before)) AS new,
    if(has_no_before OR max(is_hashed AND NOT in_now AND in_before), NULL,
        countIf(NOT in_now AND in_before)) AS gone
FROM
(
    SELECT source, unit, member, days, any(is_hashed) AS is_hashed,
        max(day > {until:Date} - days) AS in_now,
        max(day <= {until:Date} - days) AS in_before
    FROM sent
    ARRAY JOIN [7, 28] AS days
    WHERE day BETWEEN {until:Date} - 2 * days + 1 AND {until:Date}
    GROUP BY source, unit, member, days
    UNION ALL -- so that a unit that nobody sent has a row, of zeros
    SELECT source, unit, '', arrayJoin([7, 28]), false, false, false FROM units
)
GROUP BY source, unit, days
ORDER BY source = 'cli', indexOf(['hosts', 'projects', 'addresses', 'local_addresses'], unit), days;

-- Events and units of the last 56 days in periods of `days`: 7 for weeks, 1 for days.  NULL: the
-- period holds no event, or addresses are hashed.

CREATE OR REPLACE VIEW trend AS
WITH (
    SELECT groupUniqArray(intDiv({until:Date} - day, {days:UInt16}))
    FROM events WHERE day <= {until:Date}
) AS periods_with_events
SELECT
    {until:Date} - (period + 1) * {days:UInt16} + 1 AS since,
    {until:Date} - period * {days:UInt16} AS until,
    source, unit,
    if(NOT has(periods_with_events, period) OR ({days:UInt16} > 1 AND max(is_hashed)), NULL,
        uniqExactIf(member, member != '')) AS count
FROM
(
    SELECT source, unit, member, is_hashed, intDiv({until:Date} - day, {days:UInt16}) AS period
    FROM sent
    WHERE day <= {until:Date}
    UNION ALL
    SELECT source, 'events', toString(id), false, intDiv({until:Date} - day, {days:UInt16})
    FROM events FINAL
    WHERE day <= {until:Date}
    UNION ALL -- so that what nobody sent has a row
    SELECT source, unit, '', false, arrayJoin(range(intDiv(56, {days:UInt16})))
    FROM (SELECT source, unit FROM units UNION ALL SELECT arrayJoin(['core', 'cli']), 'events')
)
WHERE period < intDiv(56, {days:UInt16})
GROUP BY period, source, unit
ORDER BY since, source = 'cli',
    indexOf(['events', 'hosts', 'projects', 'addresses', 'local_addresses'], unit);

-- What each host and project was last seen with in each period: on its last day what it sent most
-- often, then the greater payload.

CREATE OR REPLACE VIEW last_seen AS
SELECT period, source, unit, member, argMax((event, text), (day, events, text)) AS last, last.1 AS id, last.2 AS payload
FROM
(
    SELECT intDiv({until:Date} - day, {days:UInt16}) AS period, source, unit, member, day, payload AS text,
        count() AS events, any(id) AS event
    FROM sent
    WHERE unit IN ('hosts', 'projects') AND day <= {until:Date}
    GROUP BY source, unit, member, day, text
)
GROUP BY period, source, unit, member;

-- Hosts by series of versions in each of the last 8 weeks.

CREATE OR REPLACE VIEW adoption AS
WITH JSONExtract(payload, 'version', 'Nullable(String)') AS version
SELECT {until:Date} - 7 * period - 6 AS since, {until:Date} - 7 * period AS until,
    coalesce(nullIf(extract(version, '^v?(\\d+(?:\\.\\d+)?)'), ''), version) AS series, count() AS hosts
FROM last_seen(until = {until:Date}, days = 7)
WHERE unit = 'hosts' AND period < 8
GROUP BY period, series
ORDER BY since, hosts DESC, series;

-- What the lists count, of the last 28 days: a row for each event, list, value and version.
-- `member` is the unit: the address, the project that ran the command, or, where a host or project
-- counts with what it was last seen with, the id of that event.

CREATE OR REPLACE VIEW listed AS
WITH
    v -> coalesce(nullIf(extract(v, '^v?(\\d+(?:\\.\\d+)?)'), ''), v) AS series,
    v -> coalesce(nullIf(extract(v, '^v?(\\d+)'), ''), v) AS major
SELECT source, found.1 AS list, found.2 AS value, found.3 AS version, id,
    source = 'core' AND list IN ('browsers', 'operating_systems') AS is_of_addresses,
    multiIf(
        is_of_addresses, ip,
        list = 'commands', projectId,
        id IN (
            SELECT id FROM last_seen(until = {until:Date}, days = 28)
            WHERE period = 0 AND unit = if(source = 'core', 'hosts', 'projects')
        ), toString(id),
        NULL) AS member,
    is_of_addresses AND match(ifNull(member, ''), '^[0-9a-fA-F]{64}$') AS is_hashed
FROM
(
    SELECT 'core' AS source, id, ip, projectId, arrayJoin(arrayConcat(
        [('versions', version, NULL),
         ('browsers', browser, major(browser_version)),
         ('operating_systems', os, os_version)],
        arrayMap(name -> ('providers', name, NULL), providers))) AS found
    FROM core
    WHERE day BETWEEN {until:Date} - 27 AND {until:Date}
    UNION ALL
    SELECT 'cli', id, ip, projectId, arrayJoin(arrayConcat(
        [('commands', command, NULL),
         ('operating_systems', os, NULL),
         ('frameworks', projectFramework, NULL),
         ('environments', nodeEnv, NULL),
         ('node_versions', major(nodeVersion), series(nodeVersion))],
        arrayMap(package -> ('packages', package.name, series(package.version)), packages)))
    FROM cli
    WHERE day BETWEEN {until:Date} - 27 AND {until:Date}
);

CREATE OR REPLACE VIEW lists AS
SELECT source, list, value, if(max(is_hashed), NULL, uniqExact(member)) AS units, uniqExact(id) AS events
FROM listed(until = {until:Date})
GROUP BY source, list, value
ORDER BY source, list, coalesce(units, 0) DESC, events DESC, value IS NULL, value;

CREATE OR REPLACE VIEW list_versions AS
SELECT source, list, value, version, if(max(is_hashed), NULL, uniqExact(member)) AS units, uniqExact(id) AS events
FROM listed(until = {until:Date})
WHERE is_of_addresses OR list IN ('node_versions', 'packages')
GROUP BY source, list, value, version
ORDER BY source, list, value IS NULL, value, coalesce(units, 0) DESC, events DESC, version IS NULL, version;

-- Of the hosts' resources; the median is the lower middle one.

CREATE OR REPLACE VIEW resource_count AS
WITH
    arraySort(groupArray(JSONExtract(payload, 'resourceCount', 'Nullable(UInt32)'))) AS counts,
    length(counts) AS hosts -- groupArray leaves NULL out
SELECT
    if(hosts = 0, NULL, counts[1]) AS min,
    if(hosts = 0, NULL, counts[intDiv(hosts + 1, 2)]) AS median,
    if(hosts = 0, NULL, counts[intDiv(9 * hosts + 9, 10)]) AS p90,
    if(hosts = 0, NULL, counts[hosts]) AS max
FROM last_seen(until = {until:Date}, days = 28)
WHERE period = 0 AND unit = 'hosts';
