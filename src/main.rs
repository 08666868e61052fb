//! The `tributary` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tributary::cli::main()
}
