-- The outbox in partitions. What waits is in one that is small and always warm; what was
-- acknowledged moves into that of its day (UTC), and goes with it: no DELETE, no VACUUM.
-- Run as tenantry_owner, in the transaction that raises the schema's version.

ALTER TABLE tenantry.outbox RENAME TO outbox_before;

CREATE TABLE tenantry.outbox (
    event_id       uuid        NOT NULL DEFAULT gen_random_uuid(),
    tenant         text        NOT NULL,
    meter          text        COLLATE "C" NOT NULL,
    epoch          integer     NOT NULL,
    sequence       bigint      NOT NULL,
    -- Add: the application reported a change. Set: it reported what there is. Correct: a person
    -- did. Restore: the first of an epoch, with the value that the restored database has.
    kind           text        NOT NULL CHECK (kind IN ('Add', 'Set', 'Correct', 'Restore')),
    delta          bigint      NOT NULL,
    value          bigint      NOT NULL,
    -- Salted hash of what the event is about; never the thing itself.
    subject        text,
    reason         text,
    -- Who corrected.
    actor          text,
    occurred_at    timestamptz NOT NULL,
    -- Of a Total: the period that the value belongs to.
    period_start   timestamptz,
    -- Of several events that were folded into one, since nobody had fetched them: the first
    -- one's sequence and time, the smallest and largest value, and the sum of each one's delta
    -- times its time (microseconds since 1970), from which an average over time can be had.
    first_sequence bigint,
    first_at       timestamptz,
    low            bigint,
    high           bigint,
    moment         numeric,
    lease_until    timestamptz,
    attempts       integer     NOT NULL DEFAULT 0,
    last_error     text,
    dead_at        timestamptz,
    acked_at       timestamptz,
    CHECK ((first_sequence IS NULL) = (moment IS NULL))
) PARTITION BY LIST ((acked_at IS NULL));

CREATE TABLE tenantry.outbox_pending PARTITION OF tenantry.outbox FOR VALUES IN (true)
    WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
          autovacuum_vacuum_insert_scale_factor = 0.2);
CREATE UNIQUE INDEX outbox_pending_order ON tenantry.outbox_pending (tenant, meter, epoch, sequence)
    WHERE dead_at IS NULL;
CREATE INDEX outbox_pending_dead ON tenantry.outbox_pending (dead_at) WHERE dead_at IS NOT NULL;

CREATE TABLE tenantry.outbox_sent PARTITION OF tenantry.outbox FOR VALUES IN (false)
    PARTITION BY RANGE (acked_at);

-- Nobody has fetched any until now.
INSERT INTO tenantry.outbox (event_id, tenant, meter, epoch, sequence, kind, delta, value, subject, reason, occurred_at)
SELECT event_id, tenant, meter, epoch, sequence, kind, delta, value, subject, reason, occurred_at
  FROM tenantry.outbox_before WHERE acked_at IS NULL;
DROP TABLE tenantry.outbox_before;

-- Every tenant has a row for each meter that it counts in the database, from the beginning: so
-- that it can be said of a meter, and proven by its lock, that nothing was ever counted.
INSERT INTO tenantry.meter (tenant, meter, period_start)
SELECT t.id, d.meter, '-infinity'
  FROM tenantry.tenant t JOIN tenantry.meter_definition d ON d.application = t.application AND d.source = 'Database'
 WHERE t.state IN ('Live', 'Retained')
ON CONFLICT DO NOTHING;

-- By what the relay's password is known again. One row, or none before there was a relay.
CREATE TABLE tenantry.relay (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    digest   bytea   NOT NULL CHECK (octet_length(digest) = 32)
);
