//! Faults in front of the real API server and the real PostgreSQL, and an operator that is killed
//! between its writes: in the end all is as if nothing had happened. They need the machine for
//! themselves, and so are a program of their own, which runs after the others.

mod faults;
#[allow(dead_code)]
#[path = "../operator/gate.rs"]
mod gate;
mod gated;
#[allow(dead_code)]
#[path = "../operator/ground.rs"]
mod ground;
mod killed;
#[allow(dead_code)]
#[path = "../operator/proxy.rs"]
mod proxy;
mod snapshot;
mod sql_proxy;
mod unheard;
#[allow(dead_code)]
#[path = "../operator/verbs.rs"]
mod verbs;
