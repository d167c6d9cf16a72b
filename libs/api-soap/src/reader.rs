//! Reading the children of an element strictly: each unknown, missing, repeated or bad one is named, all at once.

use api_http::{BadField, Problem};
use roxmltree::Node;
use session_model::{Timestamp, check_text};

use crate::NAMESPACE;

const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";

/// The children of an element, not yet read. Take them by name; then [`Children::done`] refuses what is left.
#[derive(Debug)]
pub(crate) struct Children<'a, 'text> {
    left: Vec<Node<'a, 'text>>,
    bad: Vec<BadField>,
    at: String,
}

impl<'a, 'text> Children<'a, 'text> {
    pub(crate) fn of(node: Node<'a, 'text>) -> Self {
        Self::under(node, String::new())
    }

    fn under(node: Node<'a, 'text>, at: String) -> Self {
        let mut children = Self { left: Vec::new(), bad: Vec::new(), at };
        for child in node.children() {
            if child.is_element() {
                children.left.push(child);
            } else if child.is_text() && !child.text().unwrap_or_default().chars().all(char::is_whitespace) {
                children.bad.push(BadField::new(children.at.trim_end_matches('/'), "has text between its elements"));
            }
        }
        children
    }

    /// Notes that a child is bad.
    pub(crate) fn refuse(&mut self, name: &str, detail: &str) {
        self.bad.push(BadField::new(&format!("{}{name}", self.at), detail));
    }

    /// Takes a child that may stand once. One that is nil counts as absent: toolkits cannot all tell the two apart.
    pub(crate) fn one(&mut self, name: &str) -> Option<Node<'a, 'text>> {
        let mut found = self.many(name).into_iter();
        let first = found.next();
        if found.next().is_some() {
            self.refuse(name, "stands more than once");
        }
        first.filter(|node| !matches!(node.attribute((XSI, "nil")).map(str::trim), Some("true" | "1")))
    }

    fn many(&mut self, name: &str) -> Vec<Node<'a, 'text>> {
        let (found, left) =
            std::mem::take(&mut self.left).into_iter().partition(|child| child.has_tag_name((NAMESPACE, name)));
        self.left = left;
        found
    }

    /// Takes the text of a child as it stands, empty or not.
    pub(crate) fn verbatim(&mut self, name: &str) -> Option<String> {
        let node = self.one(name)?;
        let text = text_of(node);
        if text.is_none() {
            self.refuse(name, "must hold text, not elements");
        }
        text
    }

    /// Takes a text of 1 to `max` bytes.
    pub(crate) fn text(&mut self, name: &str, max: usize) -> Option<String> {
        let text = self.verbatim(name)?;
        match check_text(&text, max) {
            Ok(()) => Some(text),
            Err(fault) => {
                self.refuse(name, &fault.to_string());
                None
            }
        }
    }

    /// Takes a text that must be there.
    pub(crate) fn required(&mut self, name: &str, max: usize) -> String {
        let before = self.bad.len();
        self.text(name, max).unwrap_or_else(|| {
            if self.bad.len() == before {
                self.refuse(name, "is required");
            }
            String::new()
        })
    }

    /// Takes a value that is read from its text, white space around it aside.
    pub(crate) fn value<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Option<T>, what: &str) -> Option<T> {
        let text = self.verbatim(name)?;
        let value = read(text.trim());
        if value.is_none() {
            self.refuse(name, what);
        }
        value
    }

    /// Takes a time.
    pub(crate) fn time(&mut self, name: &str) -> Option<Timestamp> {
        self.value(name, date_time, "must be an xsd:dateTime with a time zone")
    }

    /// Takes a list: a child whose children all have one name. `None` if it is not there.
    pub(crate) fn list(&mut self, name: &str, item: &str) -> Option<Vec<Node<'a, 'text>>> {
        let node = self.one(name)?;
        let mut inner = Self::under(node, format!("{}{name}/", self.at));
        let items = inner.many(item);
        self.finish(inner);
        Some(items)
    }

    /// Takes a list of texts, each 1 to `max` bytes.
    pub(crate) fn texts(&mut self, name: &str, item: &str, max: usize) -> Option<Vec<String>> {
        let items = self.list(name, item)?;
        let mut texts = Vec::with_capacity(items.len());
        for (at, node) in items.into_iter().enumerate() {
            let text = text_of(node).unwrap_or_default();
            if let Err(fault) = check_text(&text, max) {
                self.refuse(&format!("{name}/{item}[{}]", at + 1), &fault.to_string());
            }
            texts.push(text);
        }
        Some(texts)
    }

    /// The children of an item of a list.
    pub(crate) fn item(&self, node: Node<'a, 'text>, list: &str, item: &str, at: usize) -> Self {
        Self::under(node, format!("{}{list}/{item}[{}]/", self.at, at + 1))
    }

    /// Takes over what an inner element found bad, or left.
    pub(crate) fn finish(&mut self, mut inner: Self) {
        inner.refuse_left();
        self.bad.append(&mut inner.bad);
    }

    fn refuse_left(&mut self) {
        for child in std::mem::take(&mut self.left) {
            let name = child.tag_name();
            let what = if name.namespace() == Some(NAMESPACE) {
                "is not an element of this request"
            } else {
                "is not in the namespace urn:counterfoil:session:v1"
            };
            // A name may be long; what is shown of it need not.
            let shown: String = name.name().chars().take(64).collect();
            self.refuse(&shown, what);
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// A [`Problem`] naming each bad child.
    pub(crate) fn done(mut self) -> Result<(), Problem> {
        self.refuse_left();
        if self.bad.is_empty() { Ok(()) } else { Err(Problem::invalid(self.bad)) }
    }
}

/// The text of an element: all of it, whatever comments stand in it; `None` if it has elements.
pub(crate) fn text_of(node: Node<'_, '_>) -> Option<String> {
    if node.children().any(|child| child.is_element()) {
        return None;
    }
    // Node::text() ends at the first comment: ali<!-- -->ce would be ali.
    Some(node.children().filter_map(|child| child.text().filter(|_| child.is_text())).collect())
}

/// Reads an xsd:dateTime. One without a time zone is no point in time, and refused.
pub(crate) fn date_time(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text).filter(|_| text.contains('T'))
}

#[cfg(test)]
mod tests {
    use roxmltree::Document;

    use super::*;

    fn read(inner: &str) -> (Option<String>, Result<(), String>) {
        let xml = format!("<r xmlns='{NAMESPACE}' xmlns:xsi='{XSI}'>{inner}</r>");
        let document = Document::parse(&xml).unwrap();
        let mut children = Children::of(document.root_element());
        let value = children.text("subject", 10);
        let said = children.done().map_err(|problem| {
            problem.fields().map(|(pointer, what)| format!("{pointer} {what}")).collect::<Vec<_>>().join("; ")
        });
        (value, said)
    }

    #[test]
    fn a_comment_does_not_cut_a_text() {
        assert_eq!(read("<subject>ali<!-- x -->ce</subject>").0.unwrap(), "alice");
        assert_eq!(read("<subject>al<![CDATA[<i>]]>c<!-- -->e</subject>").0.unwrap(), "al<i>ce");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let said = |inner: &str| read(inner).1.unwrap_err();
        assert_eq!(said("<subject>a</subject><subject>b</subject>"), "subject stands more than once");
        assert_eq!(said("<subject>a</subject><odd/>"), "odd is not an element of this request");
        assert_eq!(said("<subject xmlns=''>a</subject>"), "subject is not in the namespace urn:counterfoil:session:v1");
        assert_eq!(said("<subject/>"), "subject must not be empty");
        assert_eq!(said("<subject><b>a</b></subject>"), "subject must hold text, not elements");
        assert_eq!(said("x<subject>a</subject>"), " has text between its elements");
        assert_eq!(read("<subject xsi:nil='true'/>"), (None, Ok(())));
        assert_eq!(read(" <!-- c --> <subject xsi:type='s'>a</subject>"), (Some("a".into()), Ok(())));
    }

    #[test]
    fn times_are_points_in_time() {
        for good in ["2026-11-21T07:00:00Z", "2026-11-21T08:00:00.123+01:00", "2026-11-21T07:00:00.123456789Z"] {
            assert!(date_time(good).is_some(), "{good}");
        }
        for bad in ["", "2026-11-21", "2026-11-21T07:00:00", "2026-13-21T07:00:00Z", "2026-11-21 07:00:00Z", "now"] {
            assert!(date_time(bad).is_none(), "{bad}");
        }
    }
}
