-- The ledger: usage events, what they add up to, and what was corrected. No customer data: whom an
-- event is about is a salted hash. Run as the ledger's owner, in one transaction.
CREATE SCHEMA ledger;
COMMENT ON SCHEMA ledger IS
'Usage of tenants: events, what they add up to, and what was corrected. No customer data. Written by functions alone.';

CREATE TABLE ledger.migration (
    version    integer     PRIMARY KEY,
    -- SHA-256 of the functions that belong to it.
    functions  text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE ledger.migration IS 'Which versions of this schema were applied, and when.';
COMMENT ON COLUMN ledger.migration.functions IS 'SHA-256 of the file of functions that was loaded last at this version.';

CREATE TABLE ledger.tenant (
    id            text        COLLATE "C" PRIMARY KEY,
    uid           text        NOT NULL,
    name          text        NOT NULL,
    application   text        NOT NULL,
    plan          text        NOT NULL,
    namespace     text,
    anchor        timestamptz NOT NULL,
    time_zone     text        NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now(),
    gone_at       timestamptz
);
CREATE INDEX tenant_namespace ON ledger.tenant (namespace) WHERE namespace IS NOT NULL;
CREATE INDEX tenant_name ON ledger.tenant (name);
COMMENT ON TABLE ledger.tenant IS 'The tenants whose events are taken, also those that are gone.';
COMMENT ON COLUMN ledger.tenant.id IS 'As in its database: t_ and 12 characters.';
COMMENT ON COLUMN ledger.tenant.uid IS 'UID of the Tenant in Kubernetes.';
COMMENT ON COLUMN ledger.tenant.namespace IS 'Its own namespace, whose workloads may count meters of source Api; none in a pool.';
COMMENT ON COLUMN ledger.tenant.anchor IS 'Where its first usage period began; the others begin whole months later in its zone. Never changes.';
COMMENT ON COLUMN ledger.tenant.gone_at IS 'Since when there is no such tenant any more: no further usage periods begin.';

CREATE TABLE ledger.placement (
    tenant   text        COLLATE "C" NOT NULL REFERENCES ledger.tenant,
    server   text        NOT NULL,
    database text        NOT NULL,
    since    timestamptz NOT NULL DEFAULT now(),
    until    timestamptz,
    PRIMARY KEY (tenant, server, database, since)
);
CREATE UNIQUE INDEX placement_open ON ledger.placement (tenant, server, database) WHERE until IS NULL;
COMMENT ON TABLE ledger.placement IS
'On which server, in which database a tenant is or was: whose relay may send for it. Rows are never deleted.';

CREATE TABLE ledger.meter_definition (
    application text COLLATE "C" NOT NULL,
    meter       text COLLATE "C" NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('Level', 'Total')),
    source      text NOT NULL CHECK (source IN ('Database', 'Api')),
    PRIMARY KEY (application, meter)
);
COMMENT ON TABLE ledger.meter_definition IS 'The meters that Applications declare now.';
COMMENT ON COLUMN ledger.meter_definition.kind IS 'Level: how many there are. Total: how much was used in the period; starts at 0 in each.';
COMMENT ON COLUMN ledger.meter_definition.source IS 'Database: counted in the tenant''s database, in order and without gaps. Api: counted by workloads, in no order.';

CREATE TABLE ledger.event (
    tenant         text        COLLATE "C" NOT NULL,
    day            date        NOT NULL,
    id             text        COLLATE "C" NOT NULL,
    source         text        NOT NULL,
    meter          text        COLLATE "C" NOT NULL,
    kind           text        NOT NULL,
    epoch          integer,
    sequence       bigint,
    delta          bigint      NOT NULL,
    value          bigint,
    occurred_at    timestamptz NOT NULL,
    period_start   timestamptz NOT NULL,
    received_at    timestamptz NOT NULL DEFAULT now(),
    subject        text,
    reason         text,
    actor          text,
    first_sequence bigint,
    low            bigint,
    high           bigint,
    moment         numeric,
    PRIMARY KEY (tenant, day, id)
) PARTITION BY RANGE (day);
COMMENT ON TABLE ledger.event IS
'Every event once, for 90 days, in daily partitions. What makes one the same is (tenant, id, UTC day of its own time).';
COMMENT ON COLUMN ledger.event.day IS 'UTC day of occurred_at.';
COMMENT ON COLUMN ledger.event.kind IS
'Add: the application reported a change. Set: what there is. Correct: a person did. Restore: first of an epoch.';
COMMENT ON COLUMN ledger.event.epoch IS 'A new one begins when the tenant''s database was restored. NULL for events of source Api.';
COMMENT ON COLUMN ledger.event.sequence IS 'Place among the meter''s events of this epoch, from 1, without gaps. NULL for events of source Api.';
COMMENT ON COLUMN ledger.event.value IS 'The value after it, as the tenant''s database has it.';
COMMENT ON COLUMN ledger.event.subject IS 'Salted hash of what it is about.';
COMMENT ON COLUMN ledger.event.first_sequence IS 'Of several events that were folded into one: the sequence of the first.';
COMMENT ON COLUMN ledger.event.low IS 'Of a folded event: the smallest value after one of them.';
COMMENT ON COLUMN ledger.event.high IS 'Of a folded event: the largest value after one of them.';
COMMENT ON COLUMN ledger.event.moment IS 'Of a folded event: sum of each delta times its time in microseconds since 1970.';

-- Written with every batch: half of each page stays free, and what changes is in no index, so that
-- a row's next version stays on its page.
CREATE TABLE ledger.meter (
    tenant        text           COLLATE "C" NOT NULL,
    meter         text           COLLATE "C" NOT NULL,
    kind          text           NOT NULL CHECK (kind IN ('Level', 'Total')),
    source        text           NOT NULL CHECK (source IN ('Database', 'Api')),
    epoch         integer        NOT NULL DEFAULT 0,
    sequence      bigint         NOT NULL DEFAULT 0,
    value         bigint         NOT NULL DEFAULT 0,
    occurred_at   timestamptz,
    upto          bigint         NOT NULL DEFAULT 0,
    beyond        int8multirange NOT NULL DEFAULT '{}',
    missing_since timestamptz,
    restored_at   timestamptz,
    known         bigint,
    known_start   timestamptz,
    mark_epoch    integer,
    mark_sequence bigint,
    mark_value    bigint,
    marked_at     timestamptz,
    proven_at     timestamptz,
    closed_until  timestamptz,
    drift         bigint,
    drift_at      timestamptz,
    changed       xid8           NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (tenant, meter)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON COLUMN ledger.meter.kind IS 'As its Application declares it; fixed when its first period is closed.';
COMMENT ON TABLE ledger.meter IS 'What each meter of each tenant is now, which of its events have arrived, and its last mark.';
COMMENT ON COLUMN ledger.meter.epoch IS 'The last that is known; 0 before the first event. Events of an earlier one are put into quarantine.';
COMMENT ON COLUMN ledger.meter.sequence IS 'The last that has arrived of this epoch.';
COMMENT ON COLUMN ledger.meter.value IS 'The value after that event. Of source Api: the sum of all deltas.';
COMMENT ON COLUMN ledger.meter.upto IS 'All sequences of this epoch from 1 to here have arrived, and the next one hasn''t.';
COMMENT ON COLUMN ledger.meter.beyond IS 'Which sequences have arrived behind the first that is missing.';
COMMENT ON COLUMN ledger.meter.missing_since IS 'Since when the lowest missing sequence, of those that must be there, is missing.';
COMMENT ON COLUMN ledger.meter.restored_at IS
'Since when it is known that the database was restored to an earlier time: nothing more is counted until a new epoch begins.';
COMMENT ON COLUMN ledger.meter.known IS 'What was counted when this epoch began, which its Restore event is measured by.';
COMMENT ON COLUMN ledger.meter.known_start IS 'Start of the usage period that known belongs to.';
COMMENT ON COLUMN ledger.meter.mark_sequence IS 'The last mark: up to here all events were committed at marked_at, and none after it was.';
COMMENT ON COLUMN ledger.meter.proven_at IS 'Up to this time everything has arrived: the time of the last mark that was complete.';
COMMENT ON COLUMN ledger.meter.closed_until IS 'End of the last usage period that is closed.';
COMMENT ON COLUMN ledger.meter.drift IS 'By how much the last reconciliation (set_usage with a reason that begins with reconcile) differed.';
COMMENT ON COLUMN ledger.meter.changed IS 'The transaction that changed the row last: who looks for changes compares it with what is finished.';

CREATE TABLE ledger.period (
    tenant      text        COLLATE "C" NOT NULL,
    meter       text        COLLATE "C" NOT NULL,
    start_at    timestamptz NOT NULL,
    end_at      timestamptz NOT NULL,
    events      bigint      NOT NULL DEFAULT 0,
    delta       numeric     NOT NULL DEFAULT 0,
    moment      numeric     NOT NULL DEFAULT 0,
    low         bigint,
    high        bigint,
    first_event bigint[],
    last_event  bigint[],
    opening     bigint,
    closing     bigint,
    closed_at   timestamptz,
    estimated   boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, meter, start_at)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX period_open ON ledger.period (end_at) WHERE closed_at IS NULL;
COMMENT ON TABLE ledger.period IS
'What the events of a usage period add up to: sums and extremes, which don''t depend on the order of arrival. Never changed once closed.';
COMMENT ON COLUMN ledger.period.delta IS 'Sum of all deltas.';
COMMENT ON COLUMN ledger.period.moment IS
'Sum of each delta times its time after the start, in microseconds: with the opening value it gives the average over time.';
COMMENT ON COLUMN ledger.period.low IS 'Smallest value after an event. Of source Api, whose events come in no order, only once it is closed.';
COMMENT ON COLUMN ledger.period.first_event IS 'Epoch, sequence and value before the first of its events that have arrived. NULL for source Api.';
COMMENT ON COLUMN ledger.period.last_event IS 'Epoch, sequence and value after the last of its events that have arrived. NULL for source Api.';
COMMENT ON COLUMN ledger.period.opening IS 'The value at its start, once it is closed; before, see ledger.period_state.';
COMMENT ON COLUMN ledger.period.closing IS 'The value at its end, once it is closed; before, see ledger.period_state.';
COMMENT ON COLUMN ledger.period.estimated IS 'It was closed without proof that everything had arrived.';

CREATE TABLE ledger.day (
    tenant      text     COLLATE "C" NOT NULL,
    meter       text     COLLATE "C" NOT NULL,
    day         date     NOT NULL,
    events      bigint   NOT NULL,
    delta       numeric  NOT NULL,
    moment      numeric  NOT NULL,
    low         bigint,
    high        bigint,
    first_event bigint[],
    last_event  bigint[],
    PRIMARY KEY (day, tenant, meter)
) PARTITION BY RANGE (day);
COMMENT ON TABLE ledger.day IS 'The same for each UTC day, for 25 months, in monthly partitions. Columns as in ledger.period.';

CREATE TABLE ledger.adjustment (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text        COLLATE "C" NOT NULL,
    meter      text        COLLATE "C" NOT NULL,
    start_at   timestamptz NOT NULL,
    delta      numeric     NOT NULL,
    events     bigint      NOT NULL,
    reason     text        NOT NULL CHECK (reason IN ('late', 'restore', 'correction')),
    in_sums    boolean     NOT NULL,
    detail     text,
    actor      text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX adjustment_period ON ledger.adjustment (tenant, meter, start_at);
COMMENT ON TABLE ledger.adjustment IS
'What was counted for a usage period after it was closed, and by how much restored databases differed. Rows are never changed.';
COMMENT ON COLUMN ledger.adjustment.start_at IS 'Start of the period that it belongs to.';
COMMENT ON COLUMN ledger.adjustment.in_sums IS 'Whether the period''s own sums have it too, since it was open: then it is here for the record.';

CREATE TABLE ledger.quarantine (
    tenant      text        COLLATE "C" NOT NULL,
    day         date        NOT NULL,
    id          text        COLLATE "C" NOT NULL,
    why         text        NOT NULL CHECK (why IN ('conflict', 'restored', 'dead')),
    source      text        NOT NULL,
    content     jsonb       NOT NULL,
    error       text,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, day, id, why)
);
CREATE INDEX quarantine_received ON ledger.quarantine (received_at);
COMMENT ON TABLE ledger.quarantine IS 'Events that were not counted and are kept for a person to look at, for 400 days.';
COMMENT ON COLUMN ledger.quarantine.why IS
'conflict: the same id with other content. restored: another event has its sequence, or its epoch is over. dead: refused for good, saved when its database was dropped.';

CREATE TABLE ledger.outbox (
    server      text        NOT NULL,
    database    text        NOT NULL,
    waiting     bigint      NOT NULL,
    oldest      timestamptz,
    dead        jsonb       NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (server, database)
) WITH (fillfactor = 50);
COMMENT ON TABLE ledger.outbox IS 'What the relays last said of each database''s outbox.';
COMMENT ON COLUMN ledger.outbox.dead IS 'How many events were refused for good, by tenant.';

-- What must never change doesn't, also where a function is wrong.
CREATE FUNCTION ledger.refuse_change() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'rows of ledger.% are never changed', TG_TABLE_NAME USING ERRCODE = 'TN020',
        HINT = 'What was wrong is corrected by an adjustment.';
END
$$;
CREATE TRIGGER never_changed BEFORE UPDATE OR DELETE ON ledger.adjustment
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_changed BEFORE UPDATE OR DELETE ON ledger.event
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_reopened BEFORE UPDATE OR DELETE ON ledger.period
    FOR EACH ROW WHEN (OLD.closed_at IS NOT NULL) EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_deleted BEFORE DELETE ON ledger.placement
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER never_reopened BEFORE UPDATE ON ledger.placement
    FOR EACH ROW WHEN (OLD.until IS NOT NULL) EXECUTE FUNCTION ledger.refuse_change();
