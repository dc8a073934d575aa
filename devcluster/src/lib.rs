//! A real Kubernetes control plane and a real PostgreSQL for tests, demos and benchmarks,
//! on free loopback ports, in a folder of their own, gone when their owner is gone.

mod audit;
mod cluster;
pub mod demo;
mod disk;
mod error;
mod install;
mod kubeconfig;
pub mod pki;
mod plane;
mod ports;
mod postgres;
mod process;
mod progress;
mod shm;
mod supervise;
mod text;
mod workdir;

pub use audit::{AuditCounts, AuditEvent, AuditLog, AuditMark};
pub use cluster::{Devcluster, Options, down};
pub use error::Error;
pub use install::{Programs, install};
pub use postgres::{Admin, Postgres, PostgresOptions};
pub use process::Process;
pub use progress::Progress;
pub use supervise::Signals;
