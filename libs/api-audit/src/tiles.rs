//! The tree and the entries as C2SP tlog-tiles: with `/v1/audit` as the prefix, `checkpoint`, `tile/<L>/<N>[.p/<W>]` and
//! `tile/entries/<N>[.p/<W>]` are what that specification names, byte for byte.
//!
//! Hash tiles are given to every auditor: a hash tells nothing about a leaf. Entry bundles are leaves, and a log holds those of
//! several realms, which are sealed off from one another (guarantee 13). So a bundle is given only if every leaf in it is of the
//! auditor's realm, or says no more than that the service started or stopped; any other is refused with 403. Such an auditor
//! reads the leaves of the realm one by one, or as an evidence bundle, and proves them against the same hash tiles.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Problem, ProblemCode, ProblemDocument, answer, query};
use audit_log::{LogReader, encode_leaves};
use session_model::{Leaf, LeafIndex, RealmName, TreeSize};

use crate::AuditApi;
use crate::entries::read_problem;
use crate::routes::{admit, fact, nothing_there, only_get};

/// Hashes or entries of a full tile: tiles have height 8.
const WIDTH: u64 = 256;

/// Adds the routes of the tiles.
pub(crate) fn configure_tiles(config: &mut web::ServiceConfig) {
    let only_get = || web::route().to(only_get);
    config
        .service(
            web::resource("/v1/audit/tile/entries/{tile:.*}")
                .route(web::get().to(get_bundle))
                .default_service(only_get()),
        )
        .service(
            web::resource("/v1/audit/tile/{level}/{tile:.*}")
                .route(web::get().to(get_tile))
                .default_service(only_get()),
        );
}

/// Which tile of a level, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    index: u64,
    /// 1 to 255 for a partial tile, 256 for a full one.
    width: u64,
}

impl Tile {
    /// Reads `<N>[.p/<W>]`: N in groups of three digits, all but the last behind an `x`; W from 1 to 255. There is one way to
    /// write each.
    fn parse(text: &str) -> Option<Self> {
        let (number, width) = match text.split_once(".p/") {
            Some((number, width)) => {
                let parsed = width.parse::<u64>().ok().filter(|parsed| (1..WIDTH).contains(parsed))?;
                (number, Some(parsed).filter(|parsed| parsed.to_string() == width)?)
            }
            None => (text, WIDTH),
        };
        let mut index: u64 = 0;
        let groups: Vec<&str> = number.split('/').collect();
        let (last, before) = groups.split_last()?;
        for (at, group) in before.iter().map(|group| group.strip_prefix('x')).chain([Some(*last)]).enumerate() {
            let digits = group.filter(|group| group.len() == 3 && group.bytes().all(|byte| byte.is_ascii_digit()))?;
            // A leading group of zeros would be a second spelling.
            if at == 0 && !before.is_empty() && digits == "000" {
                return None;
            }
            index = index.checked_mul(1_000)?.checked_add(digits.parse().ok()?)?;
        }
        Some(Self { index, width })
    }

    /// First hash or entry of the tile, if all that it asks for is there when its level has `count`.
    fn start(self, count: u64) -> Option<u64> {
        let start = self.index.checked_mul(WIDTH)?;
        (start.checked_add(self.width)? <= count).then_some(start)
    }

    /// How long it may be kept: a full tile never changes. A partial one does not either, but nobody needs it for long.
    const fn caching(self) -> &'static str {
        if self.width == WIDTH { "private, max-age=31536000, immutable" } else { "private, max-age=86400" }
    }

    fn answer(self, bytes: Vec<u8>) -> HttpResponse {
        HttpResponse::Ok()
            .content_type("application/octet-stream")
            .insert_header((header::CACHE_CONTROL, self.caching()))
            .body(bytes)
    }
}

/// How many hashes a level of tiles has in a tree of this size; `None` above the highest that a 64-bit size can have.
fn hashes_at(level: u8, size: TreeSize) -> Option<u64> {
    size.0.checked_shr(u32::from(level).checked_mul(8)?)
}

fn outside() -> Problem {
    nothing_there("the log has no such tile")
}

async fn size(log: &dyn LogReader) -> Result<TreeSize, Problem> {
    Ok(log.head().await.map_err(read_problem)?.size())
}

/// A tile of hashes, C2SP tlog-tiles.
///
/// 32 bytes a hash: leaf hashes at level 0, roots of full tiles of the level below above it.
#[utoipa::path(
    get,
    path = "/v1/audit/tile/{level}/{tile}",
    tag = "Audit",
    operation_id = "getTile",
    security(("api_key" = [])),
    params(
        ("level" = String, Path, description = "0 to 63, without leading zeros"),
        ("tile" = String, Path, description = "Number of the tile in groups of three digits, all but the last behind an x; .p/ and a width from 1 to 255 for a partial tile"),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The hashes, one after another"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn get_tile(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let [] = query(&request, [])?;
        let [level, tile] = ["level", "tile"].map(|name| request.match_info().get(name).unwrap_or_default());
        let level: Option<u8> = level.parse().ok().filter(|number: &u8| *number < 64 && number.to_string() == level);
        let tile = level.zip(Tile::parse(tile));
        let what = tile.map_or_else(|| "malformed".to_owned(), |(level, tile)| format!("{level}/{}", tile.index));
        let caller = admit(&api, &request, fact("tile", what)).await?;
        let log = &*api.of(&caller.realm).log;
        let (level, tile) = tile.ok_or_else(outside)?;
        let count = hashes_at(level, size(log).await?).ok_or_else(outside)?;
        let start = tile.start(count).ok_or_else(outside)?;
        let hashes = log.hashes(level * 8, start, tile.width).await.map_err(read_problem)?;
        Ok(tile.answer(hashes.iter().flat_map(|hash| hash.0).collect()))
    };
    answer(&request, outcome.await)
}

/// An entry bundle, C2SP tlog-tiles.
///
/// Each leaf behind its length in 16 bits, big-endian. Refused with 403 if one of them is of another realm.
#[utoipa::path(
    get,
    path = "/v1/audit/tile/entries/{tile}",
    tag = "Audit",
    operation_id = "getEntryBundle",
    security(("api_key" = [])),
    params(
        ("tile" = String, Path, description = "Number of the bundle in groups of three digits, all but the last behind an x; .p/ and a width from 1 to 255 for a partial bundle"),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream", description = "The leaves, one after another"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn get_bundle(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let [] = query(&request, [])?;
        let tile = Tile::parse(request.match_info().get("tile").unwrap_or_default());
        let what = tile.map_or_else(|| "malformed".to_owned(), |tile| format!("entries/{}", tile.index));
        let caller = admit(&api, &request, fact("tile", what)).await?;
        let log = &*api.of(&caller.realm).log;
        let tile = tile.ok_or_else(outside)?;
        let start = tile.start(size(log).await?.0).ok_or_else(outside)?;
        let leaves = leaves(log, start, tile.width).await?;
        if leaves.iter().any(|leaf| !may_see(leaf, &caller.realm)) {
            return Err(Problem::new(
                ProblemCode::NotAllowed,
                "the bundle holds entries of other realms: read those of your own by /v1/audit/entries or as an evidence bundle",
            ));
        }
        Ok(tile.answer(encode_leaves(leaves.iter().map(Vec::as_slice))))
    };
    answer(&request, outcome.await)
}

async fn leaves(log: &dyn LogReader, start: u64, count: u64) -> Result<Vec<Vec<u8>>, Problem> {
    let indices: Vec<LeafIndex> = (start..start + count).map(LeafIndex).collect();
    let stored = log.entries(&indices).await.map_err(read_problem)?;
    let leaves: Vec<Vec<u8>> = stored.into_iter().flatten().map(|entry| entry.leaf).collect();
    if leaves.len() == indices.len() { Ok(leaves) } else { Err(outside()) }
}

/// Whether an auditor of a realm may see a leaf. One that cannot be decoded may be anybody's.
fn may_see(leaf: &[u8], realm: &RealmName) -> bool {
    Leaf::decode(leaf).is_ok_and(|leaf| evidence::visible(&leaf, realm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_has_one_spelling() {
        let tile = |index, width| Some(Tile { index, width });
        // The example of the C2SP tlog-tiles specification: x001/x234/067 is 1234067.
        assert_eq!(Tile::parse("x001/x234/067"), tile(1_234_067, 256));
        assert_eq!(Tile::parse("000"), tile(0, 256));
        assert_eq!(Tile::parse("x001/000.p/255"), tile(1_000, 255));
        for bad in [
            "",
            "0",
            "00",
            "0000",
            "x000",
            "x000/001",
            "001/002",
            "x001",
            "x001/x002",
            "000.p/0",
            "000.p/256",
            "000.p/01",
            "000.p/",
            "000.p",
            "000/",
            "/000",
            "-01",
            "+01",
            "x018446744073709551/616",
            "000.p/1.p/1",
            "٠٠٠",
            "x999/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(Tile::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_what_the_tree_has_is_given() {
        let (full, part) = (Tile { index: 1, width: 256 }, Tile { index: 1, width: 3 });
        assert_eq!((full.start(512), full.start(511)), (Some(256), None));
        assert_eq!((part.start(512), part.start(259), part.start(258)), (Some(256), Some(256), None));
        assert_eq!(Tile { index: u64::MAX / 2, width: 256 }.start(u64::MAX), None);
        assert_eq!((hashes_at(0, TreeSize(70_000)), hashes_at(1, TreeSize(70_000))), (Some(70_000), Some(273)));
        assert_eq!((hashes_at(2, TreeSize(70_000)), hashes_at(7, TreeSize(70_000))), (Some(1), Some(0)));
        assert_eq!(hashes_at(8, TreeSize(u64::MAX)), None);
    }
}
