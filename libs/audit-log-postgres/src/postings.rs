//! What auditors search by.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use audit_log::{LogPostings, Posting, Projected, Projection, ReadError, Term};
use session_model::{LeafIndex, SessionId, TreeSize};
use uuid::Uuid;

use crate::PostgresLog;
use crate::open::{signed, unavailable, unsigned};

#[async_trait]
impl LogPostings for PostgresLog {
    async fn projection(&self) -> Result<Projection, ReadError> {
        let (size, revision): (i64, i64) = sqlx::query_as("SELECT size, revision FROM counterfoil.projection")
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(Projection { size: TreeSize(unsigned(size)?), revision: unsigned(revision)? })
    }

    async fn postings(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<Posting>, ReadError> {
        let found: Vec<(Vec<u8>, i32, Vec<u8>)> = sqlx::query_as(
            "SELECT p.term, p.segment, p.offsets FROM unnest($1::bytea[]) AS w (term)
             JOIN counterfoil.posting AS p ON p.term = w.term AND p.segment BETWEEN $2 AND $3",
        )
        .bind(bytes(terms))
        .bind(number(*segments.start()))
        .bind(number(*segments.end()))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        found.into_iter().map(posting).collect()
    }

    async fn postings_in(&self, terms: &[Term], segments: &[u32]) -> Result<Vec<Posting>, ReadError> {
        let found: Vec<(Vec<u8>, i32, Vec<u8>)> = sqlx::query_as(
            "SELECT p.term, p.segment, p.offsets FROM unnest($1::bytea[]) AS w (term)
             JOIN counterfoil.posting AS p ON p.term = w.term AND p.segment = ANY ($2::int[])",
        )
        .bind(bytes(terms))
        .bind(segments.iter().map(|segment| number(*segment)).collect::<Vec<_>>())
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        found.into_iter().map(posting).collect()
    }

    async fn segments_with(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<u32>, ReadError> {
        // By the index alone, where vacuum has been: no offsets are touched.
        let found: Vec<i32> = sqlx::query_scalar(
            "SELECT p.segment FROM unnest($1::bytea[]) AS w (term)
             JOIN counterfoil.posting AS p ON p.term = w.term AND p.segment BETWEEN $2 AND $3
             GROUP BY p.segment HAVING count(*) = cardinality($1::bytea[]) ORDER BY p.segment",
        )
        .bind(bytes(terms))
        .bind(number(*segments.start()))
        .bind(number(*segments.end()))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        found.into_iter().map(unsigned_segment).collect()
    }

    async fn project(
        &self,
        expected: Projection,
        size: TreeSize,
        postings: &[Posting],
    ) -> Result<Projected, ReadError> {
        let done: bool = sqlx::query_scalar("SELECT counterfoil.project($1, $2, $3, $4, $5, $6)")
            .bind(signed(expected.size.0))
            .bind(signed(expected.revision))
            .bind(signed(size.0))
            .bind(postings.iter().map(|posting| posting.term.0.to_vec()).collect::<Vec<_>>())
            .bind(postings.iter().map(|posting| number(posting.segment)).collect::<Vec<_>>())
            .bind(postings.iter().map(|posting| posting.offsets.as_slice()).collect::<Vec<_>>())
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(if done { Projected::Yes } else { Projected::Moved })
    }

    async fn session_places(&self, ids: &[SessionId]) -> Result<Vec<LeafIndex>, ReadError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
        let found: Vec<i64> =
            sqlx::query_scalar("SELECT leaf_index FROM counterfoil.session_entry WHERE session_id = ANY ($1)")
                .bind(ids)
                .fetch_all(&self.readers)
                .await
                .map_err(unavailable)?;
        found.into_iter().map(|index| unsigned(index).map(LeafIndex)).collect()
    }
}

fn posting((term, segment, offsets): (Vec<u8>, i32, Vec<u8>)) -> Result<Posting, ReadError> {
    let term = term.try_into().map_err(|_| ReadError::Corrupt("a term of another length".into()))?;
    Ok(Posting { term: Term(term), segment: unsigned_segment(segment)?, offsets })
}

fn bytes(terms: &[Term]) -> Vec<Vec<u8>> {
    terms.iter().map(|term| term.0.to_vec()).collect()
}

fn unsigned_segment(segment: i32) -> Result<u32, ReadError> {
    u32::try_from(segment).map_err(|_| ReadError::Corrupt("a negative segment".into()))
}

/// Segments stay far below 2^31: that many would be 140 million million entries.
fn number(segment: u32) -> i32 {
    i32::try_from(segment).unwrap_or(i32::MAX)
}
