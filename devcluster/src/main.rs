//! devcluster
fn main() {}
