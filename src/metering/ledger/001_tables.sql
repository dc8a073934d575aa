-- The ledger: usage events, what they add up to, and what was corrected. No customer data: whom an
-- event is about is a salted hash. Run as the ledger's owner, in one transaction.
CREATE SCHEMA ledger;

-- The tenants whose events are taken, also those that are gone.
CREATE TABLE ledger.tenant (
    -- As in PostgreSQL: t_ and 12 characters.
    id          text        PRIMARY KEY,
    uid         text        NOT NULL,
    name        text        NOT NULL,
    application text        NOT NULL,
    plan        text        NOT NULL,
    -- Where the first usage period began; the others begin whole months later in this zone.
    anchor      timestamptz NOT NULL,
    time_zone   text        NOT NULL
);

-- On which server a tenant's database is or was: whose relay may send for it.
CREATE TABLE ledger.placement (
    tenant   text        NOT NULL REFERENCES ledger.tenant,
    server   text        NOT NULL,
    database text        NOT NULL,
    since    timestamptz NOT NULL DEFAULT now(),
    until    timestamptz,
    PRIMARY KEY (tenant, server, database, since)
);
CREATE INDEX placement_server ON ledger.placement (server, tenant);

-- Every event once. What decides is (tenant, id, UTC day of the event's own time).
CREATE TABLE ledger.event (
    tenant         text        NOT NULL,
    day            date        NOT NULL,
    id             text        COLLATE "C" NOT NULL,
    source         text        NOT NULL,
    meter          text        COLLATE "C" NOT NULL,
    kind           text        NOT NULL,
    -- Of events from the tenant's database; those of the API have no order.
    epoch          integer,
    sequence       bigint,
    first_sequence bigint,
    delta          bigint      NOT NULL,
    value          bigint,
    occurred_at    timestamptz NOT NULL,
    subject        text,
    reason         text,
    actor          text,
    received_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, day, id)
) PARTITION BY RANGE (day);

-- Which sequences of a meter's epoch have arrived.
CREATE TABLE ledger.stream (
    tenant      text           NOT NULL,
    meter       text           COLLATE "C" NOT NULL,
    epoch       integer        NOT NULL,
    received    int8multirange NOT NULL DEFAULT '{}',
    -- Since when a sequence is missing below one that arrived.
    gap_since   timestamptz,
    -- Since when it is known that the database was restored: nothing more is counted of this epoch.
    restored_at timestamptz,
    PRIMARY KEY (tenant, meter, epoch)
) WITH (fillfactor = 50);

-- What each meter is now, and how far its database says that it is.
CREATE TABLE ledger.meter (
    tenant        text        NOT NULL,
    meter         text        COLLATE "C" NOT NULL,
    epoch         integer     NOT NULL DEFAULT 0,
    sequence      bigint      NOT NULL DEFAULT 0,
    value         bigint      NOT NULL DEFAULT 0,
    occurred_at   timestamptz NOT NULL DEFAULT '-infinity',
    mark_epoch    integer,
    mark_sequence bigint,
    mark_value    bigint,
    marked_at     timestamptz,
    PRIMARY KEY (tenant, meter)
) WITH (fillfactor = 50);

-- What the events of a period add up to: sums and extremes, which don't depend on the order in
-- which they arrive. Times are microseconds after the start.
CREATE TABLE ledger.period (
    tenant       text        NOT NULL,
    meter        text        COLLATE "C" NOT NULL,
    start_at     timestamptz NOT NULL,
    end_at       timestamptz NOT NULL,
    events       bigint      NOT NULL,
    delta        numeric     NOT NULL,
    -- Sum of each delta times its time: with the opening value it gives the average over time.
    moment       numeric     NOT NULL,
    low          bigint      NOT NULL,
    high         bigint      NOT NULL,
    -- (epoch, sequence) and value before the first, and after the last.
    first_epoch  integer,
    first_seq    bigint,
    opening      bigint,
    last_epoch   integer,
    last_seq     bigint,
    closing      bigint,
    closed_at    timestamptz,
    estimated    boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, meter, start_at)
) WITH (fillfactor = 50);

-- The same for each UTC day.
CREATE TABLE ledger.day (
    tenant      text    NOT NULL,
    meter       text    COLLATE "C" NOT NULL,
    day         date    NOT NULL,
    events      bigint  NOT NULL,
    delta       numeric NOT NULL,
    moment      numeric NOT NULL,
    low         bigint  NOT NULL,
    high        bigint  NOT NULL,
    first_epoch integer,
    first_seq   bigint,
    opening     bigint,
    last_epoch  integer,
    last_seq    bigint,
    closing     bigint,
    PRIMARY KEY (day, tenant, meter)
) PARTITION BY RANGE (day);

-- What was counted for a period after it was closed, and what a restored database had otherwise:
-- closed periods are never rewritten.
CREATE TABLE ledger.adjustment (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text        NOT NULL,
    meter      text        COLLATE "C" NOT NULL,
    -- The period that it belongs to.
    start_at   timestamptz NOT NULL,
    delta      numeric     NOT NULL,
    -- late, restore, correction.
    reason     text        NOT NULL,
    detail     text,
    actor      text,
    event      text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX adjustment_tenant ON ledger.adjustment (tenant, start_at);

-- Events that were not counted: another one has their id, or their sequence.
CREATE TABLE ledger.quarantine (
    tenant      text        NOT NULL,
    day         date        NOT NULL,
    id          text        COLLATE "C" NOT NULL,
    source      text        NOT NULL,
    -- conflict: the same id with other content. restored: the same sequence with another id, or
    -- an epoch of which that is known.
    why         text        NOT NULL,
    content     jsonb       NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, day, id, why)
);
