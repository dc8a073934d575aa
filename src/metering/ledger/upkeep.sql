-- Tenants, meters, usage periods and partitions: what keeps the ledger beside what is counted. Run as its owner,
-- after functions.sql, which says who may call what and in which order rows are locked.

-- Writes down tenants and their placements (l_ arrays). A tenant with a placement here that it
-- didn't have has left the others.
CREATE OR REPLACE FUNCTION ledger.register(
    p_id text[], p_uid text[], p_name text[], p_application text[], p_plan text[], p_namespace text[], p_anchor timestamptz[],
    p_zone text[], l_tenant text[], l_server text[], l_database text[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO ledger.tenant AS t (id, uid, name, application, plan, namespace, anchor, time_zone)
    SELECT g.* FROM unnest(p_id, p_uid, p_name, p_application, p_plan, p_namespace, p_anchor, p_zone) AS g
     ORDER BY 1
    ON CONFLICT (id) DO UPDATE
       SET uid = excluded.uid, name = excluded.name, application = excluded.application, plan = excluded.plan,
           namespace = excluded.namespace, gone_at = NULL
     WHERE (t.uid, t.name, t.application, t.plan, t.namespace, t.gone_at)
           IS DISTINCT FROM (excluded.uid, excluded.name, excluded.application, excluded.plan, excluded.namespace, NULL::timestamptz);
    UPDATE ledger.placement p SET until = clock_timestamp()
     WHERE p.until IS NULL AND p.tenant = ANY (l_tenant)
       AND NOT EXISTS (SELECT FROM unnest(l_tenant, l_server, l_database) AS g (tenant, server, database)
                        WHERE g.tenant = p.tenant AND g.server = p.server AND g.database = p.database);
    INSERT INTO ledger.placement (tenant, server, database, since)
    SELECT DISTINCT g.tenant, g.server, g.database, clock_timestamp()
      FROM unnest(l_tenant, l_server, l_database) AS g (tenant, server, database)
     ORDER BY 1, 2, 3
    ON CONFLICT (tenant, server, database) WHERE until IS NULL DO NOTHING;
END
$$;

-- Notes that tenants are gone: they are nowhere now, and no further periods of theirs begin.
CREATE OR REPLACE FUNCTION ledger.depart(p_id text[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE ledger.tenant t SET gone_at = clock_timestamp() WHERE t.id = ANY (p_id) AND t.gone_at IS NULL;
    UPDATE ledger.placement p SET until = clock_timestamp() WHERE p.tenant = ANY (p_id) AND p.until IS NULL;
END
$$;

-- What an Application counts; meters that it no longer has are forgotten. A mark, or an event, may have come
-- before: until a period of a meter is closed, its kind follows, since all that is said of it is reckoned.
CREATE OR REPLACE FUNCTION ledger.define(p_application text, p_meter text[], p_kind text[], p_source text[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM ledger.meter_definition d WHERE d.application = p_application AND d.meter <> ALL (p_meter);
    INSERT INTO ledger.meter_definition AS d (application, meter, kind, source)
    SELECT p_application, g.* FROM unnest(p_meter, p_kind, p_source) AS g ORDER BY 2
    ON CONFLICT (application, meter) DO UPDATE SET kind = excluded.kind, source = excluded.source
     WHERE (d.kind, d.source) IS DISTINCT FROM (excluded.kind, excluded.source);
    UPDATE ledger.meter m SET kind = w.kind, changed = pg_current_xact_id()
      FROM (SELECT n.tenant, n.meter, d.kind
              FROM ledger.tenant t
              JOIN ledger.meter n ON n.tenant = t.id AND n.closed_until IS NULL
              JOIN ledger.meter_definition d ON d.application = p_application AND d.meter = n.meter AND d.kind <> n.kind
             WHERE t.application = p_application
             ORDER BY n.tenant, n.meter FOR NO KEY UPDATE OF n) AS w
     WHERE m.tenant = w.tenant AND m.meter = w.meter;
END
$$;

-- Opens usage periods, of meters that may have no event yet.
CREATE OR REPLACE FUNCTION ledger.open_periods(
    p_tenant text[], p_meter text[], p_kind text[], p_source text[], p_start timestamptz[], p_end timestamptz[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM ledger.hold(p_tenant, p_meter, p_kind, p_source, NULL, NULL, NULL);
    INSERT INTO ledger.period (tenant, meter, start_at, end_at)
    SELECT g.* FROM unnest(p_tenant, p_meter, p_start, p_end) AS g ORDER BY 1, 2, 3
    ON CONFLICT DO NOTHING;
    UPDATE ledger.meter m SET changed = pg_current_xact_id()
      FROM unnest(p_tenant, p_meter) AS g (tenant, meter) WHERE m.tenant = g.tenant AND m.meter = g.meter;
    PERFORM pg_notify('ledger', '');
END
$$;

-- Closes periods that ended before `p_now`: those that are proven complete, and as estimated those
-- that ended longer than `p_patience` ago. Opens the next of each, where `p_next` says when it
-- ends. The meters come sorted, each once. Returns those that were closed.
CREATE OR REPLACE FUNCTION ledger.close_periods(
    p_tenant text[], p_meter text[], p_start timestamptz[], p_next timestamptz[], p_now timestamptz, p_patience interval)
RETURNS TABLE (tenant text, meter text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    done_tenant text[];
    done_meter  text[];
BEGIN
    PERFORM FROM ledger.meter m JOIN unnest(p_tenant, p_meter) AS g (tenant, meter) ON m.tenant = g.tenant AND m.meter = g.meter
      ORDER BY m.tenant, m.meter FOR NO KEY UPDATE OF m;
    WITH due AS (
        SELECT s.*, m.proven_at, g.next FROM unnest(p_tenant, p_meter, p_start, p_next) AS g (tenant, meter, start_at, next)
          JOIN ledger.period_state s ON s.tenant = g.tenant AND s.meter = g.meter AND s.start_at = g.start_at
          JOIN ledger.meter m ON m.tenant = g.tenant AND m.meter = g.meter
         WHERE s.closed_at IS NULL AND s.end_at <= p_now AND (m.proven_at >= s.end_at OR s.end_at <= p_now - p_patience)
    ), extreme AS (
        -- Once, when nothing is added any more: with many events it takes a while, with too many too long.
        SELECT d.tenant, d.meter, d.start_at, x.low, x.high
          FROM due d CROSS JOIN LATERAL ledger.extremes(d.tenant, d.meter, d.start_at, d.end_at, d.opening) AS x
         WHERE d.kind = 'Level' AND d.source = 'Api' AND d.events BETWEEN 1 AND 1000000
               -- Where the first of them are dropped already, nobody knows.
           AND x.events = d.events
    ), closed AS (
        UPDATE ledger.period p
           SET opening = d.opening, closing = d.closing, low = least(d.low, x.low), high = greatest(d.high, x.high),
               closed_at = clock_timestamp(), estimated = d.proven_at IS NULL OR d.proven_at < d.end_at
          FROM due d LEFT JOIN extreme x ON x.tenant = d.tenant AND x.meter = d.meter AND x.start_at = d.start_at
         WHERE p.tenant = d.tenant AND p.meter = d.meter AND p.start_at = d.start_at
        RETURNING p.tenant, p.meter, p.start_at, p.end_at
    ), meters AS (
        UPDATE ledger.meter m SET closed_until = greatest(m.closed_until, c.end_at), changed = pg_current_xact_id()
          FROM closed c WHERE m.tenant = c.tenant AND m.meter = c.meter
    ), opened AS (
        INSERT INTO ledger.period (tenant, meter, start_at, end_at)
        SELECT d.tenant, d.meter, d.end_at, d.next FROM due d WHERE d.next IS NOT NULL ORDER BY 1, 2
        ON CONFLICT DO NOTHING
    )
    SELECT array_agg(c.tenant), array_agg(c.meter) INTO done_tenant, done_meter FROM closed c;
    IF done_tenant IS NOT NULL THEN
        PERFORM pg_notify('ledger', '');
    END IF;
    RETURN QUERY SELECT * FROM unnest(done_tenant, done_meter);
END
$$;

-- Keeps events that are not counted: those of a tenant whose database is about to be dropped that were
-- refused for good, and a second one of a batch that has another one's id.
CREATE OR REPLACE FUNCTION ledger.set_aside(
    p_tenant text[], p_id text[], p_why text, p_source text[], p_at timestamptz[], p_content jsonb[], p_error text[])
RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO ledger.quarantine (tenant, day, id, why, source, content, error)
    SELECT g.tenant, ledger.utc_day(g.at), g.id, p_why, g.source, g.content, g.error
      FROM unnest(p_tenant, p_id, p_source, p_at, p_content, p_error) AS g (tenant, id, source, at, content, error)
     ORDER BY 1, 2, 3
    ON CONFLICT DO NOTHING
$$;

-- Makes the partitions that are missing, and drops those whose time is over. Takes nothing from
-- its caller, so that nobody can shorten a time. Returns how many were made and dropped.
CREATE OR REPLACE FUNCTION ledger.keep(OUT made integer, OUT dropped integer)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- Who ingests meanwhile waits no longer than this; it is tried again later.
SET lock_timeout = '3s'
AS $$
DECLARE
    today           CONSTANT date    := ledger.utc_day(clock_timestamp());
    this_month      CONSTANT date    := date_trunc('month', today)::date;
    -- Events are taken when they are at most 35 days old, and kept for longer than that, so that
    -- each is known again.
    back            CONSTANT integer := 36;
    ahead           CONSTANT integer := 10;
    keep_events     CONSTANT integer := 90;
    keep_months     CONSTANT integer := 25;
    keep_quarantine CONSTANT integer := 400;
    name            text;
    first           date;
BEGIN
    -- One at a time; nobody but the operator's processes logs in here.
    PERFORM pg_advisory_xact_lock(7236837462513002);
    made := 0;
    dropped := 0;
    FOR first IN SELECT today + n FROM generate_series(-back, ahead) AS n LOOP
        name := 'event_' || to_char(first, 'YYYYMMDD');
        IF to_regclass(format('ledger.%I', name)) IS NULL THEN
            -- Attached afterwards: that waits for nobody.
            EXECUTE format('CREATE TABLE ledger.%I (LIKE ledger.event INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', name);
            EXECUTE format('ALTER TABLE ledger.event ATTACH PARTITION ledger.%I FOR VALUES FROM (%L) TO (%L)', name, first, first + 1);
            made := made + 1;
        END IF;
    END LOOP;
    FOR first IN SELECT (this_month + make_interval(months => n))::date FROM generate_series(-2, 2) AS n LOOP
        name := 'day_' || to_char(first, 'YYYYMM');
        IF to_regclass(format('ledger.%I', name)) IS NULL THEN
            EXECUTE format('CREATE TABLE ledger.%I (LIKE ledger.day INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)
                            WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05)', name);
            EXECUTE format('ALTER TABLE ledger.day ATTACH PARTITION ledger.%I FOR VALUES FROM (%L) TO (%L)', name, first,
                           (first + interval '1 month')::date);
            made := made + 1;
        END IF;
    END LOOP;
    FOR name IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'ledger.event'::regclass AND c.relname < 'event_' || to_char(today - keep_events, 'YYYYMMDD')
            OR i.inhparent = 'ledger.day'::regclass
               AND c.relname < 'day_' || to_char(this_month - make_interval(months => keep_months), 'YYYYMM')
         ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE ledger.%I', name);
        dropped := dropped + 1;
    END LOOP;
    DELETE FROM ledger.quarantine q WHERE q.received_at < clock_timestamp() - make_interval(days => keep_quarantine);
END
$$;
