//! One `INSERT` and one `SET` for each request: the simplest thing that keeps a durable record of every change.

use actix_web::error::ErrorInternalServerError;
use actix_web::{HttpResponse, web};
use redis::AsyncCommands;
use redis::aio::ConnectionManager;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use crate::Failure;

/// Seconds a session stays in Redis: Counterfoil's default for one not used.
const LIFE_S: u64 = 1_800;

pub(crate) struct Peer {
    redis: ConnectionManager,
    pool: PgPool,
}

impl Peer {
    pub(crate) async fn connect(redis: &str, postgres: &str, connections: u32) -> Result<Self, Failure> {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .min_connections(connections)
            // A ping before every statement would be a second round trip.
            .test_before_acquire(false)
            .connect(postgres)
            .await?;
        sqlx::query(
            "CREATE TABLE IF NOT EXISTS session_changes (
                index bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                at timestamptz NOT NULL DEFAULT now(),
                session_id bytea NOT NULL,
                action text NOT NULL,
                body bytea NOT NULL)",
        )
        .execute(&pool)
        .await?;
        let redis = ConnectionManager::new(redis::Client::open(redis)?).await?;
        Ok(Self { redis, pool })
    }

    /// The record first, then the session: what is acknowledged is on disk.
    async fn change(&self, id: Uuid, action: &str, session: &Stored) -> Result<(), actix_web::Error> {
        let body = serde_json::to_vec(session)?;
        sqlx::query("INSERT INTO session_changes (session_id, action, body) VALUES ($1, $2, $3)")
            .bind(id.as_bytes().as_slice())
            .bind(action)
            .bind(body.as_slice())
            .execute(&self.pool)
            .await
            .map_err(ErrorInternalServerError)?;
        let mut redis = self.redis.clone();
        let () =
            redis.set_ex(format!("peer-b:{}", id.as_simple()), body, LIFE_S).await.map_err(ErrorInternalServerError)?;
        Ok(())
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Attributes {
    cart: Vec<String>,
    theme: String,
}

#[derive(Debug, Serialize)]
struct Stored {
    id: Uuid,
    attributes: Attributes,
}

pub(crate) fn configure(config: &mut web::ServiceConfig) {
    config.route("/create", web::post().to(create)).route("/update/{id}", web::patch().to(update));
}

#[expect(clippy::disallowed_methods, reason = "a peer as one would write it, not a part of the service")]
async fn create(peer: web::Data<Peer>, attributes: web::Json<Attributes>) -> Result<HttpResponse, actix_web::Error> {
    let session = Stored { id: Uuid::now_v7(), attributes: attributes.0 };
    peer.change(session.id, "created", &session).await?;
    Ok(HttpResponse::Created().json(session))
}

async fn update(
    peer: web::Data<Peer>,
    id: web::Path<Uuid>,
    attributes: web::Json<Attributes>,
) -> Result<HttpResponse, actix_web::Error> {
    let session = Stored { id: id.into_inner(), attributes: attributes.0 };
    peer.change(session.id, "updated", &session).await?;
    Ok(HttpResponse::Ok().json(session))
}
