//! `counterfoil witness`: a C2SP tlog-witness over HTTP, to be run by somebody else than the log's operator.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{App, HttpResponse, HttpServer, web};
use clap::Args;
use merkle_log::WitnessRefusal;
use sealing::{CosignerKey, VerifierKey};
use session_service::Clock;
use tracing::{error, info, warn};
use witness::{AddError, Witness};

use crate::serve::{MachineClock, told_to_stop};

/// How a witness is run. TLS is for a proxy in front of it: a submission needs no secret, and an answer is signed.
#[derive(Debug, Args)]
pub(crate) struct WitnessArgs {
    /// Address and port; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:8090")]
    listen: String,
    /// Folder of the key and of what was seen: back it up, a witness that forgets can be led back
    #[arg(long)]
    dir: PathBuf,
    /// The witness's name: a URL without its scheme, for instance witness.example/w1
    #[arg(long)]
    name: String,
    /// File with the verifier keys of the logs it witnesses, one C2SP vkey line each
    #[arg(long)]
    log_key_file: PathBuf,
}

/// Bytes of a request at most: 63 hashes and a checkpoint with many signatures fit.
const MAX_BODY: usize = 64 << 10;

type Failure = Box<dyn Error + Send + Sync>;

/// Runs until it is told to stop.
///
/// # Errors
/// Why it cannot start.
pub(crate) async fn run_witness(args: WitnessArgs) -> Result<(), Failure> {
    telemetry::init_logs("info", telemetry::LogFormat::Text, std::env::var_os("NO_COLOR").is_some())?;
    // A note's key name has neither spaces nor plus signs (C2SP signed-note).
    if args.name.is_empty() || args.name.chars().any(|c| c.is_whitespace() || c == '+') {
        return Err("--name: must have neither spaces nor plus signs".into());
    }
    let named = |failure: io::Error, path: &Path| format!("{}: {failure}", path.display());
    std::fs::create_dir_all(&args.dir).map_err(|failure| named(failure, &args.dir))?;
    let key = key(&args)?;
    let lines = std::fs::read_to_string(&args.log_key_file).map_err(|failure| named(failure, &args.log_key_file))?;
    let logs = lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let logs = logs.map(VerifierKey::parse).collect::<Result<Vec<_>, _>>()?;
    if logs.is_empty() {
        return Err(format!("{}: holds no verifier key", args.log_key_file.display()).into());
    }
    let witness = Arc::new(Witness::open(key, logs, &args.dir)?);
    let listener = TcpListener::bind(&args.listen).map_err(|failure| format!("{}: {failure}", args.listen))?;
    let address = listener.local_addr()?;
    let vkey = witness.vkey();
    let shared = web::Data::from(witness);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .app_data(web::PayloadConfig::new(MAX_BODY))
            .route("/add-checkpoint", web::post().to(add_checkpoint))
            .route("/livez", web::get().to(|| async { "ok\n" }))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?
    .run();
    let stop = told_to_stop()?;
    let mut out = io::stdout().lock();
    writeln!(out, "listening on http://{address}")?;
    writeln!(out, "verifier key: {vkey}")?;
    out.flush()?;
    drop(out);
    let handle = server.handle();
    let server = tokio::spawn(server);
    stop.await;
    handle.stop(true).await;
    server.await??;
    info!("stopped");
    Ok(())
}

/// The witness's key; made at the first start.
fn key(args: &WitnessArgs) -> Result<CosignerKey, Failure> {
    let path = args.dir.join("witness.pem");
    let named = |failure: io::Error| format!("{}: {failure}", path.display());
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let key = CosignerKey::generate(&args.name)?;
            file.write_all(&key.to_pem()?).and_then(|()| file.sync_all()).map_err(named)?;
            Ok(key)
        }
        Err(failure) if failure.kind() == io::ErrorKind::AlreadyExists => {
            let mode = std::fs::metadata(&path).map_err(named)?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(format!("{} can be read by others: chmod 600 it", path.display()).into());
            }
            Ok(CosignerKey::from_pem(&args.name, &std::fs::read(&path).map_err(named)?)?)
        }
        Err(failure) => Err(named(failure).into()),
    }
}

async fn add_checkpoint(witness: web::Data<Witness>, body: web::Bytes) -> HttpResponse {
    let Ok(body) = String::from_utf8(body.to_vec()) else { return said(StatusCode::BAD_REQUEST, "not UTF-8") };
    let now = MachineClock::new().wall();
    match web::block(move || witness.add_checkpoint(&body, now)).await {
        Ok(Ok(line)) => HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(line),
        Ok(Err(failure)) => refused(&failure),
        Err(failure) => {
            error!(%failure, "a request was not worked on to its end");
            said(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }
}

fn said(status: StatusCode, text: &str) -> HttpResponse {
    HttpResponse::build(status).content_type("text/plain; charset=utf-8").body(format!("{text}\n"))
}

/// The statuses that C2SP tlog-witness gives each refusal.
fn refused(failure: &AddError) -> HttpResponse {
    match failure {
        AddError::Malformed | AddError::Refused(WitnessRefusal::OldBeyondNew) => {
            said(StatusCode::BAD_REQUEST, &failure.to_string())
        }
        AddError::UnknownLog => said(StatusCode::NOT_FOUND, &failure.to_string()),
        AddError::NotSigned => said(StatusCode::FORBIDDEN, &failure.to_string()),
        AddError::Refused(WitnessRefusal::NotLatest(size)) => {
            HttpResponse::Conflict().content_type("text/x.tlog.size").body(format!("{size}\n"))
        }
        AddError::Refused(WitnessRefusal::OtherRoot) => {
            warn!("a log has signed two roots for one size");
            said(StatusCode::CONFLICT, &failure.to_string())
        }
        AddError::Refused(WitnessRefusal::ProofDoesNotHold) => {
            warn!("a log offered a checkpoint that does not extend what was seen");
            said(StatusCode::UNPROCESSABLE_ENTITY, &failure.to_string())
        }
        AddError::Store(failure) => {
            error!(failure = failure as &dyn Error, "nothing is cosigned");
            said(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
        AddError::Sign(failure) => {
            error!(failure = failure as &dyn Error, "nothing is cosigned");
            said(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }
}
