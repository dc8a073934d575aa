-- What the operator knows of the tenants of this database, and what they count.
-- Run as tenantry_owner, in the transaction that makes schema tenantry. Tenants have no
-- privilege on any of these tables: they call the functions of functions.sql.

-- Whose the database is. One row.
CREATE TABLE tenantry.database (
    only_row       boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cluster_id     text    NOT NULL,
    kind           text    NOT NULL,
    object         text    NOT NULL,
    -- The role whose members may enter: it holds CONNECT here and EXECUTE on the functions.
    tenants_role   text    NOT NULL,
    schema_version integer NOT NULL,
    -- The highest number of a leader that wrote here.
    fence          bigint  NOT NULL DEFAULT 0
);

-- The ownership record of each tenant.
CREATE TABLE tenantry.tenant (
    id                   text        PRIMARY KEY,
    name                 text        NOT NULL,
    uid                  text        NOT NULL,
    cluster_id           text        NOT NULL,
    application          text        NOT NULL,
    state                text        NOT NULL CHECK (state IN ('Live', 'Retained', 'Dropping', 'Dropped')),
    drop_after           timestamptz CHECK ((state = 'Retained') = (drop_after IS NOT NULL)),
    plan                 text        NOT NULL,
    plan_revision        text        NOT NULL,
    -- Since when the plan's limits apply to this tenant: a grace begins no earlier.
    plan_since           timestamptz NOT NULL DEFAULT clock_timestamp(),
    suspended            boolean     NOT NULL,
    connection_limit     integer     NOT NULL CHECK (connection_limit >= 0),
    temp_file_limit_kb   bigint      CHECK (temp_file_limit_kb >= 0),
    statement_timeout_ms bigint      CHECK (statement_timeout_ms > 0),
    max_transaction_ms   bigint      CHECK (max_transaction_ms > 0),
    period_anchor        timestamptz NOT NULL,
    time_zone            text        NOT NULL,
    -- Hides what events are about from whoever reads them outside.
    salt                 bytea       NOT NULL
        DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
    created_at           timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- Two Tenants of one name can't both be live, whoever is faster.
CREATE UNIQUE INDEX tenant_live_name ON tenantry.tenant (cluster_id, name) WHERE state = 'Live';

-- The tenants' logins: which tenant session_user is, and where a rotation stands.
CREATE TABLE tenantry.login (
    name      text        COLLATE "C" PRIMARY KEY,
    tenant    text        NOT NULL REFERENCES tenantry.tenant,
    -- a and b serve the application in turn; m runs migrations and is Pending while one runs.
    slot      text        NOT NULL CHECK (slot IN ('a', 'b', 'm')),
    state     text        NOT NULL CHECK (state IN ('Pending', 'Current', 'Closing', 'Closed')),
    -- SHA-256 of the password: recognises it in a Secret. Passwords are random.
    digest    bytea       CHECK (octet_length(digest) = 32),
    since     timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When a session of a closing login was last seen.
    last_used timestamptz,
    UNIQUE (tenant, slot)
);
CREATE UNIQUE INDEX login_one_current ON tenantry.login (tenant) WHERE state = 'Current' AND slot <> 'm';

CREATE TABLE tenantry.meter_definition (
    application text NOT NULL,
    meter       text COLLATE "C" NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('Level', 'Total')),
    source      text NOT NULL CHECK (source IN ('Database', 'Api')),
    PRIMARY KEY (application, meter)
);

-- Limits stand apart from what they limit, and no foreign key leads here: an application's open
-- transaction locks its meter's row only, so it can't hold up a change of limits.
CREATE TABLE tenantry.meter_limit (
    plan          text        NOT NULL,
    meter         text        COLLATE "C" NOT NULL,
    max           bigint      NOT NULL CHECK (max >= 0),
    policy        text        NOT NULL CHECK (policy IN ('Hard', 'Soft', 'Grace')),
    grace_days    integer     CHECK (grace_days >= 0),
    grace_percent integer     CHECK (grace_percent >= 0),
    since         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (plan, meter),
    CHECK ((policy = 'Grace') = (grace_days IS NOT NULL AND grace_percent IS NOT NULL))
);

-- What is counted now. Updated in place all day: room on each page keeps that cheap.
CREATE TABLE tenantry.meter (
    tenant       text        NOT NULL,
    meter        text        COLLATE "C" NOT NULL,
    value        bigint      NOT NULL DEFAULT 0 CHECK (value >= 0),
    -- A new epoch begins when a database was restored to an earlier time.
    epoch        integer     NOT NULL DEFAULT 1,
    sequence     bigint      NOT NULL DEFAULT 0,
    over_since   timestamptz,
    -- For a Total: the period that the value belongs to.
    period_start timestamptz NOT NULL,
    last_at      timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (tenant, meter)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 200);

-- Usage events on their way out. The last five columns are the relay's.
CREATE TABLE tenantry.outbox (
    event_id    uuid        NOT NULL DEFAULT gen_random_uuid(),
    tenant      text        NOT NULL,
    meter       text        COLLATE "C" NOT NULL,
    epoch       integer     NOT NULL,
    sequence    bigint      NOT NULL,
    -- Add: the application reported a change. Set: it reported what there is.
    kind        text        NOT NULL CHECK (kind IN ('Add', 'Set')),
    delta       bigint      NOT NULL,
    value       bigint      NOT NULL,
    -- Salted hash of what the event is about; never the thing itself.
    subject     text,
    reason      text,
    occurred_at timestamptz NOT NULL,
    lease_until timestamptz,
    attempts    integer     NOT NULL DEFAULT 0,
    last_error  text,
    dead_at     timestamptz,
    acked_at    timestamptz,
    PRIMARY KEY (tenant, meter, epoch, sequence)
) WITH (fillfactor = 80);

-- The application's migrations that ran, per tenant.
CREATE TABLE tenantry.migration (
    tenant     text        NOT NULL REFERENCES tenantry.tenant,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    place      bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, name)
);
