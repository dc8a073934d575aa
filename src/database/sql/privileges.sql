-- Who may do what in schema tenantry. Run as tenantry_owner after the other files, at each change
-- of the schema's version. {tenants} is the role of this database's tenants.
REVOKE ALL ON SCHEMA tenantry FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA tenantry FROM PUBLIC, {tenants};
REVOKE ALL ON ALL SEQUENCES IN SCHEMA tenantry FROM PUBLIC, {tenants};
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tenantry FROM PUBLIC, {tenants};
GRANT USAGE ON SCHEMA tenantry TO {tenants};
GRANT EXECUTE ON FUNCTION
    tenantry.record_usage(text, bigint, text),
    tenantry.record_usages(text[], bigint[], text),
    tenantry.set_usage(text, bigint, text),
    tenantry.my_limits(),
    tenantry.record_migration(text, text)
TO {tenants};
