//! Which characters free text may hold.

/// Why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Empty where something is needed.
    #[error("must not be empty")]
    Empty,
    /// Longer than the limit, in bytes of UTF-8.
    #[error("must be at most {0} bytes of UTF-8")]
    TooLong(usize),
    /// Holds a character that XML 1.0 cannot carry, which would make the session unreadable through SOAP.
    #[error("holds a character that XML 1.0 cannot carry")]
    NotXml,
}

/// Accepts 1 to `max` bytes made only of characters in the `Char` production of XML 1.0 section 2.2.
///
/// # Errors
/// A [`TextError`] that says which rule was broken.
pub fn check_text(text: &str, max: usize) -> Result<(), TextError> {
    if text.is_empty() {
        return Err(TextError::Empty);
    }
    if text.len() > max {
        return Err(TextError::TooLong(max));
    }
    if text.chars().all(is_xml_char) { Ok(()) } else { Err(TextError::NotXml) }
}

/// Whether XML 1.0 (fifth edition) section 2.2 `Char` admits `c`.
pub(crate) const fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..='\u{10FFFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_xml_char_production() {
        assert_eq!(check_text("käse 🧀", 64), Ok(()));
        for bad in ["\0", "\u{b}", "\u{1f}", "\u{fffe}", "\u{ffff}"] {
            assert_eq!(check_text(bad, 64), Err(TextError::NotXml), "{bad:?}");
        }
        assert_eq!(check_text("", 64), Err(TextError::Empty));
        assert_eq!(check_text("ab", 1), Err(TextError::TooLong(1)));
    }
}
