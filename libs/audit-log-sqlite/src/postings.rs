//! What auditors search by.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use audit_log::{LogPostings, Posting, Projected, Projection, ReadError, Term};
use session_model::{LeafIndex, SessionId, TreeSize};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::SqliteLog;
use crate::open::{signed, unavailable, unsigned};
use crate::read::column;
use crate::rows::Rows;

const PUT: &str = "INSERT INTO posting (term, segment, offsets)
    SELECT substr(?2, value ->> 0, value ->> 1), value ->> 2, substr(?2, value ->> 3, value ->> 4) FROM json_each(?1) WHERE true
    ON CONFLICT (term, segment) DO UPDATE SET offsets = excluded.offsets";
const REMOVE: &str = "DELETE FROM posting WHERE (term, segment) IN
    (SELECT substr(?2, value ->> 0, value ->> 1), value ->> 2 FROM json_each(?1))";
const MOVE: &str = "UPDATE projection SET size = ?3, revision = revision + 1 WHERE size = ?1 AND revision = ?2";

#[async_trait]
impl LogPostings for SqliteLog {
    async fn projection(&self) -> Result<Projection, ReadError> {
        let (size, revision): (i64, i64) = sqlx::query_as("SELECT size, revision FROM projection")
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(Projection { size: TreeSize(unsigned(size)?), revision: unsigned(revision)? })
    }

    async fn postings(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<Posting>, ReadError> {
        let rows = Rows::of(terms.iter().map(|term| term.0));
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let query = rows.query(
            "SELECT p.term, p.segment, p.offsets FROM json_each(?1) AS j
             CROSS JOIN posting AS p ON p.term = substr(?2, j.value ->> 0, j.value ->> 1) AND p.segment BETWEEN ?3 AND ?4",
        );
        let found = query
            .bind(i64::from(*segments.start()))
            .bind(i64::from(*segments.end()))
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
        found.iter().map(posting).collect()
    }

    async fn postings_in(&self, terms: &[Term], segments: &[u32]) -> Result<Vec<Posting>, ReadError> {
        let mut rows = Rows::new();
        for term in terms {
            for segment in segments {
                rows.row().blob(term.0).int((*segment).into());
            }
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let query = rows.query(
            "SELECT p.term, p.segment, p.offsets FROM json_each(?1) AS j
             CROSS JOIN posting AS p ON p.term = substr(?2, j.value ->> 0, j.value ->> 1) AND p.segment = j.value ->> 2",
        );
        let found = query.fetch_all(&self.readers).await.map_err(unavailable)?;
        found.iter().map(posting).collect()
    }

    async fn segments_with(&self, terms: &[Term], segments: RangeInclusive<u32>) -> Result<Vec<u32>, ReadError> {
        let rows = Rows::of(terms.iter().map(|term| term.0));
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let query = rows.query(
            "SELECT p.segment FROM json_each(?1) AS j
             CROSS JOIN posting AS p ON p.term = substr(?2, j.value ->> 0, j.value ->> 1) AND p.segment BETWEEN ?3 AND ?4
             GROUP BY p.segment HAVING count(*) = json_array_length(?1) ORDER BY p.segment",
        );
        let found = query
            .bind(i64::from(*segments.start()))
            .bind(i64::from(*segments.end()))
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
        found.iter().map(|row| column(row, "segment")).collect()
    }

    async fn project(
        &self,
        expected: Projection,
        size: TreeSize,
        postings: &[Posting],
    ) -> Result<Projected, ReadError> {
        let mut writer = self.writer().await.map_err(unavailable)?;
        // On failure the connection is dropped, which rolls back.
        let projected = project(writer.connection(), expected, size, postings).await.map_err(unavailable)?;
        writer.release();
        Ok(projected)
    }

    async fn session_places(&self, ids: &[SessionId]) -> Result<Vec<LeafIndex>, ReadError> {
        let rows = Rows::of(ids.iter().map(|id| id.uuid()));
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let query = rows.query(
            "SELECT e.leaf_index FROM json_each(?1) AS j
             CROSS JOIN session_entry AS e ON e.session_id = substr(?2, j.value ->> 0, j.value ->> 1)",
        );
        let found = query.fetch_all(&self.readers).await.map_err(unavailable)?;
        found.iter().map(|row| Ok(LeafIndex(unsigned(column(row, "leaf_index")?)?))).collect()
    }
}

fn posting(row: &SqliteRow) -> Result<Posting, ReadError> {
    let term: &[u8] = column(row, "term")?;
    let term = term.try_into().map_err(|_| ReadError::Corrupt("a term of another length".into()))?;
    Ok(Posting { term: Term(term), segment: column(row, "segment")?, offsets: column(row, "offsets")? })
}

async fn project(
    connection: &mut SqliteConnection,
    expected: Projection,
    size: TreeSize,
    postings: &[Posting],
) -> Result<Projected, sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    let moved = sqlx::query(MOVE)
        .bind(signed(expected.size.0))
        .bind(signed(expected.revision))
        .bind(signed(size.0))
        .execute(&mut *connection)
        .await?;
    if moved.rows_affected() == 0 {
        sqlx::query("ROLLBACK").execute(&mut *connection).await?;
        return Ok(Projected::Moved);
    }
    let (mut put, mut remove) = (Rows::new(), Rows::new());
    for posting in postings {
        if posting.offsets.is_empty() {
            remove.row().blob(posting.term.0).int(posting.segment.into());
        } else {
            put.row().blob(posting.term.0).int(posting.segment.into()).blob(&posting.offsets);
        }
    }
    for (rows, sql) in [(put, PUT), (remove, REMOVE)] {
        if !rows.is_empty() {
            rows.query(sql).execute(&mut *connection).await?;
        }
    }
    sqlx::query("COMMIT").execute(&mut *connection).await?;
    Ok(Projected::Yes)
}
