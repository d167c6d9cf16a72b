//! The tree over time, and its newest checkpoint.

use std::fmt::Write;

use access::Permission;
use actix_web::{HttpRequest, HttpResponse, web};
use api_audit::{CheckDocument, read_problem, record};
use api_http::{Problem, ProblemCode};
use audit_log::LogReader;
use maud::{Markup, html};
use session_model::{Detail, Leaf, LeafIndex, Timestamp, TreeSize};

use crate::page::{self, Section};
use crate::visit::admitted;
use crate::{Console, show};

/// Entries that are looked at.
const SAMPLES: u64 = 60;
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 220.0;
/// Room for the scale, left and below.
const LEFT: f64 = 64.0;
const BELOW: f64 = 24.0;

/// How large the tree was when.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    time: Timestamp,
    size: u64,
}

pub(crate) async fn show(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    admitted(&console, &request, Permission::ReadLog, async |visit, caller| {
        api_http::query(&request, [])?;
        record(&console.audit, &request, &caller, Detail::new(), None).await?;
        let audited = console.audit.of(&caller.realm);
        let head = audited.log.head().await.map_err(read_problem)?;
        let samples = sampled(&*audited.log, head.size()).await?;
        let checked = console.evidence.of(&caller.realm).last_check.last_check();
        let main = html! {
            h1 { "Checkpoints" }
            p { "The log has " strong { (thousands(head.size().0)) } " entries of all realms in it, the newest of "
                (show::time(&head.time.to_string())) " UTC. Each commit signs a checkpoint over the whole tree." }
            figure {
                (chart(&samples))
                figcaption.dim { "Tree size over time, from " (samples.len()) " entries spread evenly. Times and sizes only: what the entries say is not read." }
            }
            details { summary { "As a table" } table.pairs.numbers {
                thead { tr { th scope="col" { "Time (UTC)" } th scope="col" { "Tree size" } } }
                tbody { @for sample in &samples { tr { td { (show::time(&sample.time.to_string())) } td.number { (thousands(sample.size)) } } } }
            } }
            (last_check(&checked))
            section aria-labelledby="newest" {
                h2 #newest { "The newest checkpoint" }
                @if let Some(checkpoint) = &head.checkpoint { pre { (checkpoint) } }
                p.dim { "Keep it where nobody of this service can write: whoever has it can prove later that the log was rewritten." }
                h2 { "Verifier keys" }
                @for key in audited.keys.borrow().iter() {
                    p {
                        code.vkey { (key.vkey) }
                        @if let Some(from) = key.from { span.dim { "from " (show::time(&from.to_string())) " UTC " } }
                        @if let Some(until) = key.until { span.dim { "until " (show::time(&until.to_string())) " UTC" } }
                    }
                }
            }
        };
        Ok(page::shown(&console, visit, "Checkpoints", Section::Checkpoints, &main))
    })
    .await
}

/// What the service's own last check of the whole log came to.
fn last_check(check: &CheckDocument) -> Markup {
    let (class, said) = match check.result.as_str() {
        "good" => ("good", "Every entry is what it was."),
        "wrong" => ("bad", "The log is WRONG."),
        "unfinished" => ("bad", "The log could not be read to its end."),
        _ => ("dim", "None has ended since this node began."),
    };
    html! {
        section aria-labelledby="checked" {
            h2 #checked { "The service’s own last check" }
            p { span class=(class) { (said) } }
            table.pairs {
                @if let Some(index) = check.first_wrong_index {
                    tr { th scope="row" { "First wrong entry" } td { a href={ "/console/entries/" (index) } { (index) } } }
                }
                @if let Some(what) = &check.what { tr { th scope="row" { "What" } td { (what) } } }
                @if let Some(ended) = &check.ended_at {
                    tr { th scope="row" { "Entries covered" } td { (thousands(check.size)) } }
                    tr { th scope="row" { "Ended (UTC)" } td { (show::time(ended)) } }
                }
                @if let Some(root) = &check.root { tr { th scope="row" { "Root" } td { code { (root) } } } }
                @if let Some(outside) = check.outside_size {
                    tr { th scope="row" { "Compared with the outside checkpoint of size" } td { (thousands(outside)) } }
                }
                @if check.covered_by_running > 0 {
                    tr { th scope="row" { "Covered by the one that is running" } td { (thousands(check.covered_by_running)) } }
                }
            }
            p.dim { "The service believes itself: proof is a bundle in the offline verifier, with a checkpoint that was kept elsewhere." }
        }
    }
}

async fn sampled(log: &dyn LogReader, size: TreeSize) -> Result<Vec<Sample>, Problem> {
    let found = log.entries(&places(size.0)).await.map_err(read_problem)?;
    let sample = |entry: audit_log::StoredEntry| {
        let leaf = Leaf::decode(&entry.leaf).map_err(|_| {
            Problem::new(ProblemCode::Internal, format!("entry {} is not a leaf: the log was damaged", entry.index))
        })?;
        Ok(Sample { time: leaf.time, size: entry.index.0 + 1 })
    };
    found.into_iter().flatten().map(sample).collect()
}

/// Places spread evenly over a log of this size, its first and last entry among them.
fn places(size: u64) -> Vec<LeafIndex> {
    let Some(last) = size.checked_sub(1) else { return Vec::new() };
    let steps = last.min(SAMPLES - 1);
    if steps == 0 {
        return vec![LeafIndex(0)];
    }
    let at = |step: u64| u128::from(last) * u128::from(step) / u128::from(steps);
    (0..=steps).map(|step| LeafIndex(u64::try_from(at(step)).unwrap_or(last))).collect()
}

fn chart(samples: &[Sample]) -> Markup {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return html! { p.empty { "The log is empty." } };
    };
    let span = last.time.micros_since(first.time).max(1) as f64;
    let top = last.size.max(1) as f64;
    let at = |sample: &Sample| {
        let x = LEFT + sample.time.micros_since(first.time) as f64 / span * (WIDTH - LEFT - 8.0);
        let y = 8.0 + (1.0 - sample.size as f64 / top) * (HEIGHT - BELOW - 8.0);
        (x, y)
    };
    let ground = HEIGHT - BELOW;
    let mut line = String::new();
    for (x, y) in samples.iter().map(at) {
        // A text takes everything that is written to it.
        let _ = write!(line, "{x:.1},{y:.1} ");
    }
    let area = format!("{LEFT:.1},{ground:.1} {line}{:.1},{ground:.1}", at(last).0);
    let said = format!("Tree size from {} at {} to {} at {}", first.size, first.time, last.size, last.time);
    let day = |time: Timestamp| time.to_string().replacen('T', " ", 1).chars().take(19).collect::<String>();
    html! {
        svg.chart viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(said) {
            @for quarter in 0..=4_u32 {
                @let y = 8.0 + f64::from(quarter) / 4.0 * (ground - 8.0);
                @let size = last.size.saturating_mul(u64::from(4 - quarter)) / 4;
                line.grid x1=(LEFT) x2=(WIDTH - 8.0) y1={ (format!("{y:.1}")) } y2={ (format!("{y:.1}")) } {}
                text x=(LEFT - 6.0) y={ (format!("{:.1}", y + 4.0)) } text-anchor="end" { (thousands(size)) }
            }
            polygon.area points=(area) {}
            polyline.line points=(line.trim_end()) {}
            @if samples.len() <= 30 {
                @for (x, y) in samples.iter().map(at) { circle.dot cx={ (format!("{x:.1}")) } cy={ (format!("{y:.1}")) } r="2.5" {} }
            }
            text x=(LEFT) y=(HEIGHT - 6.0) { (day(first.time)) }
            text x=(WIDTH - 8.0) y=(HEIGHT - 6.0) text-anchor="end" { (day(last.time)) " UTC" }
        }
    }
}

/// A number with its thousands set apart.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_found_wrong_is_called_so_and_where() {
        let check = CheckDocument {
            result: "wrong".into(),
            size: 40,
            root: None,
            began_at: None,
            ended_at: Some("2026-11-21T08:00:00Z".into()),
            first_wrong_index: Some(20),
            what: Some("the leaf <20>".into()),
            outside_size: Some(41),
            covered_by_running: 7,
        };
        let page = last_check(&check).into_string();
        for part in [
            "class=\"bad\">The log is WRONG.",
            "href=\"/console/entries/20\"",
            "the leaf &lt;20&gt;",
            "<td>41</td>",
            "<td>7</td>",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        let none =
            CheckDocument { result: "none".into(), ended_at: None, first_wrong_index: None, what: None, ..check };
        assert!(last_check(&none).into_string().contains("None has ended"));
    }

    #[test]
    fn samples_are_spread_from_the_first_to_the_last() {
        assert!(places(0).is_empty());
        assert_eq!(places(1), [LeafIndex(0)]);
        assert_eq!(places(3), [LeafIndex(0), LeafIndex(1), LeafIndex(2)]);
        let many = places(u64::MAX);
        assert_eq!((many.len(), many.first(), many.last()), (60, Some(&LeafIndex(0)), Some(&LeafIndex(u64::MAX - 1))));
        assert!(many.is_sorted());
    }

    #[test]
    fn numbers_are_legible() {
        let shown: Vec<_> = [0, 999, 1_000, 1_234_567].into_iter().map(thousands).collect();
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn one_entry_is_a_chart_too() {
        let only = Sample { time: Timestamp::from_micros(1), size: 1 };
        assert!(!chart(&[only]).into_string().contains("NaN"));
    }
}
