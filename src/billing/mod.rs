//! Money and time of a subscription, pure: no clock, no I/O.

mod period;

pub use period::{Period, Periods, UnknownZone};
