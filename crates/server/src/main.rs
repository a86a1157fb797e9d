//! The one binary: `keyward`, also under the names `vault` and `bao`.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::main(std::env::args_os())
}
