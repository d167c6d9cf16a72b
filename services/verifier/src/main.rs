//! `counterfoil-verify`: verifies a receipt without anything of the server.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use counterfoil_verify::{VerifyArgs, VerifyError, verify};

/// Verifies a receipt. Exit status: 0 it holds, 3 it does not, 1 the question could not be put, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "counterfoil-verify", version)]
struct Cli {
    #[command(flatten)]
    args: VerifyArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match verify(&cli.args) {
        Ok(proved) => match writeln!(std::io::stdout(), "{proved}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(failure) => {
            let mut causes = failure.to_string();
            let mut cause = failure.source();
            while let Some(inner) = cause {
                causes.push_str(": ");
                causes.push_str(&inner.to_string());
                cause = inner.source();
            }
            let _nowhere_to_say_it = writeln!(std::io::stderr(), "counterfoil-verify: {causes}");
            match failure {
                VerifyError::DoesNotHold(_) => ExitCode::from(3),
                VerifyError::Read { .. } | VerifyError::Key => ExitCode::FAILURE,
            }
        }
    }
}
