//! PostgreSQL and Redis in containers, for one run of `./test`: prints `TEST_DATABASE_URL=…` and `TEST_REDIS_URL=…` once they take
//! connections, then `ready`, and removes them when its standard input ends, be it because whoever started it is gone. One that the engine
//! created and could not start is removed too.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;

use clap::Parser;
use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::redis::Redis;
use testcontainers_modules::testcontainers::bollard::errors::Error as EngineError;
use testcontainers_modules::testcontainers::bollard::models::{HostConfig, PortBinding};
use testcontainers_modules::testcontainers::bollard::query_parameters::RemoveContainerOptionsBuilder;
use testcontainers_modules::testcontainers::core::client::docker_client_instance;
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{ContainerAsync, ContainerRequest, Image, ImageExt};
use tokio::io::{AsyncReadExt, stdin};

type Failure = Box<dyn Error>;

/// Tests open some two hundred connections at once.
const POSTGRES_ARGUMENTS: [&str; 2] = ["-c", "max_connections=300"];

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// Tag of a `postgres` image that is here; without it no PostgreSQL is started.
    #[arg(long, value_name = "TAG")]
    postgres: Option<String>,
    /// Tag of a `redis` image that is here; without it no Redis is started.
    #[arg(long, value_name = "TAG")]
    redis: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let mut postgres = None;
    if let Some(tag) = arguments.postgres {
        let image = Postgres::default().with_tag(tag).with_cmd(POSTGRES_ARGUMENTS);
        let (container, port) = start(image, 5432).await?;
        say(&format!("TEST_DATABASE_URL=postgres://postgres:postgres@127.0.0.1:{port}/postgres"))?;
        postgres = Some(container);
    }
    let mut redis = None;
    if let Some(tag) = arguments.redis {
        let (container, port) = start(Redis::default().with_tag(tag), 6379).await?;
        say(&format!("TEST_REDIS_URL=redis://127.0.0.1:{port}"))?;
        redis = Some(container);
    }
    say("ready")?;
    stdin().read_to_end(&mut Vec::new()).await?;
    if let Some(container) = postgres {
        container.rm().await?;
    }
    if let Some(container) = redis {
        container.rm().await?;
    }
    Ok(())
}

/// Starts a container whose port is a free one of loopback: not, as an engine would have it, of every address of the machine.
async fn start<I: Image>(
    image: impl Into<ContainerRequest<I>> + ImageExt<I>,
    port: u16,
) -> Result<(ContainerAsync<I>, u16), Failure> {
    let on_loopback = move |config: &mut HostConfig| {
        let free = PortBinding { host_ip: Some("127.0.0.1".into()), host_port: None };
        config.publish_all_ports = Some(false);
        config.port_bindings = Some(HashMap::from([(format!("{port}/tcp"), Some(vec![free]))]));
    };
    // Known by name, because testcontainers tells nobody the id of a container that did not start.
    let name = format!("counterfoil-test-{}-{port}", std::process::id());
    let request = image.with_container_name(&name).with_host_config_modifier(on_loopback);
    match request.start().await {
        Ok(container) => {
            let host_port = container.get_host_port_ipv4(port).await?;
            Ok((container, host_port))
        }
        Err(failure) => {
            remove(&name).await;
            Err(failure.into())
        }
    }
}

/// Removes a container, if it is there, with its volumes.
async fn remove(name: &str) {
    let Ok(engine) = docker_client_instance().await else { return };
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match engine.remove_container(name, Some(options)).await {
        Ok(()) | Err(EngineError::DockerResponseServerError { status_code: 404, .. }) => {}
        Err(failure) => eprintln!("the container {name} was not removed: {failure}"),
    }
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()
}
