//! The `coucou` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    coucou::cli::run()
}
