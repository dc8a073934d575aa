-- What operator and relay call. Run as tenantry_owner, after functions.sql, some of which it uses.

-- Says which meters an Application declares, and makes a row for each that its tenants count here. Called by the
-- operator. What a meter counts stays as it is while there is a tenant with counts of it.
CREATE OR REPLACE FUNCTION tenantry.define_meters(p_application text, p_meter text[], p_kind text[], p_source text[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    other record;
BEGIN
    SELECT d.meter, d.kind, d.source INTO other
      FROM tenantry.meter_definition d JOIN unnest(p_meter, p_kind, p_source) AS w (meter, kind, source) ON w.meter = d.meter
     WHERE d.application = p_application AND (d.kind, d.source) <> (w.kind, w.source)
       AND EXISTS (SELECT FROM tenantry.tenant t WHERE t.application = p_application AND t.state IN ('Live', 'Retained'))
     ORDER BY d.meter LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'meter "%" of Application "%" is a % of source %, and tenants were counted by that: declare it as it was, and one of another name beside it',
            other.meter, p_application, other.kind, other.source USING ERRCODE = 'TN005';
    END IF;
    DELETE FROM tenantry.meter_definition d WHERE d.application = p_application AND d.meter <> ALL (p_meter);
    INSERT INTO tenantry.meter_definition AS d (application, meter, kind, source)
    SELECT p_application, w.* FROM unnest(p_meter, p_kind, p_source) AS w (meter, kind, source)
    ON CONFLICT (application, meter) DO UPDATE SET kind = excluded.kind, source = excluded.source
     WHERE (d.kind, d.source) <> (excluded.kind, excluded.source);
    INSERT INTO tenantry.meter (tenant, meter, period_start)
    SELECT t.id, d.meter, '-infinity' FROM tenantry.tenant t
      JOIN tenantry.meter_definition d ON d.application = t.application AND d.source = 'Database'
     WHERE t.application = p_application AND t.state IN ('Live', 'Retained')
    ON CONFLICT DO NOTHING;
END
$$;

-- Called first in each of the operator's transactions: holds back whoever led before.
CREATE OR REPLACE FUNCTION tenantry.hold_fence(number bigint)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    seen bigint;
BEGIN
    UPDATE tenantry.database SET fence = number WHERE fence < number;
    -- Shared until the end of the transaction: a later leader waits until this one is done.
    SELECT d.fence INTO STRICT seen FROM tenantry.database d FOR SHARE;
    IF seen > number THEN
        RAISE EXCEPTION 'another operator leads: number % was seen, this one has %', seen, number
            USING ERRCODE = 'TN010';
    END IF;
END
$$;

-- Makes the partitions that acknowledged events move into, from today until `ahead` days later,
-- and drops those whose day was over more than `keep` days ago. Called by the operator. Returns
-- how many were dropped.
CREATE OR REPLACE FUNCTION tenantry.keep_outbox(keep integer, ahead integer)
RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    today   date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    day     date;
    old     text;
    dropped integer := 0;
BEGIN
    FOR day IN SELECT today + n FROM generate_series(0, ahead) AS n LOOP
        IF to_regclass('tenantry.outbox_sent_' || to_char(day, 'YYYYMMDD')) IS NULL THEN
            -- Attached afterwards: that waits for nobody who is counting.
            EXECUTE format('CREATE TABLE tenantry.%I (LIKE tenantry.outbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                           'outbox_sent_' || to_char(day, 'YYYYMMDD'));
            EXECUTE format('ALTER TABLE tenantry.outbox_sent ATTACH PARTITION tenantry.%I FOR VALUES FROM (%L) TO (%L)',
                           'outbox_sent_' || to_char(day, 'YYYYMMDD'),
                           day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
        END IF;
    END LOOP;
    FOR old IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'tenantry.outbox_sent'::regclass
           AND c.relname < 'outbox_sent_' || to_char(today - keep, 'YYYYMMDD')
         ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE tenantry.%I', old);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

-- How far each meter is: every event up to `sequence` is committed, and none that isn't has a
-- time before `as_of`. A meter whose row a transaction holds is left out; it is asked again.
-- Called by the relay: for all, or for those that changed since a moment.
CREATE OR REPLACE FUNCTION tenantry.progress(since timestamptz)
RETURNS TABLE (tenant text, meter text, epoch integer, sequence bigint, value bigint, as_of timestamptz)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    -- Before the locks: who counts later takes a later time.
    moment timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
        SELECT m.tenant, m.meter, m.epoch, m.sequence, m.value, greatest(moment, m.last_at)
          FROM tenantry.meter m
         WHERE since IS NULL OR m.last_at >= since
           FOR SHARE SKIP LOCKED;
END
$$;

-- Folds a tenant's waiting events, but for the newest `beyond`, into one per meter, day (UTC) and
-- period. Called by the operator where nobody has fetched them for long. Returns by how many
-- rows they became fewer.
CREATE OR REPLACE FUNCTION tenantry.fold_outbox(p_tenant text, beyond bigint)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    terms   record;
    removed bigint;
    made    bigint;
BEGIN
    SELECT t.period_anchor, t.time_zone INTO terms FROM tenantry.tenant t WHERE t.id = p_tenant;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    WITH old AS MATERIALIZED (
        -- None that is under way, and none that was tried: somebody may have it already.
        SELECT o.* FROM tenantry.outbox o
         WHERE o.tenant = p_tenant AND o.acked_at IS NULL AND o.dead_at IS NULL AND o.attempts = 0
         ORDER BY o.occurred_at DESC, o.sequence DESC OFFSET beyond
           FOR UPDATE SKIP LOCKED
    ), placed AS (
        -- Neighbours alone are folded: a gap between two sequences begins a new one.
        SELECT o.*,
               (o.occurred_at AT TIME ZONE 'UTC')::date AS day,
               coalesce(o.period_start, tenantry.period_start(terms.period_anchor, terms.time_zone, o.occurred_at)) AS period,
               sum(CASE WHEN o.kind IN ('Add', 'Set') AND o.kind_before IN ('Add', 'Set')
                         AND o.sequence_before = coalesce(o.first_sequence, o.sequence) - 1 THEN 0 ELSE 1 END)
                   OVER (PARTITION BY o.meter, o.epoch ORDER BY o.sequence) AS run
          FROM (SELECT old.*, lag(old.sequence) OVER of_meter AS sequence_before, lag(old.kind) OVER of_meter AS kind_before
                  FROM old WINDOW of_meter AS (PARTITION BY old.meter, old.epoch ORDER BY old.sequence)) AS o
    ), folded AS (
        SELECT meter, epoch, min(coalesce(first_sequence, sequence)) AS first_sequence, max(sequence) AS last_sequence,
               sum(delta)::bigint AS delta,
               min(coalesce(first_at, occurred_at)) AS first_at, max(occurred_at) AS occurred_at,
               min(coalesce(low, value)) AS low, max(coalesce(high, value)) AS high,
               sum(coalesce(moment, delta * (extract(epoch FROM occurred_at) * 1000000)::numeric)) AS moment,
               (array_agg(value ORDER BY sequence DESC))[1] AS value,
               (array_agg(event_id ORDER BY sequence DESC))[1] AS event_id,
               (array_agg(period_start ORDER BY sequence DESC))[1] AS period_start
          FROM placed
         GROUP BY meter, epoch, run, day, period
        HAVING count(*) > 1
    ), gone AS (
        DELETE FROM tenantry.outbox o USING old, folded f
         WHERE o.acked_at IS NULL AND o.dead_at IS NULL
           AND o.tenant = p_tenant AND o.meter = old.meter AND o.epoch = old.epoch AND o.sequence = old.sequence
           AND old.meter = f.meter AND old.epoch = f.epoch
           AND old.sequence BETWEEN f.first_sequence AND f.last_sequence
         RETURNING 1
    ), new AS (
        INSERT INTO tenantry.outbox (event_id, tenant, meter, epoch, sequence, kind, delta, value, reason, occurred_at,
                                     period_start, first_sequence, first_at, low, high, moment)
        SELECT gen_random_uuid(), p_tenant, meter, epoch, last_sequence, 'Add', delta, value, 'folded', occurred_at,
               period_start, first_sequence, first_at, low, high, moment
          FROM folded
         -- After the deletion, whose keys these are.
         WHERE (SELECT count(*) FROM gone) >= 0
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM new) INTO removed, made;
    RETURN removed - made;
END
$$;

-- Corrects what was counted, for a person: whatever the limit, but never below zero. Called by
-- the operator's admin. Returns the new value.
CREATE OR REPLACE FUNCTION tenantry.correct_usage(p_tenant text, p_meter text, p_delta bigint, p_reason text, p_actor text)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    counter tenantry.meter;
    terms   record;
    moment  timestamptz;
    before  bigint;
BEGIN
    SELECT m.* INTO counter FROM tenantry.meter m
     WHERE m.tenant = p_tenant AND m.meter = p_meter FOR NO KEY UPDATE;
    SELECT t.period_anchor, t.time_zone, t.plan_since, d.kind, l.max, l.since INTO terms
      FROM tenantry.tenant t
      JOIN tenantry.meter_definition d ON d.application = t.application AND d.meter = p_meter AND d.source = 'Database'
      LEFT JOIN tenantry.meter_limit l ON l.plan = t.plan AND l.meter = p_meter
     WHERE t.id = p_tenant AND t.state = 'Live';
    IF counter IS NULL OR NOT FOUND THEN
        RAISE EXCEPTION 'tenant % counts no meter "%" in its database', p_tenant, p_meter USING ERRCODE = 'TN002',
            DETAIL = json_build_object('meter', p_meter)::text;
    END IF;
    moment := greatest(clock_timestamp(), counter.last_at);
    counter := tenantry.at_moment(counter, terms.kind, terms.period_anchor, terms.time_zone, moment);
    before := counter.value;
    IF before + p_delta < 0 THEN
        RAISE EXCEPTION 'meter "%" can''t fall below zero: it is %', p_meter, before USING ERRCODE = 'TN004',
            DETAIL = json_build_object('meter', p_meter, 'value', before, 'delta', p_delta)::text;
    END IF;
    UPDATE tenantry.meter m
       SET value = before + p_delta, sequence = counter.sequence + 1, period_start = counter.period_start, last_at = moment,
           over_since = CASE WHEN terms.max IS NULL OR before + p_delta <= terms.max THEN NULL
                             ELSE coalesce(counter.over_since, moment) END
     WHERE m.tenant = p_tenant AND m.meter = p_meter;
    INSERT INTO tenantry.outbox (tenant, meter, epoch, sequence, kind, delta, value, reason, actor, occurred_at, period_start)
    VALUES (p_tenant, p_meter, counter.epoch, counter.sequence + 1, 'Correct', p_delta, before + p_delta,
            p_reason, p_actor, moment, CASE WHEN terms.kind = 'Total' THEN counter.period_start END);
    RETURN before + p_delta;
END
$$;

-- Begins a new epoch of a meter whose database was restored to an earlier time: from here on its
-- sequences can't be mistaken for those that were lost. `known` is what the ledger knew last.
-- Called by the operator's admin; does nothing where a later epoch has begun already.
CREATE OR REPLACE FUNCTION tenantry.begin_epoch(p_tenant text, p_meter text, p_after integer, p_known bigint)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    counter tenantry.meter;
    moment  timestamptz;
    terms   record;
BEGIN
    SELECT m.* INTO counter FROM tenantry.meter m
     WHERE m.tenant = p_tenant AND m.meter = p_meter AND m.epoch <= p_after FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    moment := greatest(clock_timestamp(), counter.last_at);
    SELECT t.period_anchor, t.time_zone, d.kind INTO terms
      FROM tenantry.tenant t LEFT JOIN tenantry.meter_definition d ON d.application = t.application AND d.meter = p_meter
     WHERE t.id = p_tenant;
    -- What the backup has of a Total may belong to a period that is over.
    counter := tenantry.at_moment(counter, terms.kind, terms.period_anchor, terms.time_zone, moment);
    UPDATE tenantry.meter m
       SET epoch = p_after + 1, sequence = 1, value = counter.value, period_start = counter.period_start, last_at = moment
     WHERE m.tenant = p_tenant AND m.meter = p_meter;
    INSERT INTO tenantry.outbox (tenant, meter, epoch, sequence, kind, delta, value, reason, occurred_at, period_start)
    VALUES (p_tenant, p_meter, p_after + 1, 1, 'Restore', counter.value - p_known, counter.value, 'restore', moment,
            CASE WHEN terms.kind = 'Total' THEN counter.period_start END);
    RETURN true;
END
$$;
