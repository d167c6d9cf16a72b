//! `counterfoil`: the audited session service. The only code that names concrete backends.

mod anchors;
mod archives;
mod at_hand;
mod audit_commands;
mod auditing;
mod backends;
mod bootstrap;
mod cli;
mod cluster;
mod config;
mod evidence_commands;
mod key_commands;
mod key_encryption;
mod key_files;
mod key_reload;
mod log_key_reload;
mod log_keys;
mod management;
mod output;
mod pruning;
mod serve;
mod shard;
mod sign_in;
mod sinks;
mod soap;
mod state_keys;
mod tls;
mod transient;
mod verification;
mod witness;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(failure) => {
            // Logs may not be set up yet: the last word goes to stderr as it is.
            let _nowhere_to_say_it = writeln!(std::io::stderr(), "counterfoil: {}", causes(&*failure));
            ExitCode::FAILURE
        }
    }
}

/// An error and everything that caused it, on one line.
fn causes(failure: &dyn Error) -> String {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}
