-- Every role that a tenant should have, with what it is like and what it should be judged by.
SELECT t.id, t.id || s.suffix, t.state, t.suspended, t.connection_limit, t.temp_file_limit_kb,
       t.statement_timeout_ms, t.max_transaction_ms, l.state, t.xmin::text || '/' || coalesce(l.xmin::text, ''),
       r.oid IS NOT NULL, coalesce(r.rolcanlogin, false), coalesce(r.rolconnlimit, -1),
       coalesce(r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls, false),
       coalesce(r.rolinherit, true), shobj_description(r.oid, 'pg_authid'),
       (SELECT jsonb_agg(jsonb_build_object('database', d.datname, 'settings', c.setconfig))
          FROM pg_db_role_setting c LEFT JOIN pg_database d ON d.oid = c.setdatabase WHERE c.setrole = r.oid),
       n.oid IS NOT NULL AND n.nspowner = o.oid
  FROM tenantry.tenant t
 CROSS JOIN (VALUES ('_app_a'), ('_app_b'), ('_mig'), ('_rw'), ('_owner')) AS s (suffix)
  LEFT JOIN tenantry.login l ON l.name = t.id || s.suffix
  LEFT JOIN pg_roles r ON r.rolname = t.id || s.suffix
  LEFT JOIN pg_roles o ON o.rolname = t.id || '_owner'
  LEFT JOIN pg_namespace n ON n.nspname = CASE t.state WHEN 'Live' THEN t.id ELSE 'd_' || t.id END
 WHERE t.state IN ('Live', 'Retained') ORDER BY 2
