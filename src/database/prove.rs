//! The proof of isolation: in with the tenant's own credentials, through the tenants' own door.

use tokio_postgres::types::{ToSql, Type};

use super::error::{Error, Result};
use super::identity::{Slot, TenantId};
use super::pool::{Login, Silence};
use super::schema::tenants_role;
use super::server::Server;
use super::types::{Credentials, Proof};

/// What a login sees of itself, in one statement. Asked as the tenant, so nothing in it can do
/// more than the tenant can, whatever the tenant left in its schema.
///
/// Its time must not grow with the number of tenants. So roles and memberships are looked up one
/// by one (`OFFSET 0` keeps the planner, which knows nothing of a recursion's size, from reading
/// all of them), and the functions that decide are asked only of those schemas and databases
/// whose access list could admit the login: its own, or with a grant to one of its roles or to
/// all. The only other way in, a membership such as `pg_read_all_data`, is found by the list of
/// the login's roles.
const SELF: &str = "
    WITH RECURSIVE role (oid) AS (
        SELECT oid FROM pg_roles WHERE rolname = session_user
        UNION SELECT m.roleid FROM role CROSS JOIN LATERAL (
            SELECT roleid FROM pg_auth_members WHERE member = role.oid OFFSET 0) AS m
    ), attributes AS MATERIALIZED (
        SELECT r.* FROM role CROSS JOIN LATERAL (SELECT * FROM pg_roles WHERE oid = role.oid OFFSET 0) AS r
    )
    SELECT session_user::text, current_user::text, current_database()::text, current_setting('search_path'),
           (SELECT bool_or(r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)
              FROM attributes r),
           ARRAY(SELECT r.rolname::text FROM attributes r WHERE r.rolname <> session_user ORDER BY 1),
           coalesce(has_schema_privilege(to_regnamespace(quote_ident($1))::oid, 'USAGE'), false),
           coalesce(has_schema_privilege(to_regnamespace(quote_ident($1))::oid, 'CREATE'), false),
           ARRAY(SELECT p FROM unnest(ARRAY['CREATE', 'TEMPORARY']) AS p WHERE has_database_privilege(current_database(), p)),
           ARRAY(SELECT p FROM unnest(ARRAY['CONNECT', 'CREATE', 'TEMPORARY']) AS p
                  WHERE has_database_privilege('public', current_database(), p)),
           ARRAY(SELECT n.nspname::text FROM pg_namespace n
                  WHERE n.nspname NOT IN ($1, 'tenantry', 'pg_catalog', 'information_schema')
                    AND (n.nspowner IN (SELECT oid FROM role)
                         OR EXISTS (SELECT FROM aclexplode(n.nspacl) AS a
                                     WHERE a.grantee = 0 OR a.grantee IN (SELECT oid FROM role)))
                    AND (has_schema_privilege(n.oid, 'USAGE') OR has_schema_privilege(n.oid, 'CREATE')) ORDER BY 1),
           ARRAY(SELECT c::text FROM unnest(ARRAY['database', 'tenant', 'login', 'meter_definition', 'meter_limit',
                                                  'meter', 'outbox', 'outbox_pending', 'outbox_sent', 'relay',
                                                  'migration']) AS c
                  WHERE has_any_column_privilege('tenantry.' || c, 'SELECT, INSERT, UPDATE, REFERENCES')
                     OR has_table_privilege('tenantry.' || c, 'DELETE, TRUNCATE, TRIGGER' ||
                          CASE WHEN current_setting('server_version_num')::int >= 170000 THEN ', MAINTAIN' ELSE '' END)),
           ARRAY(SELECT f FROM unnest(ARRAY['record_usage(text, bigint, text)', 'record_usages(text[], bigint[], text)',
                                            'set_usage(text, bigint, text)', 'my_limits()']) AS f
                  WHERE NOT has_function_privilege('tenantry.' || f, 'EXECUTE')),
           has_schema_privilege('tenantry', 'CREATE')
             OR has_function_privilege('tenantry.count_usage(text, bigint, bigint, text, text)', 'EXECUTE'),
           ARRAY(SELECT d.datname::text FROM pg_database d
                  WHERE d.datallowconn AND d.datdba = to_regrole('tenantry_owner') AND d.datname <> current_database()
                    AND (d.datacl IS NULL OR d.datdba IN (SELECT oid FROM role)
                         OR EXISTS (SELECT FROM aclexplode(d.datacl) AS a
                                     WHERE a.grantee = 0 OR a.grantee IN (SELECT oid FROM role)))
                    AND has_database_privilege(d.oid, 'CONNECT') ORDER BY 1),
           ARRAY(SELECT d.datname::text FROM pg_database d
                  WHERE d.datallowconn AND d.datdba <> to_regrole('tenantry_owner')
                    AND (d.datacl IS NULL OR d.datdba IN (SELECT oid FROM role)
                         OR EXISTS (SELECT FROM aclexplode(d.datacl) AS a
                                     WHERE a.grantee = 0 OR a.grantee IN (SELECT oid FROM role)))
                    AND has_database_privilege(d.oid, 'CONNECT') ORDER BY 1),
           (SELECT count(*) FROM tenantry.my_limits())";

impl Server {
    /// Logs in through the tenants' endpoint with an application's own credentials and checks
    /// what it can reach. A failure is a permanent error that names the privilege.
    ///
    /// Where the login itself is refused, [`Error::sqlstate`] is `28P01` (the password is not the
    /// login's, for instance because the tenant changed it) or `28000` (it may not log in):
    /// issuing a login repairs both.
    pub async fn prove(&self, credentials: &Credentials) -> Result<Proof> {
        let id: TenantId = credentials.schema.parse()?;
        let endpoint = self.endpoint();
        let login = Login {
            endpoint: &endpoint,
            database: &credentials.database,
            user: &credentials.username,
            password: credentials.password.expose(),
            // A pooler takes no settings, and those of the login are to be seen as they are.
            options: None,
        };
        let (client, _place) = self.pool.visit(&login).await?;
        // A login takes round trips, and the process may have been held up in the midst of them.
        self.pool.check_term()?;
        self.pool.count(1);
        let doing = format!("login {} can't be proven", credentials.username);
        let patience = self.pool.config.timeouts.statement;
        let asked = [(&credentials.schema as &(dyn ToSql + Sync), Type::TEXT)];
        let rows = self
            .pool
            .answer(Some(patience), client.query_typed(SELF, &asked))
            .await
            .map_err(|Silence| Error::transient(format!("{doing}: the server no longer answers")))?
            .map_err(|error| Error::from_postgres(&doing, &error))?;
        let row = rows.first().ok_or_else(|| Error::transient(format!("{doing}: no answer")))?;

        let text = |at| row.get::<_, String>(at);
        let list = |at| row.get::<_, Vec<String>>(at);
        let mut wrong = Vec::new();
        let mut expect = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        let logins = [id.login(Slot::A), id.login(Slot::B)];
        expect(logins.contains(&credentials.username), format!("it is no login of {id}"));
        expect(text(0) == credentials.username, format!("the session is {}'s", text(0)));
        expect(text(1) == text(0), format!("it acts as {}", text(1)));
        expect(text(2) == credentials.database, format!("it landed in database {}", text(2)));
        let path = format!("{}, tenantry", id.as_str());
        expect(text(3) == path, format!("its search_path is {:?}, not {path:?}", text(3)));
        expect(
            !row.get::<_, bool>(4),
            "it or one of its roles has an attribute such as CREATEROLE or BYPASSRLS".to_owned(),
        );
        let mut roles = vec![id.runtime(), tenants_role(&credentials.database)];
        roles.sort();
        let mut member_of = list(5);
        member_of.sort();
        expect(member_of == roles, format!("it is a member of {member_of:?}, not of {roles:?}"));
        expect(row.get(6), format!("it lacks USAGE on schema {id}"));
        expect(!row.get::<_, bool>(7), format!("it has CREATE on schema {id}"));
        let empty = |expect: &mut dyn FnMut(bool, String), at: usize, what: &str| {
            let found = list(at);
            expect(found.is_empty(), format!("{what} {}", found.join(", ")));
        };
        empty(&mut expect, 8, "on the database it has");
        empty(&mut expect, 9, "on the database PUBLIC has");
        empty(&mut expect, 10, "it has a privilege on schema");
        empty(&mut expect, 11, "it has a privilege on tenantry's tables");
        empty(&mut expect, 12, "it lacks EXECUTE on");
        expect(!row.get::<_, bool>(13), "it has CREATE on schema tenantry, or EXECUTE on what is inside".to_owned());
        empty(&mut expect, 14, "it may enter the operator's database");
        if wrong.is_empty() {
            return Ok(Proof { id, open_databases: list(15) });
        }
        Err(Error::permanent(format!("login {} is not isolated: {}", credentials.username, wrong.join("; "))))
    }
}
