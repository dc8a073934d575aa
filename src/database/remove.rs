//! Taking tenants out of use, back into it, and away for good.

use std::collections::BTreeSet;

use jiff::Timestamp;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::connection::Connection;
use super::error::{Error, Result};
use super::identity::TenantId;
use super::logins::close_where;
use super::records::{read_live, read_one};
use super::server::{AdminFacts, Server};
use super::sql::{Script, ident, idents, literal};
use super::tenants::{end_sessions, expect_one, logins_of};
use super::types::{DropOutcome, TenantRecord, TenantState};

/// A tenant's roles, each with the other databases in which something depends on it, and with the
/// owners of things in this one on which it has a privilege.
const HOLDS: &str = "
    SELECT r.rolname::text,
           ARRAY(SELECT DISTINCT d.datname::text FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid
                  WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid AND d.datname <> current_database()),
           ARRAY(SELECT DISTINCT n.rolname::text FROM pg_shdepend s
                   JOIN pg_shdepend o ON o.deptype = 'o' AND (o.dbid, o.classid, o.objid) = (s.dbid, s.classid, s.objid)
                   JOIN pg_roles n ON n.oid = o.refobjid AND NOT n.rolsuper
                   JOIN pg_database d ON d.oid = s.dbid AND d.datname = current_database()
                  WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = r.oid AND s.deptype = 'a')
      FROM pg_roles r WHERE r.rolname::text = ANY ($1) ORDER BY 1";

impl Server {
    /// Takes a tenant out of use and keeps it until `drop_after`: no login works, sessions end,
    /// the schema is renamed, its name is free for another Tenant. To abandon a live record of a
    /// Tenant that is gone is the same. A tenant that is not live any more stays as it is.
    pub async fn retain(&self, database: &str, id: &TenantId, drop_after: Timestamp) -> Result<()> {
        let facts = self.facts().await?;
        let mut connection = self.connect(database).await?;
        let state = read_one(&mut connection, id).await?.map(|record| record.state);
        if state == Some(TenantState::Live) {
            let owner = ident(&id.owner());
            let mut script = Script::new();
            script
                .add(expect_one(
                    &format!(
                        "UPDATE tenantry.tenant SET state = 'Retained', drop_after = {} WHERE id = {} AND state = 'Live'",
                        literal(&drop_after.to_string()),
                        literal(id.as_str())
                    ),
                    "the tenant has just been taken out of use",
                ))
                .add(close_where(&format!("tenant = {}", literal(id.as_str()))))
                .add(facts.borrow(&owner))
                .add(format!("ALTER SCHEMA {} RENAME TO {}", ident(id.schema()), ident(&id.retained_schema())))
                .add(facts.give_back(&owner));
            connection.run(&format!("can't retain tenant {id}"), &script).await?;
        }
        if state.is_some() {
            end_sessions(&mut connection, &logins_of(id)).await?;
        }
        Ok(())
    }

    /// Gives a retained tenant, or a live one whose Tenant object was lost, to the Tenant with
    /// this name and UID. It keeps its id; where no login is left, one has to be issued.
    pub async fn restore(&self, database: &str, id: &TenantId, name: &str, uid: &str) -> Result<TenantRecord> {
        let facts = self.facts().await?;
        let mut connection = self.connect(database).await?;
        let record = read_one(&mut connection, id).await?.ok_or_else(|| {
            Error::permanent(format!("tenant {id} has no record in this database: nothing can be restored"))
        })?;
        let mut script = Script::new();
        match record.state {
            TenantState::Live if record.uid == uid && record.name == name => return Ok(record),
            TenantState::Live => {}
            TenantState::Retained { .. } => {
                let owner = ident(&id.owner());
                script
                    .add(facts.borrow(&owner))
                    .add(format!("ALTER SCHEMA {} RENAME TO {}", ident(&id.retained_schema()), ident(id.schema())))
                    .add(facts.give_back(&owner));
            }
            state => {
                return Err(Error::permanent(format!("tenant {id} is {}: its data is gone", state.as_str())));
            }
        }
        script.add(expect_one(
            &format!(
                "UPDATE tenantry.tenant SET state = 'Live', drop_after = NULL, name = {}, uid = {} WHERE id = {} AND state = '{}'",
                literal(name),
                literal(uid),
                literal(id.as_str()),
                record.state.as_str()
            ),
            "the tenant has just changed its state",
        ));
        connection.run(&format!("can't restore tenant {id}"), &script).await.map_err(|error| {
            if error.is(&SqlState::UNIQUE_VIOLATION) {
                error.explained(format!(
                    "tenant {id} can't be restored as {name:?}: another tenant of that name is live in this database; delete that one first"
                ))
            } else {
                error
            }
        })?;
        read_live(&mut connection, id).await
    }

    /// Drops a retained tenant whose time has come, or goes on with one that is being dropped.
    /// Nothing where it is neither: somebody took it back in the meantime, or keeps it longer.
    pub async fn drop_due(&self, database: &str, id: &TenantId, now: Timestamp) -> Result<Option<DropOutcome>> {
        let mut connection = self.connect(database).await?;
        // Taking back is one conditional statement as well: of the two, one comes first, and
        // the other finds nothing to do.
        let mut script = Script::new();
        script.add(format!(
            "UPDATE tenantry.tenant SET state = 'Dropping', drop_after = NULL \
             WHERE id = {} AND state = 'Retained' AND drop_after <= {}",
            literal(id.as_str()),
            literal(&now.to_string())
        ));
        connection.run(&format!("can't begin to drop tenant {id}"), &script).await?;
        let state = read_one(&mut connection, id).await?.map(|record| record.state);
        drop(connection);
        match state {
            Some(TenantState::Live | TenantState::Retained { .. }) => Ok(None),
            Some(TenantState::Dropping | TenantState::Dropped { .. }) | None => {
                self.drop_tenant(database, id).await.map(Some)
            }
        }
    }

    /// Drops everything of a tenant, in any state; its unsent usage events stay until they are
    /// acknowledged, then a further call removes the record too. May be repeated at any point.
    pub async fn drop_tenant(&self, database: &str, id: &TenantId) -> Result<DropOutcome> {
        let mut connection = self.connect(database).await?;
        let Some(record) = read_one(&mut connection, id).await? else {
            return Ok(DropOutcome::Gone);
        };
        if !matches!(record.state, TenantState::Dropped { .. }) {
            self.lock_out(&mut connection, &record).await?;
            drop(connection);
            self.erase(database, id).await?;
            connection = self.connect(database).await?;
        }
        let tenant = literal(id.as_str());
        let unsent = "SELECT FROM tenantry.outbox o WHERE o.tenant = t.id AND o.acked_at IS NULL AND o.dead_at IS NULL";
        let mut script = Script::new();
        script.add(format!(
            "DELETE FROM tenantry.tenant t WHERE t.id = {tenant} AND t.state = 'Dropped' AND NOT EXISTS ({unsent})"
        ));
        connection.run(&format!("can't remove the record of tenant {id}"), &script).await?;
        Ok(match read_one(&mut connection, id).await?.map(|record| record.state) {
            Some(TenantState::Dropped { unsent }) => DropOutcome::WaitsForEvents(unsent),
            Some(state) => {
                return Err(Error::transient(format!("tenant {id} is {} again", state.as_str())));
            }
            None => DropOutcome::Gone,
        })
    }

    /// From here on there is no way back, and nobody comes in.
    async fn lock_out(&self, connection: &mut Connection, record: &TenantRecord) -> Result<()> {
        let id = &record.id;
        if record.state != TenantState::Dropping {
            let mut script = Script::new();
            script
                .add(format!(
                    "UPDATE tenantry.tenant SET state = 'Dropping', drop_after = NULL WHERE id = {}",
                    literal(id.as_str())
                ))
                .add(close_where(&format!("tenant = {}", literal(id.as_str()))));
            connection.run(&format!("can't close the logins of tenant {id}"), &script).await?;
        }
        end_sessions(connection, &logins_of(id)).await.map(drop)
    }

    /// Schema, roles and rows, in one transaction.
    async fn erase(&self, database: &str, id: &TenantId) -> Result<()> {
        let doing = format!("can't drop tenant {id}");
        let facts = self.facts().await?;
        let all = id.roles();
        let rows = self.connect(database).await?.query(&doing, HOLDS, &[(&all.as_slice(), Type::TEXT_ARRAY)]).await?;
        let roles: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let distinct = |at: usize| -> BTreeSet<String> {
            rows.iter().flat_map(|row| row.get::<_, Vec<String>>(at)).filter(|name| !all.contains(name)).collect()
        };
        let (elsewhere, neighbours) = (distinct(1), distinct(2));
        // A login could enter another database that is open to PUBLIC, and leave a large object.
        for database in &elsewhere {
            let mut script = Script::new();
            script
                .add(facts.borrow(&idents(&roles)))
                .add(format!("DROP OWNED BY {} CASCADE", idents(&roles)))
                .add(facts.give_back(&idents(&roles)));
            let mut other = self.connect(database).await?;
            other.run_unfenced(&format!("{doing}: what it left in database {database:?} stays"), &script).await?;
        }
        let tenant = literal(id.as_str());
        let mut script = Script::new();
        if !roles.is_empty() {
            script.add(facts.borrow(&idents(&roles)));
        }
        for schema in [id.schema().to_owned(), id.retained_schema()] {
            script.add(format!("DROP SCHEMA IF EXISTS {} CASCADE", ident(&schema)));
        }
        if !roles.is_empty() {
            // Also takes back what neighbours granted to these roles, in the neighbours' name.
            if !neighbours.is_empty() {
                script.add(facts.borrow(&idents(&neighbours)));
            }
            script.add(format!("DROP OWNED BY {} CASCADE", idents(&roles)));
            if !neighbours.is_empty() {
                script.add(facts.give_back(&idents(&neighbours)));
            }
            script.add(format!("DROP ROLE {}", idents(&roles)));
        }
        for table in ["login", "migration", "meter"] {
            script.add(format!("DELETE FROM tenantry.{table} WHERE tenant = {tenant}"));
        }
        script.add(format!("UPDATE tenantry.tenant SET state = 'Dropped' WHERE id = {tenant} AND state = 'Dropping'"));
        let mut connection = self.connect(database).await?;
        match connection.run(&doing, &script).await {
            // So many tables that one transaction can't lock them all: fewer, then again.
            Err(error) if error.is(&SqlState::OUT_OF_MEMORY) => {
                thin_out(&mut connection, id, &facts).await?;
                connection.run(&doing, &script).await.map(drop)
            }
            other => other.map(drop),
        }
    }
}

/// Drops a large schema's tables, a few at a time.
async fn thin_out(connection: &mut Connection, id: &TenantId, facts: &AdminFacts) -> Result<()> {
    let owner = ident(&id.owner());
    let doing = format!("can't drop the tables of tenant {id}");
    let schemas = [id.schema().to_owned(), id.retained_schema()];
    loop {
        let rows = connection
            .query(
                &doing,
                "SELECT format('%I.%I', n.nspname, c.relname)
                   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname::text = ANY ($1) AND c.relkind IN ('r', 'p') LIMIT 50",
                &[(&schemas.as_slice(), Type::TEXT_ARRAY)],
            )
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        let tables: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let mut script = Script::new();
        script
            .add(facts.borrow(&owner))
            .add(format!("DROP TABLE IF EXISTS {} CASCADE", tables.join(", ")))
            .add(facts.give_back(&owner));
        connection.run(&doing, &script).await?;
    }
}
