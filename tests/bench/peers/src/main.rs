//! What the benchmark holds Counterfoil against: one small actix-web server for each peer, each of good practice.

mod actix_session_peer;
mod constant;
mod insert_set;
mod redis_get;

use std::error::Error;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};

use actix_web::{App, HttpServer, web};
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// A peer of the benchmark.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Port on loopback; 0 takes any free one.
    #[arg(long, global = true, default_value_t = 0)]
    port: u16,
    /// Threads that answer requests.
    #[arg(long, global = true, default_value_t = 2)]
    workers: usize,
    #[command(subcommand)]
    peer: Peer,
}

#[derive(Debug, Subcommand)]
enum Peer {
    /// actix-session with its Redis store: nothing audited.
    ActixSession {
        /// `redis://…`
        #[arg(long)]
        redis: String,
    },
    /// One `INSERT` into PostgreSQL and one `SET` in Redis for each request.
    InsertSet {
        /// `redis://…`
        #[arg(long)]
        redis: String,
        /// `postgres://…`
        #[arg(long)]
        postgres: String,
        /// Connections to PostgreSQL.
        #[arg(long, default_value_t = 32)]
        connections: u32,
    },
    /// A bare `GET` from Redis.
    RedisGet {
        /// `redis://…`
        #[arg(long)]
        redis: String,
        /// Keys `0` up to this are filled at start, each with JSON of about 600 bytes.
        #[arg(long, default_value_t = 10_000)]
        keys: u32,
    },
    /// The same JSON of about 600 bytes, always.
    Constant,
}

#[actix_web::main]
async fn main() -> Result<(), Failure> {
    let Arguments { port, workers, peer } = Arguments::parse();
    match peer {
        Peer::ActixSession { redis } => {
            let peer = actix_session_peer::Peer::connect(&redis).await?;
            serve_app(port, move |listener| {
                let server = HttpServer::new(move || {
                    App::new().wrap(peer.middleware()).configure(actix_session_peer::configure)
                });
                Ok(server.workers(workers).listen(listener)?.run())
            })
            .await
        }
        Peer::InsertSet { redis, postgres, connections } => {
            let peer = web::Data::new(insert_set::Peer::connect(&redis, &postgres, connections).await?);
            serve(port, workers, move |config| {
                config.app_data(peer.clone()).configure(insert_set::configure);
            })
            .await
        }
        Peer::RedisGet { redis, keys } => {
            let peer = web::Data::new(redis_get::Peer::connect(&redis, keys).await?);
            serve(port, workers, move |config| {
                config.app_data(peer.clone()).configure(redis_get::configure);
            })
            .await
        }
        Peer::Constant => serve(port, workers, constant::configure).await,
    }
}

async fn serve(
    port: u16,
    workers: usize,
    configure: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
) -> Result<(), Failure> {
    serve_app(port, move |listener| {
        let server = HttpServer::new(move || {
            let configure = configure.clone();
            App::new().configure(move |config| configure(config))
        });
        Ok(server.workers(workers).listen(listener)?.run())
    })
    .await
}

/// Binds, says where on standard output, and serves until told to stop.
async fn serve_app(
    port: u16,
    start: impl FnOnce(TcpListener) -> io::Result<actix_web::dev::Server>,
) -> Result<(), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let address = listener.local_addr()?;
    let server = start(listener)?;
    let mut out = io::stdout().lock();
    writeln!(out, "listening on http://{address}")?;
    out.flush()?;
    drop(out);
    server.await?;
    Ok(())
}
