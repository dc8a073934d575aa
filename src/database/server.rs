//! A server that tenants live on, and what the admin's login can do there.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::connection::Connection;
use super::error::{Error, Result};
use super::identity::{Password, TenantId};
use super::pool::Pool;
use super::sql::{Script, ident};
use super::tenants::end_sessions;
use super::types::{DatabaseMark, DatabaseRecord, Purpose, ServerInfo, Statistics};
use crate::term::Term;

/// The role that every database of the operator belongs to, and schema `tenantry` in it. It has no
/// login, no attribute and no membership, so nobody but the admin gets what is its.
pub(super) const OWNER: &str = "tenantry_owner";

/// On PostgreSQL 15, the role that has ADMIN OPTION on each role that the operator makes, so that
/// after an upgrade to 16 one GRANT gives the admin what version 16 would have given it. Nobody is
/// a member of it, and it inherits nothing.
pub(super) const KEEPER: &str = "tenantry_keeper";

/// How to reach a server as its admin. The admin needs `LOGIN CREATEDB CREATEROLE` and `INHERIT`
/// (PostgreSQL's default), and need not be a superuser.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Host name, also the name that its certificate must have.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The database that the admin enters first, usually `postgres`.
    pub database: String,
    /// The admin's login.
    pub user: String,
    /// Its password.
    pub password: Password,
    /// How the connection is protected.
    pub tls: Tls,
    /// Where tenants reach the server, if that is elsewhere, for instance at a pooler.
    pub endpoint: Option<Endpoint>,
    /// How many connections the operator has at most to this server, over all its databases.
    pub connections: usize,
    /// How long things may take.
    pub timeouts: Timeouts,
}

/// How a connection is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// TLS; the certificate must be signed by one of these (PEM) and carry the host's name.
    VerifyFull {
        /// One or more CA certificates, PEM.
        ca_pem: String,
    },
    /// None. For a server on the same host and for nothing else.
    Disable,
}

/// Where tenants reach a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// How long the operator's own work on a server may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection, TLS and login included.
    pub connect: Duration,
    /// To get one of the bounded connections.
    pub wait: Duration,
    /// For one statement.
    pub statement: Duration,
    /// For one lock.
    pub lock: Duration,
    /// After this long without any answer the server is asked, by a login of its own, whether
    /// it is there at all. If that fails as well, all that wait for it are told at once.
    pub suspicion: Duration,
    /// After this long without use a connection is closed.
    pub idle: Duration,
    /// The longest pause of the breaker between two attempts at a server that can't be reached.
    pub breaker: Duration,
    /// For one lock that an application's migration wants.
    pub migration_lock: Duration,
}

impl ServerConfig {
    /// How many migrations run at a time: they can take hours, and have connections of their own,
    /// half as many again.
    pub(super) fn migrations(&self) -> usize {
        self.connections.div_ceil(2)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            wait: Duration::from_secs(10),
            statement: Duration::from_secs(30),
            lock: Duration::from_secs(5),
            suspicion: Duration::from_secs(2),
            idle: Duration::from_secs(30),
            breaker: Duration::from_secs(15),
            migration_lock: Duration::from_secs(10),
        }
    }
}

/// A server. Cheap to clone; all clones share its connections.
#[derive(Clone)]
pub struct Server {
    pub(super) pool: Arc<Pool>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    admin: Mutex<Option<AdminFacts>>,
    /// Tenants whose migration login is open because a migration runs here.
    migrating: Mutex<HashSet<TenantId>>,
}

/// What statements depend on, asked once and again by each check.
#[derive(Clone, Debug)]
pub(super) struct AdminFacts {
    pub(super) name: String,
    pub(super) version: u32,
    pub(super) sets_temp_file_limit: bool,
    /// Whether it sees and may end all sessions.
    pub(super) oversees_all: bool,
}

impl AdminFacts {
    /// From 16 on a membership says apart whether it inherits and whether it allows SET ROLE;
    /// before, it always does both.
    pub(super) fn grant(&self, roles: &str, to: &str, options: &str) -> String {
        if self.splits_memberships() {
            format!("GRANT {roles} TO {to} WITH {options}")
        } else {
            format!("GRANT {roles} TO {to}")
        }
    }

    /// Makes the admin a member of roles that own things, until [`give_back`](Self::give_back) in
    /// the same transaction.
    ///
    /// Never for longer: PostgreSQL 15 lists all roles that the admin is a member of, in quadratic
    /// time, whenever it asks whether the admin is a member of one and any membership has changed.
    /// With five standing memberships for each of 1,000 tenants that made CREATE SCHEMA take 262 ms;
    /// without them it takes 1.
    pub(super) fn borrow(&self, roles: &str) -> String {
        self.grant(roles, &ident(&self.name), "INHERIT TRUE, SET TRUE")
    }

    /// Ends what [`borrow`](Self::borrow) began.
    pub(super) fn give_back(&self, roles: &str) -> String {
        format!("REVOKE {roles} FROM {}", ident(&self.name))
    }

    /// Keeps the admin able to act on roles that it has just made. On 16 the server does that; on
    /// 15 any CREATEROLE may, and the keeper has ADMIN OPTION for after an upgrade.
    pub(super) fn keep(&self, roles: &str) -> Option<String> {
        (!self.splits_memberships()).then(|| format!("GRANT {roles} TO {KEEPER} WITH ADMIN OPTION"))
    }

    /// Lets the admin see and end sessions of logins. On 15 it does so for all by way of
    /// `pg_signal_backend` and `pg_read_all_stats`, which it may give itself.
    pub(super) fn oversee(&self, logins: &str) -> Option<String> {
        let admin = ident(&self.name);
        self.splits_memberships().then(|| format!("GRANT {logins} TO {admin} WITH INHERIT TRUE, SET FALSE"))
    }

    /// Whether it is version 16 or newer.
    pub(super) fn splits_memberships(&self) -> bool {
        self.version >= 160_000
    }
}

const CHECK: &str = "
    SELECT current_setting('server_version_num')::int, current_setting('max_connections')::int,
           r.rolcreatedb, r.rolcreaterole, r.rolinherit, r.rolsuper, current_user::text,
           CASE WHEN current_setting('server_version_num')::int >= 150000
                THEN has_parameter_privilege('temp_file_limit', 'SET') ELSE false END,
           ARRAY(SELECT d.datname::text FROM pg_database d
                  WHERE d.datallowconn AND d.datdba <> coalesce(to_regrole('tenantry_owner'), 0::oid)
                    AND has_database_privilege('public', d.oid, 'CONNECT') ORDER BY 1),
           pg_has_role('pg_signal_backend', 'USAGE') AND pg_has_role('pg_read_all_stats', 'USAGE'),
           coalesce(NOT pg_has_role(to_regrole('tenantry_keeper')::oid, 'USAGE WITH ADMIN OPTION'), false)
      FROM pg_roles r WHERE r.rolname = current_user";

impl Server {
    /// Prepares a server for a process that has no rivals. Nothing is sent yet; a CA that can't
    /// be read is an error.
    pub fn new(config: ServerConfig) -> Result<Self> {
        Ok(Self { pool: Pool::new(config, Term::unlimited(), None)?, state: Arc::default() })
    }

    /// The same for the operator of a cluster, and for as long as a term of leadership lasts:
    /// nothing is sent before or after. Every transaction in a database of the operator's fails,
    /// with a transient error, where a leader of a higher number has been, of which the term is
    /// told; and, with a permanent one, where another cluster has taken the database over.
    pub fn within(config: ServerConfig, term: Term, cluster_id: impl Into<String>) -> Result<Self> {
        Ok(Self { pool: Pool::new(config, term, Some(cluster_id.into()))?, state: Arc::default() })
    }

    /// Makes the term's number the highest that a database has seen: from here on nobody who led
    /// before writes there. What they have begun is done, or undone: their migrations are ended,
    /// which are all but those of the tenants in `ours`. Costs one read where nothing is to be
    /// done, and nothing without an election.
    pub async fn fence(&self, database: &str, ours: &HashSet<TenantId>) -> Result<()> {
        let number = self.pool.term().number();
        if number == 0 {
            return Ok(());
        }
        let doing = "can't hold back earlier leaders";
        let mut connection = self.connect(database).await?;
        let (seen, mut logins) = standing(&mut connection, doing).await?;
        if u64::try_from(seen) != Ok(number) {
            connection.run(doing, &Script::new()).await?;
            // Once more: nobody begins one from here on.
            (_, logins) = standing(&mut connection, doing).await?;
        }
        // Also where the number is ours already: somebody may have been interrupted just here.
        logins.retain(|login| !ours.iter().any(|id| id.migrator() == *login));
        if logins.is_empty() {
            return Ok(());
        }
        end_sessions(&mut connection, &logins).await.map(drop)
    }

    /// How many migrations can run here at a time.
    #[must_use]
    pub fn migration_places(&self) -> usize {
        self.pool.config.migrations()
    }

    /// How many connections the operator has here at most, beside those of migrations.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pool.config.connections
    }

    /// Logs in as the admin and tells what the server is and what the admin may do there. What
    /// the operator can't do without is an error that names it.
    pub async fn check(&self) -> Result<ServerInfo> {
        let mut connection = self.admin().await?;
        let rows = connection.query("can't look at the server", CHECK, &[]).await?;
        let row = rows.first().ok_or_else(|| Error::permanent("the admin's role is not in pg_roles"))?;
        let version: i32 = row.get(0);
        let max_connections: i32 = row.get(1);
        let (createdb, createrole, inherit, superuser): (bool, bool, bool, bool) =
            (row.get(2), row.get(3), row.get(4), row.get(5));
        let name: String = row.get(6);
        let sets_temp_file_limit: bool = row.get(7);
        let open_databases: Vec<String> = row.get(8);
        if version < 150_000 {
            return Err(Error::permanent(format!(
                "PostgreSQL 15 or newer is needed; this server is {}",
                version / 10_000
            )));
        }
        let missing: Vec<&str> = [(createdb, "CREATEDB"), (createrole, "CREATEROLE"), (inherit, "INHERIT")]
            .into_iter()
            .filter_map(|(has, attribute)| (!has && !superuser).then_some(attribute))
            .collect();
        if !missing.is_empty() {
            return Err(Error::permanent(format!(
                "the admin {name:?} lacks {}; as a superuser run: ALTER ROLE {} {}",
                missing.join(", "),
                ident(&name),
                missing.join(" ")
            )));
        }
        if version >= 160_000 && row.get(10) {
            return Err(Error::permanent(format!(
                "after the upgrade from PostgreSQL 15 the admin {name:?} has to take over its roles; as a superuser run: GRANT {KEEPER} TO {} WITH ADMIN OPTION",
                ident(&name)
            )));
        }
        let mut advice = Vec::new();
        if superuser {
            advice.push(format!(
                "the admin {name:?} is a superuser and need not be: use a role with LOGIN CREATEDB CREATEROLE"
            ));
        }
        if !sets_temp_file_limit {
            advice.push(format!(
                "tenants' temp_file_limit is left out, because the admin may not set it: run GRANT SET ON PARAMETER temp_file_limit TO {}",
                ident(&name)
            ));
        }
        for database in &open_databases {
            advice.push(format!(
                "every login of the server, tenants' too, may enter database {database:?}: run REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC",
                ident(database)
            ));
        }
        let unsigned = |number: i32| u32::try_from(number).expect("the server says a number above 0");
        let facts = AdminFacts { name, version: unsigned(version), sets_temp_file_limit, oversees_all: row.get(9) };
        *self.state.admin.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts);
        Ok(ServerInfo {
            version: unsigned(version),
            max_connections: unsigned(max_connections),
            sets_temp_file_limit,
            open_databases,
            advice,
        })
    }

    /// The databases of this and other operators on the server: those of `tenantry_owner`.
    pub async fn list_databases(&self) -> Result<Vec<DatabaseRecord>> {
        let mut connection = self.admin().await?;
        let rows = connection
            .query(
                "can't list databases",
                "SELECT d.datname::text, shobj_description(d.oid, 'pg_database') FROM pg_database d
                  WHERE d.datdba = to_regrole('tenantry_owner') ORDER BY 1",
                &[],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|row| DatabaseRecord {
                name: row.get(0),
                mark: row.get::<_, Option<&str>>(1).and_then(DatabaseMark::from_comment),
            })
            .collect())
    }

    /// How much was asked of the server so far, by all clones.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.pool.statistics()
    }

    /// Host and port as the admin reaches them.
    #[must_use]
    pub fn address(&self) -> Endpoint {
        let config = &self.pool.config;
        Endpoint { host: config.host.clone(), port: config.port }
    }

    /// Host and port for tenants.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        let config = &self.pool.config;
        config.endpoint.clone().unwrap_or_else(|| Endpoint { host: config.host.clone(), port: config.port })
    }

    /// A connection to the database that the admin enters first.
    pub(super) async fn admin(&self) -> Result<Connection> {
        self.pool.get(&self.pool.config.database).await
    }

    /// A connection to a database of the operator's.
    pub(super) async fn connect(&self, database: &str) -> Result<Connection> {
        self.pool.get(database).await
    }

    /// What statements depend on; asks the server the first time.
    pub(super) async fn facts(&self) -> Result<AdminFacts> {
        if let Some(facts) = self.known_facts() {
            return Ok(facts);
        }
        self.check().await?;
        self.known_facts().ok_or_else(|| Error::transient("the server's check was interrupted"))
    }

    fn known_facts(&self) -> Option<AdminFacts> {
        self.state.admin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Marks a tenant as being migrated by this process; `None` if it is already.
    pub(super) fn begin_migration(&self, id: &TenantId) -> Option<Migrating> {
        let mut migrating = self.state.migrating.lock().unwrap_or_else(PoisonError::into_inner);
        migrating.insert(id.clone()).then(|| Migrating { state: self.state.clone(), id: id.clone() })
    }

    /// Whether this process is migrating a tenant.
    pub(super) fn is_migrating(&self, id: &TenantId) -> bool {
        self.state.migrating.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// A database's fence, and whose migrations run there. These run as the tenant, who can't be asked
/// for a number.
async fn standing(connection: &mut Connection, doing: &str) -> Result<(i64, Vec<String>)> {
    let rows = connection
        .query(
            doing,
            "SELECT fence, ARRAY(SELECT DISTINCT usename::text FROM pg_stat_activity
                                  WHERE datname = current_database() AND usename ~ '^t_[a-z2-7]{12}_mig$')
               FROM tenantry.database",
            &[],
        )
        .await?;
    let row = rows.first().ok_or_else(|| Error::permanent("the database has no record of an owner"))?;
    Ok((row.get(0), row.get(1)))
}

/// A migration that runs in this process.
pub(super) struct Migrating {
    state: Arc<State>,
    id: TenantId,
}

impl Drop for Migrating {
    fn drop(&mut self) {
        self.state.migrating.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl DatabaseMark {
    /// The mark as a database's comment.
    pub(super) fn comment(&self) -> String {
        let mark = serde_json::json!({
            "cluster": self.cluster_id, "kind": self.purpose.kind(), "object": self.purpose.object(),
        });
        format!("tenantry {mark}")
    }

    fn from_comment(comment: &str) -> Option<Self> {
        let mark: serde_json::Value = serde_json::from_str(comment.strip_prefix("tenantry ")?).ok()?;
        Some(Self {
            cluster_id: mark["cluster"].as_str()?.to_owned(),
            purpose: Purpose::from_parts(mark["kind"].as_str()?, mark["object"].as_str()?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_the_comment() {
        let mark = DatabaseMark { cluster_id: "c-1".into(), purpose: Purpose::Pool("crm's".into()) };
        assert_eq!(DatabaseMark::from_comment(&mark.comment()), Some(mark));
        assert_eq!(DatabaseMark::from_comment("somebody's own words"), None);
    }
}
