//! The admission policies, on the real API server with its real controllers: what is in the
//! operator's namespaces is changed by the operator alone, and everything that Kubernetes does
//! there by itself goes on.

mod controllers;
mod place;
mod refused;
mod restart;
