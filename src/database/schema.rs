//! Databases: made, marked, closed to strangers, and their schema `tenantry` kept up to date.

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::error::{Error, Result};
use super::outbox::KEEP_OUTBOX;
use super::relay::relay_role;
use super::server::{AdminFacts, KEEPER, OWNER, Server};
use super::sql::{Script, ident, idents, literal};
use super::types::{DatabaseMark, DatabaseSpec, validate_database_name};

/// The versions of schema `tenantry`, each a file that is run once. Only ever add to them.
const VERSIONS: [&str; 3] = [include_str!("sql/001_tables.sql"), "", include_str!("sql/003_outbox.sql")];
/// The functions as they are now. Replaced whenever the version rises; where they alone change,
/// the new version is empty.
const FUNCTIONS: [&str; 2] = [include_str!("sql/functions.sql"), include_str!("sql/operator.sql")];
const PRIVILEGES: &str = include_str!("sql/privileges.sql");

/// What stands between a database and its tenants. All of it false or zero is as it should be.
const EXPOSED: &str = "
    SELECT d.datdba <> 'tenantry_owner'::regrole,
           has_database_privilege('public', d.oid, 'CONNECT')
             OR has_database_privilege('public', d.oid, 'TEMPORARY')
             OR has_database_privilege('public', d.oid, 'CREATE'),
           coalesce(has_schema_privilege('public', to_regnamespace('public')::oid, 'USAGE')
             OR has_schema_privilege('public', to_regnamespace('public')::oid, 'CREATE'), false),
           coalesce(has_schema_privilege('public', to_regnamespace('tenantry')::oid, 'USAGE'), true),
           d.datconnlimit
      FROM pg_database d WHERE d.datname = current_database()";

impl DatabaseSpec {
    fn mark(&self) -> DatabaseMark {
        DatabaseMark { cluster_id: self.cluster_id.clone(), purpose: self.purpose.clone() }
    }

    fn connection_limit(&self) -> i32 {
        self.connection_limit.map_or(-1, |limit| i32::try_from(limit).unwrap_or(i32::MAX))
    }
}

/// The role that a database's tenants are members of: it alone may enter.
pub(super) fn tenants_role(database: &str) -> String {
    format!("{database}_tenants")
}

/// Statements that settle who may do what in schema `tenantry`.
pub(super) fn privileges(tenants: &str) -> String {
    PRIVILEGES.replace("{tenants}", &ident(tenants))
}

/// How often the making of the server's own roles is tried again when somebody else was faster.
const OWNER_RACES: usize = 5;

impl Server {
    /// Makes the database, its schema `tenantry` and the privileges around it, or brings them up
    /// to date. Nothing to do costs two statements. A database of that name that another
    /// cluster's operator, or nobody, made is a permanent error and stays as it is.
    pub async fn ensure_database(&self, spec: &DatabaseSpec) -> Result<()> {
        self.bring_up_to_date(spec, true).await.map(drop)
    }

    /// The same for a database that is there. Returns false where it is gone: nothing is made.
    pub async fn update_database(&self, spec: &DatabaseSpec) -> Result<bool> {
        self.bring_up_to_date(spec, false).await
    }

    async fn bring_up_to_date(&self, spec: &DatabaseSpec, create: bool) -> Result<bool> {
        spec.validate()?;
        // Before a connection is held: nothing here holds one and asks for another.
        let facts = self.facts().await?;
        // The admin's standing connection knows it sooner than a login that is refused.
        if create && !self.exists(&spec.name).await? {
            self.create_database(spec).await?;
        }
        let mut connection = match self.connect(&spec.name).await {
            Ok(connection) => connection,
            // 42501: somebody else's database, which the admin may not even enter.
            Err(error) if error.sqlstate() == Some("42501") => {
                return Err(error.explained(foreign(&spec.name, "it belongs to somebody else")));
            }
            // 3D000: it isn't there. 55000: it accepts no connections, for instance not yet.
            Err(error) if matches!(error.sqlstate(), Some("3D000" | "55000")) => {
                if !create {
                    return Ok(false);
                }
                self.create_database(spec).await?;
                self.connect(&spec.name).await?
            }
            Err(error) => return Err(error),
        };
        let mut installed = installed_version(&mut connection, spec).await?;
        if installed == 0 {
            match install(&mut connection, spec, &facts).await {
                // Another operator was faster; its mark says which.
                Err(error) if error.is(&SqlState::DUPLICATE_SCHEMA) => {}
                other => other?,
            }
            installed = installed_version(&mut connection, spec).await?;
        }
        if installed < VERSIONS.len() {
            self.upgrade(&mut connection, spec, installed).await?;
        }
        self.close_to_public(&mut connection, spec).await?;
        Ok(true)
    }

    /// Drops a database of this cluster in which no tenant has a record any more. One that is
    /// gone already is a success.
    pub async fn drop_database(&self, name: &str, cluster_id: &str) -> Result<()> {
        validate_database_name(name)?;
        match self.connect(name).await {
            Ok(mut connection) => {
                let rows = connection
                    .query(
                        "can't look into the database",
                        "SELECT d.cluster_id, (SELECT count(*) FROM tenantry.tenant),
                                (SELECT count(*) FROM tenantry.outbox WHERE acked_at IS NULL AND dead_at IS NULL)
                           FROM tenantry.database d",
                        &[],
                    )
                    .await;
                match rows {
                    Ok(rows) => {
                        held_by_nobody(name, cluster_id, rows.first())?;
                        // DROP DATABASE can't be in a transaction, so the fence is asked just before.
                        if self.pool.fence().is_some() {
                            connection.run("can't drop the database", &Script::new()).await?;
                        }
                    }
                    Err(error) if matches!(error.sqlstate(), Some("42P01" | "3F000" | "42501")) => {
                        drop(connection);
                        // Only begun: opened, and nothing made in it yet.
                        if !self.is_unfinished(name).await? {
                            return Err(error.explained(foreign(name, "it has no record of an owner")));
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(error) if error.is(&SqlState::INVALID_CATALOG_NAME) => {}
            // Only begun: nobody was ever in it. Or the server crashed while it was dropped.
            Err(error) if error.sqlstate() == Some("55000") && self.is_unfinished(name).await? => {}
            Err(error) => return Err(error),
        }
        self.pool.leave(name);
        self.end_relay(name).await?;
        let mut admin = self.admin().await?;
        admin.run_alone("can't drop the database", &format!("DROP DATABASE IF EXISTS {}", ident(name))).await?;
        let mut script = Script::new();
        script.add(format!("DROP ROLE IF EXISTS {}", idents([tenants_role(name), relay_role(name)])));
        admin.run_unfenced("can't drop the roles of the database", &script).await?;
        Ok(())
    }

    /// The roles that the operator needs on a server, and the admin's way to them. Databases
    /// that are made at the same time make these at the same time: who comes second looks again.
    async fn ensure_owner(&self) -> Result<()> {
        let lost_race = |error: &Error| {
            let concurrent = error.sqlstate() == Some("XX000") && error.to_string().contains("concurrently");
            concurrent || error.is(&SqlState::DUPLICATE_OBJECT) || error.is(&SqlState::UNIQUE_VIOLATION)
        };
        for _ in 0..OWNER_RACES {
            match self.try_ensure_owner().await {
                Err(error) if lost_race(&error) => {}
                done => return done,
            }
        }
        self.try_ensure_owner().await
    }

    async fn try_ensure_owner(&self) -> Result<()> {
        let facts = self.facts().await?;
        let mut admin = self.admin().await?;
        let query = "
            SELECT r.rolname::text,
                   r.rolcanlogin OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
                   OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid AND r.rolname = 'tenantry_owner'),
                   pg_has_role(r.oid, 'USAGE')
              FROM pg_roles r WHERE r.rolname IN ('tenantry_owner', 'tenantry_keeper')";
        let rows = admin.query("can't look at role tenantry_owner", query, &[]).await?;
        let find = |name: &str| rows.iter().find(|row| row.get::<_, &str>(0) == name);
        let mut script = Script::new();
        if !facts.splits_memberships() && find(KEEPER).is_none() {
            script.add(format!("CREATE ROLE {KEEPER} NOLOGIN NOINHERIT"));
        }
        if !facts.splits_memberships() && !facts.oversees_all {
            script.add(format!("GRANT pg_signal_backend, pg_read_all_stats TO {}", ident(&facts.name)));
        }
        let own = match find(OWNER) {
            None => {
                script.add(format!("CREATE ROLE {OWNER} NOLOGIN"));
                false
            }
            Some(row) if row.get(1) => {
                return Err(Error::permanent(
                    "role tenantry_owner has a login, an attribute or a membership; it must have none: take them away from it",
                ));
            }
            Some(row) => row.get(2),
        };
        if !own {
            // For good, unlike a tenant's roles: it is only one.
            script.add(if facts.splits_memberships() {
                facts.borrow(OWNER)
            } else {
                format!("{} WITH ADMIN OPTION", facts.borrow(OWNER))
            });
        }
        if script.is_empty() {
            return Ok(());
        }
        admin.run_unfenced("can't make role tenantry_owner", &script).await.map(drop).map_err(|error| {
            if error.sqlstate() == Some("42501") {
                error.explained(format!(
                    "the admin {:?} is not a member of role tenantry_owner, which exists: run GRANT tenantry_owner TO {} WITH ADMIN OPTION",
                    facts.name,
                    ident(&facts.name)
                ))
            } else {
                error
            }
        })?;
        drop(admin);
        // What the admin may do has changed.
        self.check().await.map(drop)
    }

    /// Makes a database, or finishes one that was only begun. It opens when nobody but its owner has
    /// a privilege on it: not for a moment can anybody else enter.
    async fn create_database(&self, spec: &DatabaseSpec) -> Result<()> {
        self.ensure_owner().await?;
        let name = ident(&spec.name);
        // From template0: nothing that somebody left in template1 becomes every tenant's.
        let create =
            format!("CREATE DATABASE {name} OWNER {OWNER} TEMPLATE template0 ENCODING 'UTF8' ALLOW_CONNECTIONS false");
        match self.admin().await?.run_alone("can't make the database", &create).await {
            Err(error) if error.is(&SqlState::DUPLICATE_DATABASE) => {}
            other => other?,
        }
        if self.is_begun(&spec.name).await? {
            let mut script = Script::new();
            script
                .add(format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"))
                .add(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
            self.admin().await?.run_unfenced("can't close the database to PUBLIC", &script).await?;
        }
        Ok(())
    }

    async fn exists(&self, name: &str) -> Result<bool> {
        let query = "SELECT FROM pg_database WHERE datname::text = $1";
        let rows = self.admin().await?.query("can't look at the database", query, &[(&name, Type::TEXT)]).await?;
        Ok(!rows.is_empty())
    }

    /// Whether a database of `tenantry_owner` was made and not yet marked.
    async fn is_begun(&self, name: &str) -> Result<bool> {
        self.is_ours_and(name, "shobj_description(oid, 'pg_database') IS NULL").await
    }

    /// Whether a database of `tenantry_owner` was only begun, or half dropped: a connection limit
    /// of -2 says that (PostgreSQL 15.4).
    async fn is_unfinished(&self, name: &str) -> Result<bool> {
        self.is_ours_and(name, "(datconnlimit = -2 OR shobj_description(oid, 'pg_database') IS NULL)").await
    }

    async fn is_ours_and(&self, name: &str, condition: &str) -> Result<bool> {
        let query = format!(
            "SELECT datdba = to_regrole('tenantry_owner') AND {condition} FROM pg_database WHERE datname::text = $1"
        );
        let rows = self.admin().await?.query("can't look at the database", &query, &[(&name, Type::TEXT)]).await?;
        Ok(rows.first().is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true)))
    }

    async fn upgrade(&self, connection: &mut Connection, spec: &DatabaseSpec, installed: usize) -> Result<()> {
        for (at, version) in VERSIONS.iter().enumerate().skip(installed) {
            let mut script = Script::new();
            script.add(format!("SET LOCAL ROLE {OWNER}"));
            // Taken first: of two operators that upgrade, the second finds its work done and fails.
            script.add(format!(
                "UPDATE tenantry.database SET schema_version = CASE WHEN schema_version = {at} THEN {} ELSE NULL END",
                at + 1
            ));
            script.add(*version);
            if at + 1 == VERSIONS.len() {
                script.add(FUNCTIONS.concat()).add(privileges(&tenants_role(&spec.name))).add(KEEP_OUTBOX);
            }
            connection.run("can't bring schema tenantry up to date", &script).await?;
        }
        Ok(())
    }

    /// Sees to it that the database is closed to everybody but its tenants, and proves it: a
    /// REVOKE that changes nothing is only a warning.
    async fn close_to_public(&self, connection: &mut Connection, spec: &DatabaseSpec) -> Result<()> {
        let doing = "can't look at the database's privileges";
        for repaired in [false, true] {
            let rows = connection.query(doing, EXPOSED, &[]).await?;
            let row = rows.first().ok_or_else(|| Error::transient("the database has just gone"))?;
            let limit: i32 = row.get(4);
            let wrong: Vec<&str> = [
                "it does not belong to tenantry_owner",
                "PUBLIC has a privilege on it",
                "PUBLIC may use schema public",
                "PUBLIC may use schema tenantry",
            ]
            .into_iter()
            .enumerate()
            .filter_map(|(at, what)| row.get::<_, bool>(at).then_some(what))
            .collect();
            if wrong.is_empty() && limit == spec.connection_limit() {
                return Ok(());
            }
            if repaired {
                return Err(Error::permanent(format!(
                    "database {:?} is not isolated: {}; its owner has to be tenantry_owner and PUBLIC must have nothing",
                    spec.name,
                    wrong.join(", ")
                )));
            }
            let name = ident(&spec.name);
            let mut script = Script::new();
            script
                .add(format!("SET LOCAL ROLE {OWNER}"))
                .add(format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"))
                .add(format!("ALTER DATABASE {name} CONNECTION LIMIT {}", spec.connection_limit()))
                .add("DO $$ BEGIN IF to_regnamespace('public') IS NOT NULL THEN REVOKE ALL ON SCHEMA public FROM PUBLIC; END IF; END $$")
                .add("REVOKE ALL ON SCHEMA tenantry FROM PUBLIC");
            connection.run("can't close the database to PUBLIC", &script).await?;
        }
        Ok(())
    }
}

/// Whether a database is this cluster's, with no tenant and no event left in it.
fn held_by_nobody(name: &str, cluster_id: &str, row: Option<&Row>) -> Result<()> {
    let row = row.ok_or_else(|| Error::permanent(foreign(name, "it has no record of an owner")))?;
    let owner: String = row.get(0);
    if owner != cluster_id {
        return Err(Error::permanent(foreign(name, &format!("it belongs to cluster {owner}"))));
    }
    let (tenants, unsent): (i64, i64) = (row.get(1), row.get(2));
    if tenants > 0 || unsent > 0 {
        return Err(Error::waiting(format!(
            "database {name:?} still holds {tenants} tenants and {unsent} usage events that nobody has acknowledged"
        )));
    }
    Ok(())
}

fn foreign(name: &str, why: &str) -> String {
    format!(
        "database {name:?} was not made by this operator ({why}); it stays as it is: rename it, or give this one another name"
    )
}

/// The version of schema `tenantry` in a database of ours; 0 where it was only just made.
async fn installed_version(connection: &mut Connection, spec: &DatabaseSpec) -> Result<usize> {
    let rows = connection
        .query(
            "can't read whose the database is",
            "SELECT cluster_id, kind, object, schema_version FROM tenantry.database",
            &[],
        )
        .await;
    let rows = match rows {
        Ok(rows) => rows,
        // No schema, no table, or somebody else's.
        Err(error) if matches!(error.sqlstate(), Some("42P01" | "3F000" | "42501")) => Vec::new(),
        Err(error) => return Err(error),
    };
    if let Some(row) = rows.first() {
        let (cluster, kind, object): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        if cluster != spec.cluster_id {
            let why = format!(
                "it belongs to cluster {cluster}; if this cluster takes that one's place, run tenantry adopt --from-cluster {cluster}"
            );
            return Err(Error::permanent(foreign(&spec.name, &why)));
        }
        if (kind.as_str(), object.as_str()) != (spec.purpose.kind(), spec.purpose.object()) {
            return Err(Error::permanent(foreign(&spec.name, &format!("it was made for {kind} {object}"))));
        }
        let version: i32 = row.get(3);
        return Ok(usize::try_from(version).unwrap_or(0));
    }
    // A database that was begun and not finished belongs to tenantry_owner and holds nothing.
    let rows = connection
        .query(
            "can't see whose the database is",
            "SELECT d.datdba = coalesce(to_regrole('tenantry_owner'), 0::oid)
                    AND to_regnamespace('tenantry') IS NULL
                    AND NOT EXISTS (SELECT FROM pg_class WHERE oid >= 16384)
               FROM pg_database d WHERE d.datname = current_database()",
            &[],
        )
        .await?;
    if rows.first().is_some_and(|row| row.get(0)) {
        return Ok(0);
    }
    Err(Error::permanent(foreign(&spec.name, "it has no record of an owner")))
}

/// Makes schema `tenantry` and everything around it in one transaction, so that it is there
/// whole and marked, or not at all.
async fn install(connection: &mut Connection, spec: &DatabaseSpec, facts: &AdminFacts) -> Result<()> {
    let role = tenants_role(&spec.name);
    let (name, tenants, mark) = (ident(&spec.name), ident(&role), spec.mark().comment());
    let mut script = Script::new();
    script
        .add(format!("CREATE ROLE {tenants} NOLOGIN"))
        .add_some(facts.keep(&tenants))
        .add(format!("COMMENT ON ROLE {tenants} IS {}", literal(&mark)))
        .add(format!("SET LOCAL ROLE {OWNER}"))
        .add(format!("CREATE SCHEMA tenantry AUTHORIZATION {OWNER}"))
        .add("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC");
    for version in VERSIONS {
        script.add(version);
    }
    script
        .add(FUNCTIONS.concat())
        .add(privileges(&role))
        .add(KEEP_OUTBOX)
        .add(format!(
            "INSERT INTO tenantry.database (cluster_id, kind, object, tenants_role, schema_version) VALUES ({}, {}, {}, {}, {})",
            literal(&spec.cluster_id),
            literal(spec.purpose.kind()),
            literal(spec.purpose.object()),
            literal(&role),
            VERSIONS.len()
        ))
        .add(format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"))
        .add(format!("GRANT CONNECT ON DATABASE {name} TO {tenants}"))
        .add(format!("COMMENT ON DATABASE {name} IS {}", literal(&mark)))
        // PostgreSQL's own schema public belongs to the database's owner.
        .add("REVOKE ALL ON SCHEMA public FROM PUBLIC");
    connection.run_unfenced("can't make schema tenantry", &script).await.map(drop).map_err(|error| {
        if error.is(&SqlState::DUPLICATE_OBJECT) {
            error.explained(format!(
                "role {role:?} exists already and is nobody's record: drop it, or choose another database name"
            ))
        } else {
            error
        }
    })
}
