//! A bare `GET` from Redis: the least that looking a session up in Redis can cost.

use actix_web::error::ErrorInternalServerError;
use actix_web::http::header::ContentType;
use actix_web::{HttpResponse, web};
use redis::AsyncCommands;
use redis::aio::ConnectionManager;

use crate::{Failure, constant};

pub(crate) struct Peer {
    /// One multiplexed connection: requests under way at the same time share its round trips.
    redis: ConnectionManager,
}

impl Peer {
    pub(crate) async fn connect(redis: &str, keys: u32) -> Result<Self, Failure> {
        let mut redis = ConnectionManager::new(redis::Client::open(redis)?).await?;
        for first in (0..keys).step_by(1_000) {
            let mut batch = redis::pipe();
            for key in first..keys.min(first + 1_000) {
                batch.set(format!("peer-c:{key}"), constant::BODY).ignore();
            }
            let () = batch.query_async(&mut redis).await?;
        }
        Ok(Self { redis })
    }
}

pub(crate) fn configure(config: &mut web::ServiceConfig) {
    config.route("/get/{key}", web::get().to(get));
}

async fn get(peer: web::Data<Peer>, key: web::Path<String>) -> Result<HttpResponse, actix_web::Error> {
    let mut redis = peer.redis.clone();
    let found: Option<Vec<u8>> =
        redis.get(format!("peer-c:{}", key.into_inner())).await.map_err(ErrorInternalServerError)?;
    Ok(match found {
        Some(body) => HttpResponse::Ok().content_type(ContentType::json()).body(body),
        None => HttpResponse::NotFound().finish(),
    })
}
