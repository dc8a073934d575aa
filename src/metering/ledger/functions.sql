-- Takes a batch of events: each is stored and counted once, whatever the order, however often it
-- comes and whoever sends it at the same time. Returns the outcome of each by its place, from 1:
-- accepted, duplicate, conflict, restored.
--
-- Rows are locked and written in one order everywhere (tenant, meter, epoch), so that batches wait
-- for each other and never in a circle.
CREATE OR REPLACE FUNCTION ledger.ingest(
    p_tenant text[], p_id text[], p_source text[], p_meter text[], p_kind text[], p_epoch integer[], p_sequence bigint[],
    p_first bigint[], p_delta bigint[], p_value bigint[], p_low bigint[], p_high bigint[], p_moment numeric[],
    p_at timestamptz[], p_start timestamptz[], p_end timestamptz[], p_subject text[], p_reason text[], p_actor text[])
RETURNS TABLE (place bigint, outcome text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO ledger.stream (tenant, meter, epoch)
    SELECT DISTINCT g.tenant, g.meter, g.epoch FROM unnest(p_tenant, p_meter, p_epoch) AS g (tenant, meter, epoch)
     WHERE g.epoch IS NOT NULL ORDER BY 1, 2, 3
    ON CONFLICT DO NOTHING;
    PERFORM FROM ledger.stream s
       JOIN (SELECT DISTINCT g.tenant, g.meter, g.epoch FROM unnest(p_tenant, p_meter, p_epoch) AS g (tenant, meter, epoch)) g
         ON (s.tenant, s.meter, s.epoch) = (g.tenant, g.meter, g.epoch)
      ORDER BY s.tenant, s.meter, s.epoch FOR UPDATE OF s;

    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT g.*, (g.at AT TIME ZONE 'UTC')::date AS day,
               int8range(coalesce(g.first, g.sequence), g.sequence, '[]') AS span,
               row_number() OVER (PARTITION BY g.tenant, g.id, (g.at AT TIME ZONE 'UTC')::date ORDER BY g.place) AS turn,
               row_number() OVER (PARTITION BY g.tenant, g.meter, g.epoch, g.sequence ORDER BY g.id, g.place) AS rival
          FROM unnest(p_tenant, p_id, p_source, p_meter, p_kind, p_epoch, p_sequence, p_first, p_delta, p_value, p_low, p_high,
                      p_moment, p_at, p_start, p_end, p_subject, p_reason, p_actor)
               WITH ORDINALITY AS g (tenant, id, source, meter, kind, epoch, sequence, first, delta, value, low, high,
                                     moment, at, start_at, end_at, subject, reason, actor, place)
    ), judged AS MATERIALIZED (
        SELECT g.*,
               CASE WHEN e.id IS NOT NULL THEN
                        CASE WHEN (e.meter, e.kind, e.delta, e.occurred_at) = (g.meter, g.kind, g.delta, g.at)
                              AND (e.epoch, e.sequence, e.value) IS NOT DISTINCT FROM (g.epoch, g.sequence, g.value)
                             THEN 'duplicate' ELSE 'conflict' END
                    WHEN g.turn > 1 THEN 'again'
                    WHEN g.epoch IS NOT NULL AND (s.restored_at IS NOT NULL OR s.received && g.span OR g.rival > 1) THEN 'restored'
                    ELSE 'accepted' END AS verdict
          FROM given g
          LEFT JOIN ledger.event e ON e.tenant = g.tenant AND e.day = g.day AND e.id = g.id
          LEFT JOIN ledger.stream s ON s.tenant = g.tenant AND s.meter = g.meter AND s.epoch = g.epoch
    ), stored AS (
        INSERT INTO ledger.event (tenant, day, id, source, meter, kind, epoch, sequence, first_sequence, delta, value,
                                  occurred_at, subject, reason, actor)
        SELECT j.tenant, j.day, j.id, j.source, j.meter, j.kind, j.epoch, j.sequence, j.first, j.delta, j.value, j.at,
               j.subject, j.reason, j.actor
          FROM judged j WHERE j.verdict = 'accepted' ORDER BY j.tenant, j.day, j.id
        ON CONFLICT DO NOTHING
        RETURNING tenant, day, id
    ), fresh AS MATERIALIZED (
        SELECT j.* FROM judged j JOIN stored USING (tenant, day, id) WHERE j.verdict = 'accepted'
    ), streams AS (
        UPDATE ledger.stream s
           SET received = s.received + f.spans,
               gap_since = CASE WHEN s.received + f.spans = int8multirange(int8range(1, upper(s.received + f.spans)))
                                THEN NULL ELSE coalesce(s.gap_since, clock_timestamp()) END
          FROM (SELECT tenant, meter, epoch, range_agg(span) AS spans FROM fresh WHERE epoch IS NOT NULL
                 GROUP BY tenant, meter, epoch) f
         WHERE (s.tenant, s.meter, s.epoch) = (f.tenant, f.meter, f.epoch)
    ), restored AS (
        UPDATE ledger.stream s SET restored_at = clock_timestamp()
          FROM (SELECT DISTINCT tenant, meter, epoch FROM judged WHERE verdict = 'restored') r
         WHERE (s.tenant, s.meter, s.epoch) = (r.tenant, r.meter, r.epoch) AND s.restored_at IS NULL
           AND NOT EXISTS (SELECT FROM fresh f WHERE (f.tenant, f.meter, f.epoch) = (r.tenant, r.meter, r.epoch))
    ), meters AS (
        INSERT INTO ledger.meter AS m (tenant, meter, epoch, sequence, value, occurred_at)
        SELECT DISTINCT ON (tenant, meter) tenant, meter, coalesce(epoch, 0), coalesce(sequence, 0),
               CASE WHEN epoch IS NULL THEN sum(delta) OVER (PARTITION BY tenant, meter) ELSE value END, at
          FROM fresh ORDER BY tenant, meter, epoch DESC NULLS LAST, sequence DESC NULLS LAST, at DESC
        ON CONFLICT (tenant, meter) DO UPDATE
           SET epoch = greatest(m.epoch, excluded.epoch),
               sequence = CASE WHEN (excluded.epoch, excluded.sequence) > (m.epoch, m.sequence) THEN excluded.sequence ELSE m.sequence END,
               value = CASE WHEN excluded.epoch = 0 THEN m.value + excluded.value
                            WHEN (excluded.epoch, excluded.sequence) > (m.epoch, m.sequence) THEN excluded.value ELSE m.value END,
               occurred_at = greatest(m.occurred_at, excluded.occurred_at)
    ), sums AS MATERIALIZED (
        SELECT f.tenant, f.meter, f.start_at, f.end_at, count(*) AS events, sum(f.delta) AS delta,
               sum(coalesce(f.moment, f.delta * (extract(epoch FROM f.at) * 1000000)::numeric)
                   - f.delta * (extract(epoch FROM f.start_at) * 1000000)::numeric) AS moment,
               min(coalesce(f.low, f.value, 0)) AS low, max(coalesce(f.high, f.value, 0)) AS high,
               (array_agg(f.epoch ORDER BY f.epoch, f.sequence))[1] AS first_epoch,
               (array_agg(f.sequence ORDER BY f.epoch, f.sequence))[1] AS first_seq,
               (array_agg(f.value - f.delta ORDER BY f.epoch, f.sequence))[1] AS opening,
               (array_agg(f.epoch ORDER BY f.epoch DESC, f.sequence DESC))[1] AS last_epoch,
               (array_agg(f.sequence ORDER BY f.epoch DESC, f.sequence DESC))[1] AS last_seq,
               (array_agg(f.value ORDER BY f.epoch DESC, f.sequence DESC))[1] AS closing
          FROM fresh f GROUP BY 1, 2, 3, 4
    ), periods AS (
        INSERT INTO ledger.period AS p (tenant, meter, start_at, end_at, events, delta, moment, low, high,
                                        first_epoch, first_seq, opening, last_epoch, last_seq, closing)
        SELECT s.tenant, s.meter, s.start_at, s.end_at, s.events, s.delta, s.moment, s.low, s.high,
               s.first_epoch, s.first_seq, s.opening, s.last_epoch, s.last_seq, s.closing
          FROM sums s ORDER BY s.tenant, s.meter, s.start_at
        ON CONFLICT (tenant, meter, start_at) DO UPDATE
           SET events = p.events + excluded.events, delta = p.delta + excluded.delta, moment = p.moment + excluded.moment,
               low = least(p.low, excluded.low), high = greatest(p.high, excluded.high),
               (first_epoch, first_seq, opening) =
                   (SELECT w.* FROM (VALUES (p.first_epoch, p.first_seq, p.opening),
                                            (excluded.first_epoch, excluded.first_seq, excluded.opening)) AS w (e, s, v)
                     ORDER BY w.e, w.s LIMIT 1),
               (last_epoch, last_seq, closing) =
                   (SELECT w.* FROM (VALUES (p.last_epoch, p.last_seq, p.closing),
                                            (excluded.last_epoch, excluded.last_seq, excluded.closing)) AS w (e, s, v)
                     ORDER BY w.e DESC NULLS LAST, w.s DESC NULLS LAST LIMIT 1)
         WHERE p.closed_at IS NULL
        RETURNING tenant, meter, start_at
    ), late AS (
        -- A closed period is never rewritten: what belongs to it is an adjustment.
        INSERT INTO ledger.adjustment (tenant, meter, start_at, delta, reason)
        SELECT s.tenant, s.meter, s.start_at, s.delta, 'late' FROM sums s
         WHERE NOT EXISTS (SELECT FROM periods p WHERE (p.tenant, p.meter, p.start_at) = (s.tenant, s.meter, s.start_at))
    ), aside AS (
        INSERT INTO ledger.quarantine (tenant, day, id, source, why, content)
        SELECT j.tenant, j.day, j.id, j.source, j.verdict,
               jsonb_strip_nulls(jsonb_build_object('meter', j.meter, 'kind', j.kind, 'epoch', j.epoch, 'sequence', j.sequence,
                   'firstSequence', j.first, 'delta', j.delta, 'value', j.value, 'occurredAt', j.at, 'subject', j.subject,
                   'reason', j.reason, 'actor', j.actor))
          FROM judged j WHERE j.verdict IN ('conflict', 'restored') ORDER BY j.tenant, j.day, j.id
        ON CONFLICT DO NOTHING
    )
    SELECT j.place, CASE WHEN j.verdict = 'again' OR j.verdict = 'accepted' AND f.place IS NULL THEN 'duplicate' ELSE j.verdict END
      FROM judged j LEFT JOIN fresh f ON f.place = j.place ORDER BY j.place;
END
$$;
