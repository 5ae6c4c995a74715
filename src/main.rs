//! The `coucou` command.

fn main() {}
