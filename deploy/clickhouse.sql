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

-- Hosts that are not counted, as with --exclude-host, for example
-- host -> match(lower(host), '^(.*\\.demo\\.example\\.com)$').  After a change run this file again,
-- then count again: see below.
CREATE OR REPLACE FUNCTION is_excluded AS host -> false;

CREATE TABLE IF NOT EXISTS events
(
    id              UUID,
    received_at     DateTime64(3, 'UTC'),
    source          Enum8('core' = 1, 'cli' = 2),
    collector       LowCardinality(String),
    ip              Nullable(String), -- a network or a hash if TELEMETRY_IP says so
    hostname        Nullable(String),
    browser         LowCardinality(Nullable(String)),
    browser_version LowCardinality(Nullable(String)),
    os              LowCardinality(Nullable(String)),
    os_version      LowCardinality(Nullable(String)),
    payload         String CODEC(ZSTD), -- JSON, as it stands in the file

    -- What the views ask for is worked out once, when a row is inserted.
    day             Date MATERIALIZED toDate(received_at),
    fields          Tuple(
        providers        Map(LowCardinality(String), Bool),
        version          LowCardinality(Nullable(String)),
        resourceCount    Nullable(UInt32),
        projectId        Nullable(String),
        nodeEnv          LowCardinality(Nullable(String)),
        nodeVersion      LowCardinality(Nullable(String)),
        os               LowCardinality(Nullable(String)),
        osVersion        LowCardinality(Nullable(String)),
        command          LowCardinality(Nullable(String)),
        packages         Array(Tuple(name Nullable(String), version Nullable(String))),
        projectFramework LowCardinality(Nullable(String))
    ) MATERIALIZED JSONExtract(payload, 'Tuple(
        providers Map(LowCardinality(String), Bool), version LowCardinality(Nullable(String)),
        resourceCount Nullable(UInt32), projectId Nullable(String),
        nodeEnv LowCardinality(Nullable(String)), nodeVersion LowCardinality(Nullable(String)),
        os LowCardinality(Nullable(String)), osVersion LowCardinality(Nullable(String)),
        command LowCardinality(Nullable(String)),
        packages Array(Tuple(name Nullable(String), version Nullable(String))),
        projectFramework LowCardinality(Nullable(String)))'),
    -- The host or project that is last seen with a payload.
    member          String MATERIALIZED ifNull(if(source = 'core', hostname, fields.projectId), ''),
    is_automated    Bool MATERIALIZED multiSearchAnyCaseInsensitive(ifNull(browser, ''),
        ['bot', 'crawl', 'spider', 'slurp', 'headless', 'phantomjs', 'inspectiontool']),
    -- The table of report/hosts.py.
    is_in_development Bool MATERIALIZED hostname IS NOT NULL AND if(
        isIPv4String(member) OR isIPv6String(member),
        arrayExists(
            network -> isIPAddressInRange(member, network),
            if(isIPv4String(member) OR isIPv6String(member), -- the function takes nothing else
                ['0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16',
                 '172.16.0.0/12', '192.0.0.0/24', '192.0.2.0/24', '192.168.0.0/16', '198.18.0.0/15',
                 '198.51.100.0/24', '203.0.113.0/24', '240.0.0.0/4', '::/127', '::ffff:0:0/96',
                 '100::/64', '2001::/23', '2001:db8::/32', 'fc00::/7', 'fe80::/10'], [])),
        position(member, '.') = 0
            OR match(member, concat('\\.(localhost|local|localdomain|lan|home|corp|intranet|internal',
                '|test|example|invalid|home\\.arpa|nip\\.io|sslip\\.io)$'))
            -- sandboxes and cloud editors
            OR match(member, concat('\\.(csb\\.app|codesandbox\\.io|webcontainer\\.io|stackblitz\\.io',
                '|gitpod\\.io|gitpod\\.dev|github\\.dev|replit\\.dev|repl\\.co|cloudworkstations\\.dev)$'))
            -- tunnels
            OR match(member, concat('\\.(ngrok\\.io|ngrok\\.app|ngrok\\.dev|ngrok-free\\.app',
                '|ngrok-free\\.dev|trycloudflare\\.com|loca\\.lt|lhr\\.life|serveo\\.net|devtunnels\\.ms)$'))
            -- previews
            OR match(member, concat('-{2}.*\\.(netlify|web)\\.app$|-git-.*-.*\\.vercel\\.app$',
                '|^[^.]*\\.[^.]*\\.pages\\.dev$|-pr-[0-9]+\\.onrender\\.com$')))
)
-- A file that is read or shipped twice adds nothing: of the rows with one id, one is kept.
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (source, day, member, id);

-- What each day had: a row for each unit and member, however often it comes.  The unit `files` is
-- there if the day has an event at all, `events` if the source has one that is counted.
CREATE TABLE IF NOT EXISTS units
(
    source     Enum8('core' = 1, 'cli' = 2),
    unit       Enum8('files' = 1, 'events' = 2, 'hosts' = 3, 'projects' = 4, 'addresses' = 5,
        'development_addresses' = 6),
    day        Date,
    member     String,
    version    LowCardinality(String), -- of hosts: each that came on the day
    collector  LowCardinality(String), -- of hashes, for each collector has a key of its own
    is_hash    Bool MATERIALIZED unit >= 'addresses' AND match(member, '^[0-9a-fA-F]{64}$'),
    is_network Bool MATERIALIZED unit >= 'addresses'
        AND if(isIPv4String(member), endsWith(member, '.0'), match(member, '^([0-9a-f]{1,4}(:[0-9a-f]{1,4}){0,2})?::$'))
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (unit, source, day, member, version, collector);

-- Every INSERT into `events` feeds `units`.  To count again, after an erasure or a change of what
-- is excluded:
--
--     TRUNCATE TABLE units; INSERT INTO events SELECT * FROM events FINAL;

DROP VIEW IF EXISTS units_of_events;

CREATE MATERIALIZED VIEW units_of_events TO units AS
WITH NOT is_automated AND NOT is_excluded(ifNull(hostname, '')) AS is_counted
SELECT DISTINCT source, day, pair.1 AS unit, assumeNotNull(pair.2) AS member,
    if(unit = 'hosts', ifNull(fields.version, ''), '') AS version,
    if(match(member, '^[0-9a-fA-F]{64}$'), events.collector, '') AS collector
FROM events
ARRAY JOIN [
    ('files', ''),
    ('events', if(is_counted, '', NULL)),
    ('hosts', if(is_counted AND NOT is_in_development, hostname, NULL)),
    ('projects', if(is_counted, fields.projectId, NULL)),
    ('addresses', if(is_counted, ip, NULL)),
    ('development_addresses', if(is_counted AND is_in_development, ip, NULL))] AS pair
WHERE pair.2 IS NOT NULL;

-- Repeat this as often as you like, to read what is new or has grown.  The allowed error is the
-- last line of a file that was copied while it was being written.
INSERT INTO events (id, received_at, source, collector, ip, hostname, browser, browser_version, os, os_version, payload)
SELECT id, received_at, source, extract(_path, '([^/]+)/[^/]+$'), ip, hostname, browser, browser_version, os, os_version, payload
FROM file('collectors/*/events-*.jsonl*', JSONEachRow, 'id UUID, received_at DateTime64(3, \'UTC\'), source String,
    ip Nullable(String), hostname Nullable(String), browser Nullable(String), browser_version Nullable(String),
    os Nullable(String), os_version Nullable(String), payload String')
SETTINGS input_format_allow_errors_num = 1, date_time_input_format = 'best_effort';

-- The events, a column for each field.  FINAL: each id once, even before ClickHouse has merged
-- its duplicates.

CREATE OR REPLACE VIEW core AS
SELECT id, received_at, day, source, collector, ip, hostname, is_in_development, browser, browser_version,
    os, os_version, is_automated, is_excluded(ifNull(hostname, '')) AS is_excluded, payload,
    mapKeys(mapFilter((name, is_set) -> is_set, fields.providers)) AS providers,
    fields.version AS version, fields.resourceCount AS resourceCount, fields.projectId AS projectId
FROM events FINAL
WHERE source = 'core';

CREATE OR REPLACE VIEW cli AS
SELECT id, received_at, day, source, collector, ip, payload,
    fields.nodeEnv AS nodeEnv, fields.nodeVersion AS nodeVersion, fields.os AS os, fields.osVersion AS osVersion,
    fields.command AS command, fields.packages AS packages, fields.projectFramework AS projectFramework,
    fields.projectId AS projectId
FROM events FINAL
WHERE source = 'cli';

CREATE OR REPLACE VIEW counted AS
SELECT id, day, source, member, ip, browser, browser_version, os, os_version, is_in_development, fields
FROM events FINAL
WHERE day BETWEEN {since:Date} AND {until:Date} AND NOT is_automated AND NOT is_excluded(ifNull(hostname, ''));

-- The last 56 days in periods of `days`, the last one being 0: of how many days each has events, and
-- which units were not recorded.  The definitions are in docs/report.md.

CREATE OR REPLACE VIEW spans AS
SELECT period, pair.1 AS source, pair.2 AS unit, files, has_masked, has_whole,
    multiIf(
        unit = 'projects', has(with_events, source) AND NOT has(with_projects, source),
        unit IN ('addresses', 'development_addresses'),
            has(without_address, source) OR (has_masked AND has_whole),
        false) AS is_unknown
FROM (SELECT toInt64(number) AS period FROM numbers(intDiv(56, {days:UInt16}))) AS every
LEFT JOIN
(
    SELECT intDiv({until:Date} - day, {days:UInt16}) AS period, count() AS files,
        groupUniqArrayArray(events) AS with_events,
        groupUniqArrayArray(projects) AS with_projects,
        groupUniqArrayArray(arrayFilter(source -> NOT has(addresses, source), events)) AS without_address,
        max(is_masked) AS has_masked, max(is_whole) AS has_whole
    FROM
    (
        SELECT day,
            groupUniqArrayIf(toString(source), unit = 'events') AS events,
            groupUniqArrayIf(toString(source), unit = 'projects') AS projects,
            groupUniqArrayIf(toString(source), unit = 'addresses') AS addresses,
            max(unit = 'addresses' AND NOT is_network) AS is_whole,
            NOT is_whole AND uniqUpToIf(2)(member, unit = 'addresses') > 2 AS is_masked
        FROM units
        WHERE day BETWEEN {until:Date} - 55 AND {until:Date} AND unit IN ('files', 'events', 'projects', 'addresses')
        GROUP BY day
    )
    GROUP BY period
) AS known USING (period)
ARRAY JOIN [('core', 'events'), ('core', 'hosts'), ('core', 'projects'), ('core', 'addresses'),
    ('core', 'development_addresses'), ('cli', 'events'), ('cli', 'projects'), ('cli', 'addresses')] AS pair;

-- How many are active in 7 and 28 days, and in as many days before.  NULL: what was not recorded,
-- hashed addresses, and a change where either window lacks files of more than 1 of 7, 4 of 28 days.

CREATE OR REPLACE VIEW active AS
SELECT source, unit, days,
    if(unknown_now OR hashed_now, NULL, active_now) AS now,
    if(NOT is_comparable OR unknown_before OR hashed_before, NULL, active_before) AS before,
    if(now IS NULL OR before IS NULL OR is_mixed, NULL, active_in_both) AS stayed,
    now - stayed AS new,
    before - stayed AS gone
FROM
(
    SELECT days, source, unit,
        min(files) >= if(days = 7, 6, 24) AS is_comparable,
        max(is_unknown AND period = 0) AS unknown_now, max(is_unknown AND period = 1) AS unknown_before,
        unit IN ('addresses', 'development_addresses') AND max(has_masked) AND max(has_whole) AS is_mixed
    FROM
    (
        SELECT 7 AS days, * FROM spans(until = {until:Date}, days = 7) WHERE period < 2
        UNION ALL
        SELECT 28 AS days, * FROM spans(until = {until:Date}, days = 28)
    )
    WHERE unit != 'events'
    GROUP BY days, source, unit
) AS windows
LEFT JOIN
(
    SELECT source, unit, length.1 AS days, length.2 AS active_now, length.3 AS active_before,
        length.4 AS active_in_both, length.5 AS hashed_now, length.6 AS hashed_before
    FROM
    (
        SELECT toString(source) AS source, toString(unit) AS unit, [
            (7, countIf(now7), countIf(before7), countIf(now7 AND before7),
                max(is_hash AND now7), max(is_hash AND before7)),
            (28, countIf(now28), countIf(before28), countIf(now28 AND before28),
                max(is_hash AND now28), max(is_hash AND before28))] AS lengths
        FROM
        (
            SELECT source, unit, member, any(is_hash) AS is_hash,
                max(day > {until:Date} - 7) AS now7, max(day BETWEEN {until:Date} - 13 AND {until:Date} - 7) AS before7,
                max(day > {until:Date} - 28) AS now28, max(day <= {until:Date} - 28) AS before28
            FROM units
            WHERE unit >= 'hosts' AND day BETWEEN {until:Date} - 55 AND {until:Date}
            GROUP BY source, unit, member
        )
        GROUP BY source, unit
    )
    ARRAY JOIN lengths AS length
) AS members USING (source, unit, days)
ORDER BY source = 'cli', indexOf(['hosts', 'projects', 'addresses', 'development_addresses'], unit), days;

-- Events and units of the last 56 days in periods of `days`: 7 for weeks, 1 for days.  NULL: the
-- period has no file, or the unit was not recorded.

CREATE OR REPLACE VIEW trend AS
SELECT
    {until:Date} - (period + 1) * {days:UInt16} + 1 AS since,
    {until:Date} - period * {days:UInt16} AS until,
    source, unit,
    if(files = 0 OR is_unknown OR is_hashed, NULL, found) AS count
FROM spans(until = {until:Date}, days = {days:UInt16}) AS periods
LEFT JOIN
(
    SELECT intDiv({until:Date} - day, {days:UInt16}) AS period, toString(source) AS source, toString(unit) AS unit,
        uniqExact(member) AS found,
        if({days:UInt16} > 1, max(is_hash), uniqExactIf(collector, is_hash) > 1) AS is_hashed
    FROM units
    WHERE units.unit >= 'hosts' AND day BETWEEN {until:Date} - 55 AND {until:Date}
    GROUP BY period, source, unit
    UNION ALL -- of the events themselves nothing is read but the key
    SELECT intDiv({until:Date} - day, {days:UInt16}) AS period, toString(source) AS source, 'events', count(), false
    FROM counted(since = {until:Date} - 55, until = {until:Date})
    GROUP BY period, source
) AS counts USING (period, source, unit)
ORDER BY since, source = 'cli',
    indexOf(['events', 'hosts', 'projects', 'addresses', 'development_addresses'], unit);

-- The last day of each host and project in each of some periods, and the versions that a host sent
-- on it.

CREATE OR REPLACE VIEW last_days AS
SELECT intDiv({until:Date} - active_on, {days:UInt16}) AS period, source, member, max(active_on) AS day,
    arrayFilter(sent -> sent.1 = day, groupUniqArray((active_on, version))).2 AS versions
FROM (SELECT unit, source, member, day AS active_on, version FROM units)
WHERE (unit, source) IN (('hosts', 'core'), ('projects', 'cli'))
    AND active_on <= {until:Date} AND active_on > {until:Date} - {periods:UInt16} * {days:UInt16}
GROUP BY source, member, period;

-- Hosts by series of versions in each of the last 8 weeks.  A host that sent more than one version
-- on its last day counts with what it sent most often, then with the greater payload.

CREATE OR REPLACE VIEW adoption AS
WITH if(length(versions) = 1, versions[1], often) AS version
SELECT {until:Date} - 7 * period - 6 AS since, {until:Date} - 7 * period AS until,
    coalesce(nullIf(extract(version, '^v?(\\d+(?:\\.\\d+)?)'), ''), version)
        || if(match(version, '^v?\\d+(\\.\\d+)+-'), '-pre', '') AS series,
    count() AS hosts
FROM last_days(until = {until:Date}, days = 7, periods = 8) AS hosts
LEFT JOIN
(
    SELECT day, member, argMax(version, (events, payload)) AS often
    FROM
    (
        SELECT day, member, payload, any(ifNull(fields.version, '')) AS version, count() AS events
        FROM events FINAL
        WHERE source = 'core' AND NOT is_automated AND (day, member) IN (
            SELECT day, member FROM last_days(until = {until:Date}, days = 7, periods = 8) WHERE length(versions) > 1)
        GROUP BY day, member, payload
    )
    GROUP BY day, member
) AS several USING (day, member)
WHERE source = 'core' AND version != ''
GROUP BY period, series
ORDER BY since, hosts DESC, series;

-- What each host and project was last seen with in the last 28 days: the id of such an event.

CREATE OR REPLACE VIEW last_seen AS
SELECT source, member, argMax((event, resources), (events, payload)) AS last, last.1 AS id, last.2 AS resourceCount
FROM
(
    SELECT source, member, payload, count() AS events, any(id) AS event, any(fields.resourceCount) AS resources
    FROM events FINAL
    WHERE NOT is_automated AND (source, day, member) IN (
        SELECT source, day, member FROM last_days(until = {until:Date}, days = 28, periods = 1))
    GROUP BY source, member, payload
)
GROUP BY source, member;

-- What the lists count, of the last 28 days.  Equal events are put together before they are taken
-- apart into rows: of lists, values and versions.  A host or project counts with what it was last
-- seen with, but addresses, and the projects that ran a command, with all: these are `members`.

CREATE OR REPLACE VIEW listed AS
WITH
    v -> coalesce(nullIf(extract(v, '^v?(\\d+(?:\\.\\d+)?)'), ''), v)
        || if(match(v, '^v?\\d+(\\.\\d+)+-'), '-pre', '') AS series,
    v -> coalesce(nullIf(extract(v, '^v?(\\d+)'), ''), v) AS major
SELECT toString(source) AS source, row.1 AS list, row.2 AS value, row.3 AS version, events, units, members, is_hashed,
    number = 1 AS is_first -- of an event with two versions of a package
FROM
(
    SELECT source, events, units, members, false AS is_hashed, arrayDistinct(if(source = 'core',
        arrayConcat(
            [('versions', sent_version, NULL)],
            arrayMap(name -> ('providers', name, NULL),
                mapKeys(mapFilter((name, is_set) -> is_set, providers)))),
        arrayConcat(
            [('operating_systems', system, NULL),
             ('frameworks', framework, NULL),
             ('environments', environment, NULL),
             ('node_versions', major(node), series(node))],
            arrayMap(package -> ('packages', package.name, series(package.version)), packages)))) AS found
    FROM
    (
        SELECT source, fields.version AS sent_version, fields.providers AS providers,
            fields.os AS system, fields.projectFramework AS framework, fields.nodeEnv AS environment,
            fields.nodeVersion AS node, fields.packages AS packages,
            count() AS events, countIf(id IN (SELECT id FROM last_seen(until = {until:Date}))) AS units,
            uniqExactStateIf('', false) AS members
        FROM counted(since = {until:Date} - 27, until = {until:Date})
        GROUP BY source, sent_version, providers, system, framework, environment, node, packages
    )
    UNION ALL
    SELECT source, events, 0, members, is_hashed, if(source = 'core',
        [('browsers', browser, major(browser_version)), ('operating_systems', os, os_version)],
        [('commands', command, NULL)])
    FROM
    (
        WITH if(source = 'core', ip, fields.projectId) AS unit
        SELECT source, browser, browser_version, os, os_version, fields.command AS command,
            count() AS events, uniqExactStateIf(ifNull(unit, ''), unit IS NOT NULL) AS members,
            max(source = 'core' AND match(ifNull(ip, ''), '^[0-9a-fA-F]{64}$')) AS is_hashed
        FROM counted(since = {until:Date} - 27, until = {until:Date})
        GROUP BY source, browser, browser_version, os, os_version, command
    )
)
ARRAY JOIN found AS row, arrayEnumerateUniq(found.1, found.2) AS number;

CREATE OR REPLACE VIEW lists AS
WITH (
    SELECT groupArray((source, unit)) FROM spans(until = {until:Date}, days = 28) WHERE period = 0 AND is_unknown
) AS unknown
SELECT source, list, value,
    if(has(unknown, (source, multiIf(source = 'cli', 'projects', list IN ('browsers', 'operating_systems'), 'addresses', 'hosts')))
        OR max(is_hashed), NULL, uniqExactMerge(members) + sumIf(listed.units, is_first)) AS units,
    sumIf(listed.events, is_first) AS events
FROM listed(until = {until:Date}) AS listed
GROUP BY source, list, value
ORDER BY source, list, coalesce(units, 0) DESC, events DESC, value IS NULL, value;

CREATE OR REPLACE VIEW list_versions AS
WITH (
    SELECT groupArray((source, unit)) FROM spans(until = {until:Date}, days = 28) WHERE period = 0 AND is_unknown
) AS unknown
SELECT source, list, value, version,
    if(has(unknown, (source, if(source = 'cli', 'projects', 'addresses'))) OR max(is_hashed),
        NULL, uniqExactMerge(members) + sum(listed.units)) AS units,
    sum(listed.events) AS events
FROM listed(until = {until:Date}) AS listed
WHERE (source, list) IN (('core', 'browsers'), ('core', 'operating_systems'), ('cli', 'node_versions'), ('cli', 'packages'))
GROUP BY source, list, value, version
ORDER BY source, list, value IS NULL, value, coalesce(units, 0) DESC, events DESC, version IS NULL, version;

-- Of the hosts' resources; the median is the lower middle one.

CREATE OR REPLACE VIEW resource_count AS
WITH
    arraySort(groupArray(resourceCount)) AS counts,
    length(counts) AS hosts, -- groupArray leaves NULL out
    percent -> if(hosts = 0, NULL, counts[intDiv(percent * hosts + 99, 100)]) AS percentile
SELECT if(hosts = 0, NULL, counts[1]) AS min, percentile(10) AS p10, percentile(50) AS median, percentile(90) AS p90,
    if(hosts = 0, NULL, counts[hosts]) AS max
FROM last_seen(until = {until:Date})
WHERE source = 'core';

-- What is counted and what is left out in the last 56 days, and what is known of the last 28.

CREATE OR REPLACE VIEW totals AS
SELECT * FROM
(
    WITH is_excluded(ifNull(hostname, '')) AS left_out, NOT is_automated AND NOT left_out AS is_counted
    SELECT
        countIf(source = 'core' AND is_counted) AS core_events, countIf(source = 'cli' AND is_counted) AS cli_events,
        countIf(source = 'core' AND is_counted AND fields.projectId IS NOT NULL) AS core_with_project,
        countIf(source = 'cli' AND is_counted AND fields.projectId IS NOT NULL) AS cli_with_project,
        countIf(is_automated AND NOT left_out) AS automated_events, countIf(left_out) AS excluded_events
    FROM events FINAL
    WHERE day BETWEEN {until:Date} - 55 AND {until:Date}
) AS events
CROSS JOIN
(
    SELECT count() AS automated_hosts
    FROM
    (
        SELECT member FROM events
        WHERE day BETWEEN {until:Date} - 55 AND {until:Date} AND source = 'core' AND hostname IS NOT NULL
            AND NOT is_in_development AND NOT is_excluded(ifNull(hostname, ''))
        GROUP BY member
        HAVING min(is_automated)
    )
) AS robots
CROSS JOIN
(
    SELECT if(unknown, NULL, countIf(only_in_development)) AS projects_in_development_only, any(networks) AS is_masked
    FROM
    (
        SELECT maxIf(is_unknown, source = 'core' AND unit = 'projects') AS unknown, max(has_masked AND NOT has_whole) AS networks
        FROM spans(until = {until:Date}, days = 28) WHERE period = 0
    ) AS recorded
    CROSS JOIN
    (
        SELECT min(is_in_development) AS only_in_development FROM events
        WHERE day BETWEEN {until:Date} - 27 AND {until:Date} AND source = 'core' AND fields.projectId IS NOT NULL
            AND NOT is_automated AND NOT is_excluded(ifNull(hostname, ''))
        GROUP BY fields.projectId
        UNION ALL SELECT false -- so that there is a row
    ) AS projects
    GROUP BY unknown
) AS last_28_days;
