//! The command line: parse, run, print the one error, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    promptmix::cli::run()
}
