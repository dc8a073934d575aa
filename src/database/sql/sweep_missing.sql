-- Privileges that somebody should have and has not, as (tenant, what): of a tenant's runtime role
-- on its schema, and of all tenants on the functions.
SELECT t.id, n.nspname::text FROM tenantry.tenant t JOIN pg_namespace n ON n.nspname = t.id
  JOIN pg_roles w ON w.rolname = t.id || '_rw'
 WHERE t.state = 'Live' AND NOT has_schema_privilege(w.oid, n.oid, 'USAGE')
UNION ALL
SELECT NULL, f FROM tenantry.database d,
       unnest(ARRAY['record_usage(text, bigint, text)', 'record_usages(text[], bigint[], text)',
                    'set_usage(text, bigint, text)', 'my_limits()', 'record_migration(text, text)']) AS f
 WHERE NOT has_function_privilege(d.tenants_role, 'tenantry.' || f, 'EXECUTE')
UNION ALL
SELECT NULL, 'CONNECT' FROM tenantry.database d
 WHERE NOT has_database_privilege(d.tenants_role, current_database(), 'CONNECT')
    OR NOT has_schema_privilege(d.tenants_role, 'tenantry', 'USAGE')
