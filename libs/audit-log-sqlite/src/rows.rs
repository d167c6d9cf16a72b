//! Many rows as two parameters.

use std::fmt::Write as _;

use sqlx::Sqlite;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;

/// Rows for one statement: a JSON array of arrays of numbers, and every blob, one after another.
///
/// A statement over them always has the same text, however many rows there are: SQLite compiles it once, and its limit on
/// parameters is of no concern. In SQL, `?1` is the array for `json_each` and `?2` the blobs; a blob takes two numbers, its
/// position from 1 and its length: `substr(?2, value ->> 0, value ->> 1)`.
#[derive(Debug)]
pub(crate) struct Rows {
    json: String,
    blobs: Vec<u8>,
    count: usize,
}

impl Rows {
    pub(crate) fn new() -> Self {
        Self { json: "[".to_owned(), blobs: Vec::new(), count: 0 }
    }

    /// One row for each of these blobs.
    pub(crate) fn of(blobs: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let mut rows = Self::new();
        for blob in blobs {
            rows.row().blob(blob);
        }
        rows
    }

    /// Begins the next row.
    pub(crate) fn row(&mut self) -> Row<'_> {
        self.json.push_str(if self.count == 0 { "[" } else { ",[" });
        self.json.push(']');
        self.count += 1;
        Row { rows: self, first: true }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A query over these rows.
    pub(crate) fn query(mut self, sql: &'static str) -> Query<'static, Sqlite, SqliteArguments> {
        self.json.push(']');
        sqlx::query(sql).bind(self.json).bind(self.blobs)
    }
}

/// A row being written.
pub(crate) struct Row<'a> {
    rows: &'a mut Rows,
    first: bool,
}

impl Row<'_> {
    fn cell(&mut self, text: std::fmt::Arguments<'_>) {
        let json = &mut self.rows.json;
        json.pop();
        let comma = if std::mem::take(&mut self.first) { "" } else { "," };
        // Writing to a string cannot fail.
        let _ok = write!(json, "{comma}{text}]");
    }

    pub(crate) fn int(mut self, number: i64) -> Self {
        self.cell(format_args!("{number}"));
        self
    }

    pub(crate) fn blob(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.cell(format_args!("{},{}", self.rows.blobs.len() + 1, bytes.len()));
        self.rows.blobs.extend_from_slice(bytes);
        self
    }

    /// A blob, or SQL's NULL.
    pub(crate) fn maybe(mut self, bytes: Option<impl AsRef<[u8]>>) -> Self {
        match bytes {
            Some(bytes) => self.blob(bytes),
            None => {
                self.cell(format_args!("null,null"));
                self
            }
        }
    }
}
