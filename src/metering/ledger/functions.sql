-- What writes the ledger. Run as its owner; the operator's login may call those functions that
-- migrate.rs names, and has no other way to write.
--
-- Rows are locked in one order everywhere: meters by (tenant, meter), then what belongs to them. Who
-- holds a meter's row is alone with its events, periods and days.

CREATE OR REPLACE FUNCTION ledger.clamp(number numeric)
RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT least(greatest(number, -9223372036854775808), 9223372036854775807)::bigint $$;

-- These two have no pinned search_path, so that the planner can put them in: they are asked for each event.
CREATE OR REPLACE FUNCTION ledger.utc_day(moment timestamptz)
RETURNS date
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT (moment AT TIME ZONE 'UTC')::date $$;

-- Since 1970.
CREATE OR REPLACE FUNCTION ledger.microseconds(moment timestamptz)
RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT (extract(epoch FROM moment) * 1000000)::bigint $$;

-- The last of the sequences from 1 on that are there without a gap; 0 where 1 isn't.
CREATE OR REPLACE FUNCTION ledger.reach(sequences int8multirange)
RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN sequences @> 1::bigint THEN (SELECT min(upper(r)) - 1 FROM unnest(sequences) AS r) ELSE 0 END
$$;

-- Each usage period with its opening and closing value. Before it is closed these are reckoned: an
-- event that arrives late may still change them.
CREATE OR REPLACE VIEW ledger.period_state AS
SELECT p.tenant, p.meter, p.start_at, p.end_at, p.events, p.delta, p.moment, o.opening, c.closing,
       least(p.low, o.opening, c.closing) AS low, greatest(p.high, o.opening, c.closing) AS high,
       p.closed_at, p.estimated, m.kind, m.source
  FROM ledger.period p
  JOIN ledger.meter m ON m.tenant = p.tenant AND m.meter = p.meter
 CROSS JOIN LATERAL (
    SELECT CASE
        WHEN p.closed_at IS NOT NULL THEN p.opening
        WHEN p.first_event IS NOT NULL THEN p.first_event[3]
        WHEN m.kind = 'Total' THEN 0
        -- Of a meter without order, what is now less what was added since.
        WHEN m.source = 'Api' THEN ledger.clamp(m.value - (
            SELECT sum(n.delta) FROM ledger.period n
             WHERE n.tenant = p.tenant AND n.meter = p.meter AND n.start_at >= p.start_at AND n.closed_at IS NULL))
        -- Nothing happened in it: as the next one began, or as it is now.
        ELSE coalesce((SELECT coalesce(n.opening, n.first_event[3]) FROM ledger.period n
                        WHERE n.tenant = p.tenant AND n.meter = p.meter AND n.start_at > p.start_at
                          AND (n.opening IS NOT NULL OR n.first_event IS NOT NULL) ORDER BY n.start_at LIMIT 1), m.value)
    END AS opening) o
 CROSS JOIN LATERAL (
    SELECT CASE
        WHEN p.closed_at IS NOT NULL THEN p.closing
        WHEN p.last_event IS NOT NULL THEN p.last_event[3]
        ELSE ledger.clamp(o.opening + p.delta)
    END AS closing) c;
COMMENT ON VIEW ledger.period_state IS
'ledger.period with the opening and closing value of each, those of open periods as far as they are known. Of source Api, which has no order, low and high of an open period are of these two alone.';

-- The smallest and the largest value that a Level of source Api had in a period, by the events' own times, and
-- of how many events that is. What happened in one microsecond is one step.
CREATE OR REPLACE FUNCTION ledger.extremes(
    p_tenant text, p_meter text, p_start timestamptz, p_end timestamptz, p_opening bigint,
    OUT low bigint, OUT high bigint, OUT events bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ledger.clamp(min(v.value)), ledger.clamp(max(v.value)), sum(v.events)::bigint
      FROM (SELECT p_opening + sum(sum(e.delta)) OVER (ORDER BY e.occurred_at) AS value, count(*) AS events
              FROM ledger.event e
             WHERE e.tenant = p_tenant AND e.meter = p_meter AND e.period_start = p_start
               AND e.day BETWEEN ledger.utc_day(p_start) AND ledger.utc_day(p_end)
             GROUP BY e.occurred_at) AS v
$$;

-- What the counted events of a meter come to, and in which period: what a restored database is
-- measured by.
CREATE OR REPLACE FUNCTION ledger.counted(p_tenant text, p_meter text)
RETURNS TABLE (start_at timestamptz, value bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.start_at, ledger.clamp(p.opening + p.delta) FROM ledger.period_state p
     WHERE p.tenant = p_tenant AND p.meter = p_meter AND p.events > 0 ORDER BY p.start_at DESC LIMIT 1
$$;

-- Sees to it that these meters have rows, and locks them in their order. Says whether some are in
-- doubt: a sequence is there already, the database was restored, a period may be closed; and
-- whether for some a new epoch begins. The meters come sorted, each once.
CREATE OR REPLACE FUNCTION ledger.hold(
    k_tenant text[], k_meter text[], k_kind text[], k_source text[], k_epoch integer[], k_first bigint[],
    k_start timestamptz[], OUT doubt boolean, OUT newer boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    found_rows bigint;
BEGIN
    LOOP
        SELECT count(*), coalesce(bool_or(l.doubt), false), coalesce(bool_or(l.newer), false) INTO found_rows, doubt, newer
          FROM (SELECT k.first <= m.upto OR NOT isempty(m.beyond) OR m.restored_at IS NOT NULL OR k.epoch < m.epoch
                           OR k.start_at < m.closed_until AS doubt,
                       k.epoch > m.epoch AS newer
                  FROM unnest(k_tenant, k_meter, k_epoch, k_first, k_start) AS k (tenant, meter, epoch, first, start_at)
                  JOIN ledger.meter m ON m.tenant = k.tenant AND m.meter = k.meter
                 ORDER BY m.tenant, m.meter
                   FOR NO KEY UPDATE OF m) AS l;
        EXIT WHEN found_rows = cardinality(k_tenant);
        INSERT INTO ledger.meter (tenant, meter, kind, source, epoch)
        SELECT k.tenant, k.meter, coalesce(d.kind, k.kind), k.source, coalesce(k.epoch, 0)
          FROM unnest(k_tenant, k_meter, k_kind, k_source, k_epoch) AS k (tenant, meter, kind, source, epoch)
          LEFT JOIN ledger.tenant t ON t.id = k.tenant
          LEFT JOIN ledger.meter_definition d ON d.application = t.application AND d.meter = k.meter
         ORDER BY k.tenant, k.meter
        ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;

-- Takes a batch of events: each is stored and counted once, whatever the order, however often it
-- comes and whoever sends it at the same time. Returns the outcome of those that were not counted,
-- by their place: duplicate, conflict, restored.
--
-- The k_ arrays are the batch's meters as ledger.hold takes them. Of the events no two have one id
-- and day. `p_rival`: another one of the batch, before it, has its sequence. `p_offset`: microseconds
-- after the period's start. `p_look`: 0 where nothing speaks for it that one is known already, 1
-- where something does, 2 to look each one up.
CREATE OR REPLACE FUNCTION ledger.ingest(
    k_tenant text[], k_meter text[], k_kind text[], k_source text[], k_epoch integer[], k_first bigint[],
    k_start timestamptz[],
    p_tenant text[], p_id text[], p_source text[], p_meter text[], p_kind text[], p_epoch integer[], p_sequence bigint[],
    p_first bigint[], p_delta bigint[], p_before bigint[], p_value bigint[], p_low bigint[], p_high bigint[],
    p_moment numeric[], p_at timestamptz[], p_start timestamptz[], p_end timestamptz[], p_offset bigint[], p_subject text[],
    p_reason text[], p_actor text[], p_rival boolean[], p_look integer)
RETURNS TABLE (place bigint, outcome text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET jit = off
-- For a few thousand groups, that the planner knows nothing of.
SET work_mem = '32MB'
AS $$
#variable_conflict use_column
DECLARE
    verdicts text[]   := array_fill('accepted'::text, ARRAY[cardinality(p_id)]);
    counted  bigint[] := p_delta;
    held     record;
    now_at   timestamptz := clock_timestamp();
BEGIN
    held := ledger.hold(k_tenant, k_meter, k_kind, k_source, k_epoch, k_first, k_start);
    IF held.newer THEN
        UPDATE ledger.meter m
           SET epoch = k.epoch, sequence = 0, upto = 0, beyond = '{}', restored_at = NULL, missing_since = NULL,
               known = CASE WHEN m.epoch > 0 THEN coalesce(c.value, 0) END, known_start = c.start_at
          FROM unnest(k_tenant, k_meter, k_epoch) AS k (tenant, meter, epoch)
          LEFT JOIN LATERAL ledger.counted(k.tenant, k.meter) AS c ON true
         WHERE m.tenant = k.tenant AND m.meter = k.meter AND k.epoch > m.epoch;
    END IF;

    IF p_look > 0 OR held.doubt OR held.newer THEN
        SELECT array_agg(v.verdict ORDER BY v.place), array_agg(v.counted ORDER BY v.place) INTO verdicts, counted
          FROM (
            SELECT j.place, j.counted,
                   CASE WHEN j.verdict = 'accepted' AND j.epoch IS NOT NULL
                         AND bool_or(j.verdict = 'restored' AND j.epoch = j.last_epoch) OVER (PARTITION BY j.tenant, j.meter)
                        -- What comes with it is of the restored database too.
                        THEN 'restored'
                        WHEN j.verdict = 'accepted' AND j.start_at < j.closed_until
                         AND EXISTS (SELECT FROM ledger.period p WHERE p.tenant = j.tenant AND p.meter = j.meter
                                        AND p.start_at = j.start_at AND p.closed_at IS NOT NULL)
                        THEN 'late'
                        ELSE j.verdict END AS verdict
              FROM (
                SELECT g.place, g.tenant, g.meter, g.epoch, g.last_epoch, g.start_at, g.closed_until,
                       CASE WHEN g.kind <> 'Restore' OR g.known IS NULL THEN g.delta
                            WHEN g.total AND g.known_start IS DISTINCT FROM g.start_at THEN g.value
                            ELSE g.value - g.known END AS counted,
                       CASE WHEN e.same THEN 'duplicate'
                            WHEN NOT e.same THEN 'conflict'
                            WHEN g.taken THEN 'restored'
                            ELSE 'accepted' END AS verdict
                  FROM (
                    SELECT u.*, m.epoch AS last_epoch, m.closed_until, m.known, m.known_start, m.kind = 'Total' AS total,
                           u.epoch IS NOT NULL AND (u.epoch < m.epoch OR m.restored_at IS NOT NULL OR u.rival
                               OR u.first <= m.upto OR m.beyond && int8range(u.first, u.sequence, '[]')) AS taken
                      FROM unnest(p_tenant, p_id, p_meter, p_kind, p_epoch, p_sequence, p_first, p_delta, p_value, p_at, p_start, p_rival)
                           WITH ORDINALITY AS u (tenant, id, meter, kind, epoch, sequence, first, delta, value, at, start_at, rival, place)
                      JOIN ledger.meter m ON m.tenant = u.tenant AND m.meter = u.meter
                  ) AS g
                  LEFT JOIN LATERAL (
                    SELECT (e.meter, e.kind, e.delta, e.occurred_at) = (g.meter, g.kind, g.delta, g.at)
                           AND (e.epoch, e.sequence, e.value) IS NOT DISTINCT FROM (g.epoch, g.sequence, g.value) AS same
                      FROM ledger.event e
                     WHERE (p_look > 1 OR g.epoch IS NULL OR g.taken)
                       AND e.tenant = g.tenant AND e.day = ledger.utc_day(g.at) AND e.id = g.id
                  ) AS e ON true
              ) AS j
          ) AS v;

        INSERT INTO ledger.quarantine (tenant, day, id, why, source, content)
        SELECT g.tenant, ledger.utc_day(g.at), g.id, g.verdict, g.source,
               jsonb_strip_nulls(jsonb_build_object('meter', g.meter, 'kind', g.kind, 'epoch', g.epoch, 'sequence', g.sequence,
                   'firstSequence', nullif(g.first, g.sequence), 'delta', g.delta, 'value', g.value, 'occurredAt', g.at,
                   'subject', g.subject, 'reason', g.reason, 'actor', g.actor))
          FROM unnest(p_tenant, p_id, p_source, p_meter, p_kind, p_epoch, p_sequence, p_first, p_delta, p_value, p_at, p_subject,
                      p_reason, p_actor, verdicts)
               AS g (tenant, id, source, meter, kind, epoch, sequence, first, delta, value, at, subject, reason, actor, verdict)
         WHERE g.verdict IN ('conflict', 'restored') ORDER BY 1, 2, 3
        ON CONFLICT DO NOTHING;

        UPDATE ledger.meter m SET restored_at = now_at, changed = pg_current_xact_id()
          FROM (SELECT DISTINCT g.tenant, g.meter, g.epoch FROM unnest(p_tenant, p_meter, p_epoch, verdicts) AS g (tenant, meter, epoch, verdict)
                 WHERE g.verdict = 'restored') AS r
         WHERE m.tenant = r.tenant AND m.meter = r.meter AND m.epoch = r.epoch AND m.restored_at IS NULL;
    END IF;

    WITH fresh AS MATERIALIZED (
        SELECT g.*, ledger.utc_day(g.at) AS day, g.verdict = 'late' AS late,
               CASE WHEN g.moment IS NULL THEN g.counted::numeric * g.lapse
                    ELSE g.moment - g.delta::numeric * ledger.microseconds(g.start_at) END AS area,
               CASE WHEN g.kind = 'Restore' THEN ARRAY[g.epoch, g.first, g.value - g.counted]
                    WHEN g.epoch IS NOT NULL THEN ARRAY[g.epoch, g.first, g.before] END AS first_event,
               CASE WHEN g.epoch IS NOT NULL THEN ARRAY[g.epoch, g.sequence, g.value] END AS last_event
          FROM unnest(p_tenant, p_id, p_source, p_meter, p_kind, p_epoch, p_sequence, p_first, p_delta, p_before, p_value, p_low,
                      p_high, p_moment, p_at, p_start, p_end, p_offset, p_subject, p_reason, p_actor, verdicts, counted)
               AS g (tenant, id, source, meter, kind, epoch, sequence, first, delta, before, value, low, high, moment, at, start_at,
                     end_at, lapse, subject, reason, actor, verdict, counted)
         WHERE g.verdict IN ('accepted', 'late')
    ), stored AS (
        INSERT INTO ledger.event (tenant, day, id, source, meter, kind, epoch, sequence, delta, value, occurred_at, period_start,
                                  subject, reason, actor, first_sequence, low, high, moment)
        SELECT f.tenant, f.day, f.id, f.source, f.meter, f.kind, f.epoch, f.sequence, f.delta, f.value, f.at, f.start_at,
               f.subject, f.reason, f.actor, nullif(f.first, f.sequence), f.low, f.high, f.moment
          FROM fresh f
    ), sums AS MATERIALIZED (
        SELECT f.tenant, f.meter, f.start_at, f.end_at, f.day, f.late,
               sum(coalesce(f.sequence - f.first, 0) + 1) AS events, sum(f.counted) AS delta, sum(f.area) AS moment,
               min(coalesce(f.low, f.value)) AS low, max(coalesce(f.high, f.value)) AS high,
               min(f.first_event) AS first_event, max(f.last_event) AS last_event, max(f.at) AS at,
               max(ARRAY[f.sequence, f.delta, ledger.microseconds(f.at)])
                   FILTER (WHERE f.kind = 'Set' AND f.reason LIKE 'reconcile%') AS drift
          FROM fresh f GROUP BY f.tenant, f.meter, f.start_at, f.end_at, f.day, f.late
    ), meters AS (
        UPDATE ledger.meter m
           SET (upto, beyond, missing_since, proven_at) = (
                   SELECT r.upto, r.beyond,
                          CASE WHEN isempty(r.beyond) AND (r.mark IS NULL OR r.mark <= r.upto) OR m.source = 'Api' THEN NULL
                               WHEN r.upto > m.upto THEN now_at
                               ELSE coalesce(m.missing_since, now_at) END,
                          CASE WHEN r.mark <= r.upto THEN m.marked_at ELSE m.proven_at END
                     FROM (SELECT CASE WHEN m.mark_epoch = m.epoch THEN m.mark_sequence END AS mark,
                                  coalesce(ledger.reach(e.arrived), a.last_event[2], m.upto) AS upto,
                                  coalesce(e.arrived - int8multirange(int8range(1, ledger.reach(e.arrived) + 1)), m.beyond) AS beyond
                             FROM (SELECT CASE WHEN a.last_event IS NULL OR a.run = m.upto + 1 AND isempty(m.beyond) THEN NULL
                                               ELSE int8multirange(int8range(1, m.upto + 1)) + m.beyond
                                                    + CASE WHEN a.run IS NOT NULL
                                                           THEN int8multirange(int8range(a.run, a.last_event[2] + 1))
                                                           ELSE (SELECT range_agg(int8range(f.first, f.sequence, '[]')) FROM fresh f
                                                                  WHERE f.tenant = m.tenant AND f.meter = m.meter
                                                                    AND f.epoch IS NOT NULL) END
                                          END AS arrived OFFSET 0) AS e) AS r),
               sequence = greatest(m.sequence, a.last_event[2]),
               value = CASE WHEN a.last_event IS NULL THEN ledger.clamp(m.value + a.delta)
                            WHEN a.last_event[2] > m.sequence THEN a.last_event[3] ELSE m.value END,
               occurred_at = greatest(m.occurred_at, a.at),
               drift = CASE WHEN a.drift IS NULL OR a.drift_at < m.drift_at THEN m.drift ELSE a.drift[2] END,
               drift_at = greatest(m.drift_at, a.drift_at),
               changed = pg_current_xact_id()
          FROM (SELECT s.tenant, s.meter, max(s.last_event) AS last_event, sum(s.delta) AS delta, max(s.at) AS at,
                       max(s.drift) AS drift, to_timestamp((max(s.drift))[3] / 1000000.0) AS drift_at,
                       -- Where they begin, if they are without a gap: so it is almost always.
                       CASE WHEN (max(s.last_event))[2] - (min(s.first_event))[2] + 1 = sum(s.events)
                            THEN (min(s.first_event))[2] END AS run
                  FROM sums s GROUP BY s.tenant, s.meter) AS a
         WHERE m.tenant = a.tenant AND m.meter = a.meter
    ), periods AS (
        INSERT INTO ledger.period AS p (tenant, meter, start_at, end_at, events, delta, moment, low, high, first_event, last_event)
        SELECT s.tenant, s.meter, s.start_at, s.end_at, sum(s.events), sum(s.delta), sum(s.moment), min(s.low), max(s.high),
               min(s.first_event), max(s.last_event)
          FROM sums s WHERE NOT s.late GROUP BY s.tenant, s.meter, s.start_at, s.end_at
        ON CONFLICT (tenant, meter, start_at) DO UPDATE
           SET events = p.events + excluded.events, delta = p.delta + excluded.delta, moment = p.moment + excluded.moment,
               low = least(p.low, excluded.low), high = greatest(p.high, excluded.high),
               first_event = least(p.first_event, excluded.first_event), last_event = greatest(p.last_event, excluded.last_event)
    ), days AS (
        INSERT INTO ledger.day AS d (tenant, meter, day, events, delta, moment, low, high, first_event, last_event)
        SELECT s.tenant, s.meter, s.day, sum(s.events), sum(s.delta),
               -- From the period's start to the day's.
               sum(s.moment - s.delta * (ledger.microseconds(s.day::timestamp AT TIME ZONE 'UTC') - ledger.microseconds(s.start_at))),
               min(s.low), max(s.high), min(s.first_event), max(s.last_event)
          FROM sums s GROUP BY s.tenant, s.meter, s.day
        ON CONFLICT (day, tenant, meter) DO UPDATE
           SET events = d.events + excluded.events, delta = d.delta + excluded.delta, moment = d.moment + excluded.moment,
               low = least(d.low, excluded.low), high = greatest(d.high, excluded.high),
               first_event = least(d.first_event, excluded.first_event), last_event = greatest(d.last_event, excluded.last_event)
    )
    -- A closed period is never changed: what belongs to it is an adjustment.
    INSERT INTO ledger.adjustment (tenant, meter, start_at, delta, events, reason, in_sums, detail, actor)
    SELECT f.tenant, f.meter, f.start_at, sum(f.counted), sum(coalesce(f.sequence - f.first, 0) + 1), w.reason, NOT f.late,
           max(f.reason) FILTER (WHERE w.reason = 'correction'), max(f.actor)
      FROM fresh f
     CROSS JOIN LATERAL (SELECT CASE f.kind WHEN 'Restore' THEN 'restore' WHEN 'Correct' THEN 'correction' ELSE 'late' END AS reason) AS w
     WHERE f.late OR f.kind = 'Restore'
     GROUP BY f.tenant, f.meter, f.start_at, w.reason, f.late
     ORDER BY f.tenant, f.meter, f.start_at;

    -- Wakes those who wait for changes, once for all that is in one batch.
    PERFORM pg_notify('ledger', '');

    RETURN QUERY
        SELECT v.place, v.verdict FROM unnest(verdicts) WITH ORDINALITY AS v (verdict, place)
         WHERE v.verdict NOT IN ('accepted', 'late');
END
$$;

-- Takes marks; sorted by tenant and meter, each meter once. An older one than the last is left.
CREATE OR REPLACE FUNCTION ledger.mark(
    p_tenant text[], p_meter text[], p_epoch integer[], p_sequence bigint[], p_value bigint[], p_as_of timestamptz[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now_at timestamptz := clock_timestamp();
BEGIN
    PERFORM ledger.hold(p_tenant, p_meter, array_fill('Level'::text, ARRAY[cardinality(p_tenant)]),
                        array_fill('Database'::text, ARRAY[cardinality(p_tenant)]), NULL, NULL, NULL);
    UPDATE ledger.meter m
       SET mark_epoch = g.epoch, mark_sequence = g.sequence, mark_value = g.value, marked_at = g.as_of,
           restored_at = x.restored_at, proven_at = CASE WHEN x.complete THEN g.as_of ELSE m.proven_at END,
           missing_since = x.missing_since,
           changed = CASE WHEN (m.mark_epoch, m.mark_sequence, m.restored_at IS NULL, m.missing_since IS NULL)
                               IS DISTINCT FROM (g.epoch, g.sequence, x.restored_at IS NULL, x.missing_since IS NULL)
                          THEN pg_current_xact_id() ELSE m.changed END
      FROM unnest(p_tenant, p_meter, p_epoch, p_sequence, p_value, p_as_of) AS g (tenant, meter, epoch, sequence, value, as_of)
      JOIN ledger.meter w ON w.tenant = g.tenant AND w.meter = g.meter
     CROSS JOIN LATERAL (
        -- Fewer than are known, at a later time: the database was restored to an earlier one.
        SELECT CASE WHEN w.epoch > 0 AND ((g.epoch, g.sequence) < (w.epoch, w.sequence) AND w.occurred_at < g.as_of
                                          OR (g.epoch, g.sequence) < (w.mark_epoch, w.mark_sequence))
                    THEN coalesce(w.restored_at, now_at) ELSE w.restored_at END AS restored_at) AS r
     CROSS JOIN LATERAL (
        SELECT r.restored_at,
               r.restored_at IS NULL AND (g.epoch = w.epoch AND g.sequence <= w.upto
                                          OR w.epoch = 0 AND g.sequence = 0) AS complete,
               CASE WHEN isempty(w.beyond) AND (g.epoch < w.epoch OR g.epoch = w.epoch AND g.sequence <= w.upto
                                                OR w.epoch = 0 AND g.sequence = 0)
                    THEN NULL ELSE coalesce(w.missing_since, now_at) END AS missing_since) AS x
     WHERE m.tenant = g.tenant AND m.meter = g.meter AND (m.marked_at IS NULL OR m.marked_at < g.as_of);
    PERFORM pg_notify('ledger', '');
END
$$;

CREATE OR REPLACE FUNCTION ledger.report(p_server text, p_database text, p_waiting bigint, p_oldest timestamptz, p_dead jsonb)
RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO ledger.outbox AS o (server, database, waiting, oldest, dead)
    VALUES (p_server, p_database, p_waiting, p_oldest, p_dead)
    ON CONFLICT (server, database) DO UPDATE
       SET waiting = excluded.waiting, oldest = excluded.oldest, dead = excluded.dead, reported_at = clock_timestamp()
$$;
