//! Writing XML: elements with text, escaped so that every reader reads back what was kept.

/// XML as it grows.
#[derive(Debug)]
pub(crate) struct Xml(String);

impl Xml {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// Markup of our own, as it is.
    pub(crate) fn raw(&mut self, markup: &str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    pub(crate) fn open(&mut self, name: &str) -> &mut Self {
        self.raw("<").raw(name).raw(">")
    }

    pub(crate) fn close(&mut self, name: &str) -> &mut Self {
        self.raw("</").raw(name).raw(">")
    }

    /// An element that holds a text.
    pub(crate) fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.open(name);
        self.escaped(text);
        self.close(name)
    }

    /// An element that holds a text that needs no escaping: numbers, times, ids.
    pub(crate) fn plain(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        use std::fmt::Write;
        self.open(name);
        // Writing to a string does not fail.
        let _never = write!(self.0, "{value}");
        self.close(name)
    }

    /// An element, if there is something to put into it.
    pub(crate) fn optional(&mut self, name: &str, text: Option<&str>) -> &mut Self {
        match text {
            Some(text) => self.text(name, text),
            None => self,
        }
    }

    /// Text: a carriage return would be read as a line feed (XML 1.0 section 2.11), so it goes as a reference. What XML cannot
    /// carry is refused where it comes in; should it be here all the same, the answer stays well-formed.
    pub(crate) fn escaped(&mut self, text: &str) -> &mut Self {
        let special = |c: char| matches!(c, '&' | '<' | '>' | '"' | '\r') || !is_xml(c);
        let mut rest = text;
        while let Some(at) = rest.find(special) {
            let (before, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
            let mut characters = from.chars();
            self.0.push_str(before);
            self.0.push_str(match characters.next() {
                Some('&') => "&amp;",
                Some('<') => "&lt;",
                Some('>') => "&gt;",
                Some('"') => "&quot;",
                Some('\r') => "&#13;",
                Some(_) | None => "\u{fffd}",
            });
            rest = characters.as_str();
        }
        self.0.push_str(rest);
        self
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

/// The `Char` production of XML 1.0 section 2.2.
const fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..='\u{10FFFF}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text in "[\\t\\n\\r\\x20-\\u{D7FF}\\u{E000}-\\u{FFFD}&<>\"']{0,60}") {
            let mut xml = Xml::with_capacity(0);
            xml.text("a", &text);
            let written = xml.into_string();
            let document = roxmltree::Document::parse(&written).unwrap();
            prop_assert_eq!(document.root_element().text().unwrap_or_default(), text);
        }
    }

    #[test]
    fn what_xml_cannot_carry_does_not_break_the_answer() {
        let mut xml = Xml::with_capacity(0);
        xml.text("a", "x\u{0}y\u{ffff}z");
        assert_eq!(xml.into_string(), "<a>x\u{fffd}y\u{fffd}z</a>");
    }
}
