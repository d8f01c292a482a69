//! run-with
fn main() {}
