//! `POST /v1/events` as its callers see it: over real connections, with tokens of a real API
//! server, into a real ledger.

mod counting;
mod document;
mod ground;
mod modes;
mod outages;
mod pressure;
mod rights;
