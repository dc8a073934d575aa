-- Privileges that nobody should have: on tenants' schemas and large objects, on the database, on
-- schema public, and on all that is tenantry's. As (tenant, kind, object, privilege, grantee, owner),
-- the grantee NULL for PUBLIC, the owner that of a tenant's object.
WITH us AS (SELECT to_regrole('tenantry_owner')::oid AS owner, r.oid AS tenants, d.tenants_role,
                   coalesce(to_regrole(quote_ident(current_database() || '_relay')), to_regrole('tenantry_owner'))::oid AS relay
              FROM tenantry.database d JOIN pg_roles r ON r.rolname = d.tenants_role),
own AS (SELECT c.oid, c.relname, c.relkind, c.relacl, c.relowner FROM pg_class c
         WHERE c.relnamespace = to_regnamespace('tenantry') AND c.relkind IN ('r', 'p', 'v', 'm', 'S')),
found (tenant, kind, object, privilege, grantee, owner) AS (
    SELECT t.id, 'SCHEMA', n.nspname::text, a.privilege_type, a.grantee, o.rolname::text
      FROM tenantry.tenant t
      JOIN pg_namespace n ON n.nspname = CASE t.state WHEN 'Live' THEN t.id ELSE 'd_' || t.id END
      JOIN pg_roles o ON o.rolname = t.id || '_owner' JOIN pg_roles w ON w.rolname = t.id || '_rw'
     CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
     WHERE a.grantee <> o.oid AND (a.grantee <> w.oid OR a.privilege_type <> 'USAGE' OR a.is_grantable)
    UNION ALL
    SELECT NULL, 'DATABASE', d.datname::text, a.privilege_type, a.grantee, NULL
      FROM us, pg_database d CROSS JOIN LATERAL aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a
     WHERE d.datname = current_database() AND a.grantee <> us.owner
       AND (a.grantee NOT IN (us.tenants, us.relay) OR a.privilege_type <> 'CONNECT' OR a.is_grantable)
    UNION ALL
    SELECT NULL, 'SCHEMA', n.nspname::text, a.privilege_type, a.grantee, NULL
      FROM us, pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
     WHERE n.nspname IN ('tenantry', 'public') AND a.grantee NOT IN (us.owner, n.nspowner)
       AND (n.nspname = 'public' OR a.grantee NOT IN (us.tenants, us.relay) OR a.privilege_type <> 'USAGE' OR a.is_grantable)
    UNION ALL
    SELECT NULL, CASE own.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, 'tenantry.' || quote_ident(own.relname),
           a.privilege_type, a.grantee, NULL
      FROM us, own CROSS JOIN LATERAL aclexplode(own.relacl) AS a
     WHERE a.grantee <> us.owner
       AND (a.grantee <> us.relay OR own.relname <> 'outbox' OR a.privilege_type <> 'SELECT' OR a.is_grantable)
    UNION ALL
    SELECT NULL, 'TABLE', 'tenantry.' || quote_ident(own.relname), a.privilege_type, a.grantee, NULL
      FROM us, own JOIN pg_attribute c ON c.attrelid = own.oid CROSS JOIN LATERAL aclexplode(c.attacl) AS a
     WHERE a.grantee <> us.owner
       AND (a.grantee <> us.relay OR own.relname <> 'outbox' OR a.privilege_type <> 'UPDATE' OR a.is_grantable
            OR c.attname NOT IN ('lease_until', 'attempts', 'last_error', 'dead_at', 'acked_at'))
    UNION ALL
    SELECT NULL, 'FUNCTION', p.oid::regprocedure::text, a.privilege_type, a.grantee, NULL
      FROM us, pg_proc p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
     WHERE p.pronamespace = to_regnamespace('tenantry') AND a.grantee <> us.owner
       AND NOT (NOT a.is_grantable AND (a.grantee = us.relay AND p.proname = 'progress'
            OR a.grantee = us.tenants
               AND p.proname IN ('record_usage', 'record_usages', 'set_usage', 'my_limits', 'record_migration')))
    UNION ALL
    SELECT t.id, 'LARGE OBJECT', b.oid::text, a.privilege_type, a.grantee, o.rolname::text
      FROM pg_largeobject_metadata b CROSS JOIN LATERAL aclexplode(b.lomacl) AS a
      JOIN pg_roles o ON o.oid = b.lomowner JOIN tenantry.tenant t ON t.id = left(o.rolname::text, 14)
     WHERE b.lomacl IS NOT NULL AND a.grantee <> b.lomowner
       AND NOT EXISTS (SELECT FROM pg_roles g WHERE g.oid = a.grantee AND left(g.rolname::text, 14) = t.id)
)
SELECT DISTINCT f.tenant, f.kind, f.object, f.privilege, g.rolname::text, f.owner
  FROM found f LEFT JOIN pg_roles g ON g.oid = f.grantee
 WHERE f.grantee = 0 OR NOT g.rolsuper ORDER BY 1, 2, 3, 4, 5
