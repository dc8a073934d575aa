//! Databases that another cluster left, taken over by the one that was built in its place.

use super::{
    error::{Error, Result},
    server::{OWNER, Server},
    sql::{Script, ident, literal},
    types::{DatabaseMark, DatabaseRecord},
};

impl Server {
    /// Gives a database, with every ownership record in it, to cluster `to`, if it belongs to
    /// cluster `from`; the tenants' data, roles and logins stay as they are. The other
    /// cluster's operator must have ended for good; one that lives on is as foreign here as this
    /// one was before, and changes nothing, whatever it remembers. The fence starts anew, since
    /// each cluster counts its own leaders.
    ///
    /// # Errors
    /// Where the database is neither's, or not marked at all; it stays as it is then.
    pub async fn take_over(&self, database: &DatabaseRecord, from: &str, to: &str) -> Result<DatabaseRecord> {
        let name = &database.name;
        let Some(mark) = database.mark.as_ref().filter(|mark| [from, to].contains(&mark.cluster_id.as_str())) else {
            return Err(Error::permanent(format!(
                "database {name:?} does not belong to cluster {from}: it stays as it is"
            )));
        };
        let taken = DatabaseMark { cluster_id: to.to_owned(), purpose: mark.purpose.clone() };
        let comment = literal(&taken.comment());
        let (old, new) = (literal(from), literal(to));
        let mut script = Script::new();
        script
            .add(format!("SET LOCAL ROLE {OWNER}"))
            .add(format!("UPDATE tenantry.database SET cluster_id = {new}, fence = 0 WHERE cluster_id = {old}"))
            .add(format!("UPDATE tenantry.tenant SET cluster_id = {new} WHERE cluster_id = {old}"))
            .add(format!("COMMENT ON DATABASE {} IS {comment}", ident(name)));
        let doing = format!("can't take over database {name:?} of cluster {from}");
        self.connect(name).await?.run_unfenced(&doing, &script).await?;
        Ok(DatabaseRecord { name: name.clone(), mark: Some(taken) })
    }
}
