//! Answers on standard output: as a table for people, as JSON or YAML for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// Writes an answer.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn write(output: Output, answer: &impl Serialize) -> io::Result<()> {
    let value = serde_json::to_value(answer)?;
    let text = match output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&value)?),
        Output::Yaml => serde_norway::to_string(&value).map_err(io::Error::other)?,
        Output::Table => table(&value),
    };
    io::stdout().write_all(text.as_bytes())
}

/// A list of objects becomes columns; anything else one line for each path.
fn table(value: &Value) -> String {
    match value {
        Value::Array(rows) if rows.iter().all(Value::is_object) => columns(rows),
        other => {
            let mut lines = String::new();
            paths(other, "", &mut lines);
            lines
        }
    }
}

fn columns(rows: &[Value]) -> String {
    let Some(names) = rows.first().and_then(Value::as_object).map(|row| row.keys().cloned().collect::<Vec<_>>()) else {
        return "none\n".to_owned();
    };
    let mut lines: Vec<Vec<String>> = vec![names.iter().map(|name| name.to_uppercase()).collect()];
    lines.extend(rows.iter().map(|row| names.iter().map(|name| cell(&row[name.as_str()])).collect()));
    let width = |at: usize| lines.iter().filter_map(|line| line.get(at)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let line = |cells: &Vec<String>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn paths(value: &Value, at: &str, lines: &mut String) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                paths(member, &path, lines);
            }
        }
        other => lines.push_str(&format!("{at} = {}\n", cell(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_aligned_and_objects_are_paths() {
        let rows = serde_json::json!([{"id": "a", "n": 1}, {"id": "bbb", "n": null}]);
        assert_eq!(table(&rows), "ID   N\na    1\nbbb  -\n");
        assert_eq!(table(&serde_json::json!({"a": {"b": [1, 2]}})), "a.b = 1,2\n");
        assert_eq!(table(&serde_json::json!([])), "none\n");
    }
}
