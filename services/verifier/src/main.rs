//! `counterfoil-verify`: verifies receipts and evidence bundles without anything of the server.

use std::process::ExitCode;

use clap::Parser;
use counterfoil_verify::{VerifyArgs, run};

/// Verifies a receipt, or an evidence bundle.
///
/// Exit status for a bundle: 0 proved, 1 not proved, 2 the question could not be put. For a receipt: 0 it holds, 3 it does not, 1 the
/// question could not be put, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "counterfoil-verify", version)]
struct Cli {
    #[command(flatten)]
    args: VerifyArgs,
}

fn main() -> ExitCode {
    run("counterfoil-verify", &Cli::parse().args)
}
