//! A real Kubernetes control plane and a real PostgreSQL for tests, demos and benchmarks,
//! on free loopback ports, in a folder of their own, gone when their owner is gone.

mod error;
pub mod pki;
mod ports;
mod postgres;
mod process;
mod shm;
mod text;
mod workdir;

pub use error::Error;
pub use postgres::{Admin, Postgres, PostgresOptions};
pub use process::Process;
