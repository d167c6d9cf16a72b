//! Measures a transport of the cluster. `run` starts three nodes, each a process, in network namespaces of their own where it may, and
//! asks them over their standard input; `node` is one of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement that cannot go on should stop; its output is its purpose, and the time of the machine is what it measures"
)]

mod network;
mod node;
mod run;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures.
    Run(run::Run),
    /// A node: started by `run`.
    Node(node::Node),
}

/// What is measured. Another transport needs a name here, and an arm in `node::transport`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Connections from node to node, with mutual TLS.
    Unicast,
    /// The same without TLS.
    UnicastPlain,
}

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match Arguments::parse().command {
        Command::Run(run) => run.go().await,
        Command::Node(node) => node.go().await,
    }
}
