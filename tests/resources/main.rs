//! What the API server, with our definitions and chart, makes of what users write.

mod admission;
mod alerts;
mod bad_input;
mod chart;
mod container;
mod definitions;
mod examples;
mod generated;
mod gitops;
mod ground;
mod in_use;
mod installing;
mod rights;
