-- Memberships in the tenants' roles and of them. The admin's own, the keeper's, and
-- a superuser's are theirs. As (role, member, grantor, with ADMIN OPTION, whether the role is one of
-- a tenant that has a record here, whether the member is).
WITH role AS (
    SELECT r.oid FROM tenantry.tenant t
     CROSS JOIN (VALUES ('_app_a'), ('_app_b'), ('_mig'), ('_rw'), ('_owner')) AS s (suffix)
      JOIN pg_roles r ON r.rolname = t.id || s.suffix
    UNION ALL SELECT r.oid FROM tenantry.database d JOIN pg_roles r ON r.rolname = d.tenants_role
    UNION ALL SELECT to_regrole('tenantry_owner')::oid
)
SELECT r.rolname::text, m.rolname::text, coalesce(g.rolname::text, ''), a.admin_option,
       left(r.rolname::text, 14) IN (SELECT id FROM tenantry.tenant),
       left(m.rolname::text, 14) IN (SELECT id FROM tenantry.tenant)
  FROM pg_auth_members a
  JOIN pg_roles r ON r.oid = a.roleid JOIN pg_roles m ON m.oid = a.member LEFT JOIN pg_roles g ON g.oid = a.grantor
 WHERE (a.roleid IN (SELECT oid FROM role) OR a.member IN (SELECT oid FROM role))
   AND m.rolname NOT IN (current_user, 'tenantry_keeper') AND NOT m.rolsuper ORDER BY 1, 2
