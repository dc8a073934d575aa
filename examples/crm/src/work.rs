//! What one request does in its transaction.

use std::marker::PhantomData;

use serde_json::Value;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use crate::error::Error;
use crate::resources::{Parameter, Resource};

/// A piece of work that is done in one transaction, and may have to be done more than once.
pub(crate) trait Work: Sync {
    /// What comes of it.
    type Output: Send;
    /// Whether it changes nothing, so that it may be done again even if nobody knows how it ended.
    const READ_ONLY: bool;

    /// Does it. The caller commits, or rolls back if this is an error.
    fn run(&self, transaction: &Transaction<'_>) -> impl Future<Output = Result<Self::Output, Error>> + Send;
}

/// Creates one and counts it.
pub(crate) struct Create<R>(pub(crate) R);

impl<R: Resource> Work for Create<R> {
    type Output = Value;
    const READ_ONLY: bool = false;

    async fn run(&self, transaction: &Transaction<'_>) -> Result<Value, Error> {
        let row: Value = transaction.query_typed_one(R::INSERT, &self.0.values()).await?.try_get(0)?;
        record_usage(transaction, R::NAME, 1, &row["id"].to_string()).await?;
        Ok(row)
    }
}

/// Deletes the one with this id and counts it out.
pub(crate) struct Delete<R>(pub(crate) i64, pub(crate) PhantomData<R>);

impl<R: Resource> Work for Delete<R> {
    type Output = ();
    const READ_ONLY: bool = false;

    async fn run(&self, transaction: &Transaction<'_>) -> Result<(), Error> {
        if transaction.execute_typed(R::DELETE, &[(&self.0, Type::INT8)]).await? == 0 {
            return Err(not_found::<R>(self.0));
        }
        record_usage(transaction, R::NAME, -1, &self.0.to_string()).await
    }
}

/// Reads the one with this id.
pub(crate) struct Read<R>(pub(crate) i64, pub(crate) PhantomData<R>);

impl<R: Resource> Work for Read<R> {
    type Output = Value;
    const READ_ONLY: bool = true;

    async fn run(&self, transaction: &Transaction<'_>) -> Result<Value, Error> {
        let row = transaction.query_typed_opt(R::READ, &[(&self.0, Type::INT8)]).await?;
        Ok(row.ok_or_else(|| not_found::<R>(self.0))?.try_get(0)?)
    }
}

/// Reads those that follow an id.
pub(crate) struct List<R> {
    pub(crate) after: i64,
    pub(crate) limit: i64,
    pub(crate) of: PhantomData<R>,
}

impl<R: Resource> Work for List<R> {
    type Output = Vec<Value>;
    const READ_ONLY: bool = true;

    async fn run(&self, transaction: &Transaction<'_>) -> Result<Vec<Value>, Error> {
        let page: [Parameter<'_>; 2] = [(&self.after, Type::INT8), (&self.limit, Type::INT8)];
        let rows = transaction.query_typed(R::LIST, &page).await?;
        Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
    }
}

/// Reads how much the tenant uses, and what its plan allows.
pub(crate) struct Usage;

impl Work for Usage {
    type Output = Value;
    const READ_ONLY: bool = true;

    async fn run(&self, transaction: &Transaction<'_>) -> Result<Value, Error> {
        const USAGE: &str =
            "SELECT coalesce(jsonb_agg(to_jsonb(usage) ORDER BY meter), '[]') FROM my_limits() AS usage";
        Ok(transaction.query_typed_one(USAGE, &[]).await?.try_get(0)?)
    }
}

/// Counts `delta` more of what `meter` counts; refused where a hard limit would be passed.
///
/// Called last in a transaction: it locks the tenant's counter, and everybody else who counts waits for the end.
async fn record_usage(transaction: &Transaction<'_>, meter: &str, delta: i64, subject: &str) -> Result<(), Error> {
    let arguments: [Parameter<'_>; 3] = [(&meter, Type::TEXT), (&delta, Type::INT8), (&subject, Type::TEXT)];
    transaction.query_typed("SELECT record_usage($1, $2, $3)", &arguments).await?;
    Ok(())
}

fn not_found<R: Resource>(id: i64) -> Error {
    Error::NotFound(format!("{}/{id}", R::NAME))
}
