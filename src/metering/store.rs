//! What the API needs of the ledger; apart, so that tests can put faults between.

use super::{
    event::OutboxReport,
    ledger::{Directory, Ledger, LedgerError, LedgerEvent, LedgerMark, MeterState, MeteredTenant, Outcome},
};

/// Where events go, and what they are judged by: the [`Ledger`].
pub trait Store: Clone + Send + Sync + 'static {
    /// As [`Ledger::ingest`].
    fn ingest(&self, events: &[LedgerEvent]) -> impl Future<Output = Result<Vec<Outcome>, LedgerError>> + Send;

    /// As [`Ledger::mark`].
    fn mark(&self, marks: &[LedgerMark]) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// As [`Ledger::report`].
    fn report(
        &self,
        server: &str,
        database: &str,
        report: &OutboxReport,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// As [`Ledger::directory`].
    fn directory(&self, tenants: &[String]) -> impl Future<Output = Result<Directory, LedgerError>> + Send;

    /// As [`Ledger::tenant_named`].
    fn tenant_named(&self, name: &str) -> impl Future<Output = Result<Option<MeteredTenant>, LedgerError>> + Send;

    /// As [`Ledger::usage`].
    fn usage(&self, tenants: &[String]) -> impl Future<Output = Result<Vec<MeterState>, LedgerError>> + Send;

    /// As [`Ledger::tenant_of_namespace`].
    fn tenant_of_namespace(&self, namespace: &str) -> impl Future<Output = Result<Option<String>, LedgerError>> + Send;
}

impl Store for Ledger {
    async fn ingest(&self, events: &[LedgerEvent]) -> Result<Vec<Outcome>, LedgerError> {
        self.ingest(events).await
    }

    async fn mark(&self, marks: &[LedgerMark]) -> Result<(), LedgerError> {
        self.mark(marks).await
    }

    async fn report(&self, server: &str, database: &str, report: &OutboxReport) -> Result<(), LedgerError> {
        self.report(server, database, report).await
    }

    async fn directory(&self, tenants: &[String]) -> Result<Directory, LedgerError> {
        self.directory(tenants).await
    }

    async fn tenant_named(&self, name: &str) -> Result<Option<MeteredTenant>, LedgerError> {
        self.tenant_named(name).await
    }

    async fn usage(&self, tenants: &[String]) -> Result<Vec<MeterState>, LedgerError> {
        self.usage(tenants).await
    }

    async fn tenant_of_namespace(&self, namespace: &str) -> Result<Option<String>, LedgerError> {
        self.tenant_of_namespace(namespace).await
    }
}
