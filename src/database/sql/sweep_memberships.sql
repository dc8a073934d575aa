-- Memberships in the tenants' roles and of them. The admin's own, the keeper's, and
-- a superuser's are theirs. As (role, member, grantor, with ADMIN OPTION, whether the role is one of
-- a tenant that has a record here, whether the member is, with INHERIT, with SET, whether the admin
-- may revoke it). The options are of version 16, before which a membership always has both, and
-- before which whoever may grant may revoke; from then on that takes the grantor's own privileges.
WITH role AS (
    SELECT r.oid FROM tenantry.tenant t
     CROSS JOIN (VALUES ('_app_a'), ('_app_b'), ('_mig'), ('_rw'), ('_owner')) AS s (suffix)
      JOIN pg_roles r ON r.rolname = t.id || s.suffix
    UNION ALL SELECT r.oid FROM tenantry.database d JOIN pg_roles r ON r.rolname = d.tenants_role
    UNION ALL SELECT to_regrole('tenantry_owner')::oid
), grantor AS MATERIALIZED (
    SELECT g.oid, g.rolname, CASE WHEN current_setting('server_version_num')::int >= 160000
                                  THEN pg_has_role(g.oid, 'USAGE') ELSE true END AS is_ours
      FROM pg_roles g WHERE g.oid IN (SELECT grantor FROM pg_auth_members)
)
SELECT r.rolname::text, m.rolname::text, coalesce(g.rolname::text, ''), a.admin_option,
       left(r.rolname::text, 14) IN (SELECT id FROM tenantry.tenant),
       left(m.rolname::text, 14) IN (SELECT id FROM tenantry.tenant),
       coalesce((to_jsonb(a) ->> 'inherit_option')::boolean, true),
       coalesce((to_jsonb(a) ->> 'set_option')::boolean, true), coalesce(g.is_ours, true)
  FROM pg_auth_members a
  JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member LEFT JOIN grantor g ON g.oid = a.grantor
 WHERE (a.roleid IN (SELECT oid FROM role) OR a.member IN (SELECT oid FROM role))
   AND m.rolname NOT IN (current_user, 'tenantry_keeper') AND NOT m.rolsuper ORDER BY 1, 2
