//! crm
fn main() {}
