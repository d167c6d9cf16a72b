//! actix-session in its Redis store: what an application has that audits nothing.

use actix_session::storage::RedisSessionStore;
use actix_session::{Session, SessionGetError, SessionInsertError, SessionMiddleware};
use actix_web::cookie::Key;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};

use crate::Failure;

/// The session's content: the same attributes that Counterfoil's load has.
#[derive(Debug, Serialize, Deserialize)]
struct Attributes {
    cart: Vec<String>,
    theme: String,
}

#[derive(Clone)]
pub(crate) struct Peer {
    store: RedisSessionStore,
    key: Key,
}

impl Peer {
    pub(crate) async fn connect(redis: &str) -> Result<Self, Failure> {
        let store = RedisSessionStore::new(redis).await?;
        Ok(Self { store, key: Key::generate() })
    }

    /// As its documentation builds it, but that the cookie may go over plain HTTP on loopback.
    pub(crate) fn middleware(&self) -> SessionMiddleware<RedisSessionStore> {
        SessionMiddleware::builder(self.store.clone(), self.key.clone()).cookie_secure(false).build()
    }
}

pub(crate) fn configure(config: &mut web::ServiceConfig) {
    config
        .route("/create", web::post().to(create))
        .route("/read", web::get().to(read))
        .route("/update", web::patch().to(update));
}

async fn create(session: Session, attributes: web::Json<Attributes>) -> Result<HttpResponse, SessionInsertError> {
    session.insert("attributes", &attributes.0)?;
    Ok(HttpResponse::Created().json(attributes.0))
}

async fn read(session: Session) -> Result<HttpResponse, SessionGetError> {
    let found: Option<Attributes> = session.get("attributes")?;
    Ok(found.map_or_else(|| HttpResponse::NotFound().finish(), |attributes| HttpResponse::Ok().json(attributes)))
}

#[derive(Debug, Deserialize)]
struct Change {
    theme: String,
}

async fn update(session: Session, change: web::Json<Change>) -> Result<HttpResponse, actix_web::Error> {
    let found: Result<Option<Attributes>, SessionGetError> = session.get("attributes");
    let Some(mut attributes) = found? else { return Ok(HttpResponse::NotFound().finish()) };
    attributes.theme = change.into_inner().theme;
    session.insert("attributes", &attributes)?;
    Ok(HttpResponse::Ok().json(attributes))
}
