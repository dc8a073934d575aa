-- What applications call, and what these functions share. Run as tenantry_owner.
--
-- They know the tenant from session_user, which no client can forge. EXECUTE is granted to the
-- database's tenants on the functions that privileges.sql names and on no other.

-- Where the usage period that contains a moment began: whole months after the anchor, counted on
-- the calendar of the tenant's zone. Day 31 is the last day of a shorter month.
CREATE OR REPLACE FUNCTION tenantry.period_start(anchor timestamptz, zone text, moment timestamptz)
RETURNS timestamptz
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- PostgreSQL takes these four for the abbreviations of winter times, not for the zones of their names.
    region text := CASE upper(zone) WHEN 'CET' THEN 'Europe/Brussels' WHEN 'MET' THEN 'Europe/Brussels'
                                    WHEN 'EET' THEN 'Europe/Athens' WHEN 'WET' THEN 'Europe/Lisbon' ELSE zone END;
    first  timestamp := anchor AT TIME ZONE region;
    today  timestamp := moment AT TIME ZONE region;
    months integer := (extract(year FROM today) - extract(year FROM first)) * 12
                    + (extract(month FROM today) - extract(month FROM first));
    start  timestamptz := (first + make_interval(months => months)) AT TIME ZONE region;
BEGIN
    IF start > moment THEN
        start := (first + make_interval(months => months - 1)) AT TIME ZONE region;
    END IF;
    RETURN start;
END
$$;

-- A meter's row as it stands at a moment: a Total starts again where a later period has begun.
CREATE OR REPLACE FUNCTION tenantry.at_moment(counter tenantry.meter, kind text, anchor timestamptz, zone text, moment timestamptz)
RETURNS tenantry.meter
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    began timestamptz;
BEGIN
    IF kind = 'Total' THEN
        began := tenantry.period_start(anchor, zone, moment);
        IF began > counter.period_start THEN
            counter.period_start := began;
            counter.value := 0;
        END IF;
    END IF;
    RETURN counter;
END
$$;

-- Counts, for whoever is logged in: `delta`, or up or down to `target`. Returns the new value.
CREATE OR REPLACE FUNCTION tenantry.count_usage(p_meter text, p_delta bigint, p_target bigint, p_subject text, p_reason text)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    caller     record;
    definition record;
    counter    tenantry.meter;
    terms      record;
    moment     timestamptz;
    before     bigint;
    after      bigint;
    delta      bigint := p_delta;
    over       timestamptz;
    ceiling    numeric;
BEGIN
    IF p_meter IS NULL OR p_meter = '' THEN
        RAISE EXCEPTION 'no meter is named' USING ERRCODE = '22004',
            HINT = 'Give the name of a meter that the Application declares.';
    ELSIF p_delta IS NULL AND p_target IS NULL THEN
        RAISE EXCEPTION 'nothing to count: the number for meter "%" is NULL', p_meter USING ERRCODE = '22004';
    ELSIF p_subject = '' THEN
        RAISE EXCEPTION 'the subject is empty' USING ERRCODE = '22023',
            HINT = 'Say what is counted, for instance ''user-4711'', or pass NULL.';
    ELSIF p_target < 0 THEN
        RAISE EXCEPTION 'meter "%" can''t be set below zero', p_meter USING ERRCODE = 'TN004',
            DETAIL = json_build_object('meter', p_meter, 'value', p_target)::text;
    END IF;

    SELECT t.id, t.application, t.salt, l.slot INTO caller
      FROM tenantry.login l JOIN tenantry.tenant t ON t.id = l.tenant
     WHERE l.name = session_user::text AND t.state = 'Live';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'login "%" belongs to no live tenant', session_user USING ERRCODE = 'TN003',
            HINT = 'Usage is counted for the tenant whose own login the application uses.';
    END IF;

    SELECT d.kind, d.source INTO definition
      FROM tenantry.meter_definition d WHERE d.application = caller.application AND d.meter = p_meter;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'Application "%" declares no meter "%"', caller.application, p_meter
            USING ERRCODE = 'TN002', DETAIL = json_build_object('meter', p_meter)::text,
            HINT = (SELECT 'It declares: ' || coalesce(string_agg(d.meter, ', ' ORDER BY d.meter), 'none') || '.'
                      FROM tenantry.meter_definition d WHERE d.application = caller.application);
    ELSIF definition.source = 'Api' THEN
        RAISE EXCEPTION 'meter "%" is counted through the API, not in the database', p_meter
            USING ERRCODE = 'TN002', DETAIL = json_build_object('meter', p_meter)::text,
            HINT = 'Declare it with source Database to count it here.';
    END IF;

    -- From here on one transaction at a time per tenant and meter. In REPEATABLE READ and
    -- SERIALIZABLE this is where 40001 comes from when another one was faster.
    SELECT m.* INTO counter FROM tenantry.meter m
     WHERE m.tenant = caller.id AND m.meter = p_meter FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO tenantry.meter (tenant, meter, period_start) VALUES (caller.id, p_meter, '-infinity')
            ON CONFLICT DO NOTHING;
        SELECT m.* INTO STRICT counter FROM tenantry.meter m
         WHERE m.tenant = caller.id AND m.meter = p_meter FOR NO KEY UPDATE;
    END IF;

    -- Read after the lock was had: a limit that was committed meanwhile counts.
    SELECT t.plan_since, t.period_anchor, t.time_zone,
           l.max, l.policy, l.grace_days, l.grace_percent, l.since INTO terms
      FROM tenantry.tenant t LEFT JOIN tenantry.meter_limit l ON l.plan = t.plan AND l.meter = p_meter
     WHERE t.id = caller.id;

    moment := greatest(clock_timestamp(), counter.last_at);
    -- A Level goes on whatever the period: it is spared the call.
    IF definition.kind = 'Total' THEN
        counter := tenantry.at_moment(counter, definition.kind, terms.period_anchor, terms.time_zone, moment);
    END IF;
    before := counter.value;
    over   := counter.over_since;

    IF p_target IS NOT NULL THEN
        delta := p_target - before;
    END IF;
    IF delta < 0 AND definition.kind = 'Total' THEN
        RAISE EXCEPTION 'meter "%" is a total and only counts up', p_meter USING ERRCODE = 'TN004',
            DETAIL = json_build_object('meter', p_meter, 'value', before, 'delta', delta)::text;
    ELSIF delta > 0 AND before > 9223372036854775807 - delta THEN
        RAISE EXCEPTION 'meter "%" can''t count that far', p_meter USING ERRCODE = '22003',
            DETAIL = json_build_object('meter', p_meter, 'value', before, 'delta', delta)::text;
    ELSIF before + delta < 0 THEN
        RAISE EXCEPTION 'meter "%" can''t fall below zero: it is %', p_meter, before USING ERRCODE = 'TN004',
            DETAIL = json_build_object('meter', p_meter, 'value', before, 'delta', delta)::text;
    END IF;
    after := before + delta;

    IF terms.max IS NULL OR after <= terms.max THEN
        over := NULL;
    ELSE
        IF before <= terms.max THEN
            over := moment;
        END IF;
        -- A first import, by the migration login, states facts: no limit undoes them.
        IF delta > 0 AND terms.policy <> 'Soft' AND NOT (p_target IS NOT NULL AND caller.slot = 'm') THEN
            ceiling := terms.max;
            IF terms.policy = 'Grace'
               AND moment < greatest(over, terms.since, terms.plan_since) + make_interval(hours => 24) * terms.grace_days THEN
                ceiling := floor(terms.max::numeric * (100 + terms.grace_percent) / 100);
            END IF;
            IF after > ceiling THEN
                RAISE EXCEPTION 'the limit for "%" is reached: % of % in use', p_meter, before, ceiling
                    USING ERRCODE = 'TN001',
                    DETAIL = json_build_object('meter', p_meter, 'limit', ceiling, 'value', before,
                                               'delta', delta, 'policy', terms.policy, 'max', terms.max)::text,
                    HINT = 'Use less of it, or move to a plan with a higher limit.';
            END IF;
        END IF;
        over := coalesce(over, greatest(terms.since, terms.plan_since));
    END IF;

    UPDATE tenantry.meter m
       SET value = after, sequence = counter.sequence + 1, over_since = over,
           period_start = counter.period_start, last_at = moment
     WHERE m.tenant = caller.id AND m.meter = p_meter;
    INSERT INTO tenantry.outbox (tenant, meter, epoch, sequence, kind, delta, value, subject, reason, occurred_at, period_start)
    VALUES (caller.id, p_meter, counter.epoch, counter.sequence + 1,
            CASE WHEN p_target IS NULL THEN 'Add' ELSE 'Set' END, delta, after,
            encode(sha256(caller.salt || convert_to(p_subject, 'UTF8')), 'hex'), p_reason, moment,
            CASE WHEN definition.kind = 'Total' THEN counter.period_start END);
    RETURN after;
END
$$;

CREATE OR REPLACE FUNCTION tenantry.record_usage(meter text, delta bigint, subject text)
RETURNS bigint
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT tenantry.count_usage(meter, delta, NULL, subject, NULL) $$;
COMMENT ON FUNCTION tenantry.record_usage IS
'Counts a change of a meter, with the transaction that it is called in. Returns the new value.
TN001: a limit is reached (DETAIL: JSON with meter, limit, value). TN002: no such meter. TN003: not a tenant''s login. TN004: below zero.';

CREATE OR REPLACE FUNCTION tenantry.record_usages(meters text[], deltas bigint[], subject text)
RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    result bigint[];
    item   record;
BEGIN
    IF meters IS NULL OR deltas IS NULL OR cardinality(meters) = 0 THEN
        RAISE EXCEPTION 'no meter is named' USING ERRCODE = '22004',
            HINT = 'Give as many meters as deltas, at least one.';
    ELSIF cardinality(meters) <> cardinality(deltas) OR array_ndims(meters) > 1 OR array_ndims(deltas) > 1 THEN
        RAISE EXCEPTION '% meters but % deltas', cardinality(meters), cardinality(deltas) USING ERRCODE = '22023',
            HINT = 'Give one delta for each meter, in plain one-dimensional arrays.';
    ELSIF EXISTS (SELECT FROM unnest(meters) AS m (name) GROUP BY m.name HAVING count(*) > 1) THEN
        RAISE EXCEPTION 'a meter is named twice: {%}', array_to_string(meters, ',') USING ERRCODE = '22023',
            HINT = 'Name each meter once, with the sum of its deltas.';
    END IF;
    result := array_fill(NULL::bigint, ARRAY[cardinality(meters)]);
    -- In name order: two transactions that count the same meters can't wait for each other.
    FOR item IN
        SELECT u.name, u.delta, u.place
          FROM unnest(meters, deltas) WITH ORDINALITY AS u (name, delta, place)
         ORDER BY u.name COLLATE "C"
    LOOP
        IF item.delta IS NULL THEN
            RAISE EXCEPTION 'nothing to count: the number for meter "%" is NULL', item.name USING ERRCODE = '22004';
        END IF;
        result[item.place] := tenantry.count_usage(item.name, item.delta, NULL, subject, NULL);
    END LOOP;
    RETURN result;
END
$$;
COMMENT ON FUNCTION tenantry.record_usages IS
'As record_usage, for several meters at once. Returns the new values in the order of the meters.';

CREATE OR REPLACE FUNCTION tenantry.set_usage(meter text, value bigint, reason text)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF reason IS NULL OR reason = '' THEN
        RAISE EXCEPTION 'no reason is given for setting meter "%"', meter USING ERRCODE = '22004',
            HINT = 'Say why, for instance ''recount''. It is stored: keep customers'' data out of it.';
    ELSIF length(reason) > 200 THEN
        RAISE EXCEPTION 'the reason has % characters; at most 200 are kept', length(reason) USING ERRCODE = '22023';
    END IF;
    RETURN tenantry.count_usage(meter, NULL, value, NULL, reason);
END
$$;
COMMENT ON FUNCTION tenantry.set_usage IS
'States what a meter''s value is. A limit refuses a rise, except to the migration login (first import).';

CREATE OR REPLACE FUNCTION tenantry.my_limits()
RETURNS TABLE (meter text, value bigint, max bigint, policy text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    caller record;
BEGIN
    SELECT t.id, t.application, t.plan, t.period_anchor, t.time_zone INTO caller
      FROM tenantry.login l JOIN tenantry.tenant t ON t.id = l.tenant
     WHERE l.name = session_user::text AND t.state = 'Live';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'login "%" belongs to no live tenant', session_user USING ERRCODE = 'TN003',
            HINT = 'Limits are those of the tenant whose own login the application uses.';
    END IF;
    RETURN QUERY
        SELECT d.meter,
               coalesce((tenantry.at_moment(m, d.kind, caller.period_anchor, caller.time_zone,
                                            greatest(clock_timestamp(), m.last_at))).value, 0),
               l.max, l.policy
          FROM tenantry.meter_definition d
          LEFT JOIN tenantry.meter m ON m.tenant = caller.id AND m.meter = d.meter
          LEFT JOIN tenantry.meter_limit l ON l.plan = caller.plan AND l.meter = d.meter
         WHERE d.application = caller.application AND d.source = 'Database'
         ORDER BY d.meter;
END
$$;
COMMENT ON FUNCTION tenantry.my_limits IS
'What the tenant of this login counts, and its limits; max NULL is unlimited.';

-- Called by the operator, logged in as a tenant's migration login, in a migration's transaction.
CREATE OR REPLACE FUNCTION tenantry.record_migration(name text, checksum text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO tenantry.migration (tenant, name, checksum)
    SELECT l.tenant, record_migration.name, record_migration.checksum
      FROM tenantry.login l WHERE l.name = session_user::text AND l.slot = 'm';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'login "%" is no migration login', session_user USING ERRCODE = 'TN003';
    END IF;
END
$$;
