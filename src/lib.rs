//! Tenantry.

pub mod database;
