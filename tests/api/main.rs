//! `POST /v1/events` and `GET /v1/tenants/NAME/usage` as their callers see them: over real
//! connections, with tokens and rights of a real API server, into and out of a real ledger.

mod counting;
mod document;
mod ground;
mod migrating;
mod modes;
mod outages;
mod pressure;
mod reading;
mod rights;
mod tls;
