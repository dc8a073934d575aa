//! One request, one transaction, tried again where that is safe.

use std::time::Duration;

use crate::error::{Error, ended_the_session};
use crate::host::TenantHost;
use crate::pool::jittered;
use crate::tenants::Tenants;
use crate::work::Work;

/// How often a transaction is tried.
const ATTEMPTS: u32 = 5;

impl Tenants {
    /// Runs `work` in one transaction of the tenant's, and again after a deadlock, a serialization failure or a connection
    /// that ended before the commit. No change is tried again once its commit has been sent.
    pub(crate) async fn transaction<W: Work>(&self, host: &TenantHost, work: &W) -> Result<W::Output, Error> {
        let mut attempt = 1;
        loop {
            match self.attempt(host, work).await {
                Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                    tracing::debug!(attempt, %error, "trying the transaction again");
                    // Those that stood in each other's way must not meet again: 5 to 10 ms, then twice that, and so on.
                    tokio::time::sleep(jittered(Duration::from_millis(10 << (attempt - 1)))).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    async fn attempt<W: Work>(&self, host: &TenantHost, work: &W) -> Result<W::Output, Error> {
        let mut connection = self.connection(host).await?;
        // Dropped on the way, for an error or because the client hung up, the connection is closed, which rolls back.
        let transaction = connection.client().build_transaction().read_only(W::READ_ONLY).start().await?;
        let outcome = match work.run(&transaction).await {
            Ok(value) => match transaction.commit().await {
                Ok(()) => Ok(value),
                // Nothing to lose.
                Err(error) if W::READ_ONLY => return Err(Error::Database(error)),
                // An answer in a session that lives on: rolled back for sure. Otherwise nobody knows.
                Err(error) if error.code().is_some_and(|code| !ended_the_session(code)) => Err(Error::Database(error)),
                Err(error) => return Err(Error::OutcomeUnknown(error)),
            },
            Err(error) => {
                transaction.rollback().await?;
                Err(error)
            }
        };
        connection.give_back();
        outcome
    }
}
