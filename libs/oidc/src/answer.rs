//! What a browser brings back from the provider (RFC 6749 sections 4.1.2 and 4.1.2.1).

use crate::provider::OidcError;

/// The query of the redirection, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationAnswer {
    /// Ties it to the browser's own attempt.
    pub state: String,
    /// Who says it (RFC 9207), if that was said.
    pub issuer: Option<String>,
    /// What it brings.
    pub brought: Brought,
}

/// What an answer brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brought {
    /// A code to be redeemed.
    Code(String),
    /// The provider's reason why there is none: `access_denied` for instance. A word that was checked, fit to be shown.
    Refusal(String),
}

/// Bytes of a parameter that are read.
const LENGTH: usize = 4_096;

impl AuthorizationAnswer {
    /// Reads a query. What is unknown is passed over (RFC 6749 section 4.1.2); what is known must stand there once.
    ///
    /// # Errors
    /// [`OidcError::NotOurs`] if it is no such answer.
    pub fn parse(query: &str) -> Result<Self, OidcError> {
        let [mut state, mut code, mut refusal, mut issuer] = [const { None::<String> }; 4];
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*name {
                "state" => &mut state,
                "code" => &mut code,
                "error" => &mut refusal,
                "iss" => &mut issuer,
                _ => continue,
            };
            if slot.is_some() || value.len() > LENGTH {
                return Err(OidcError::NotOurs("a parameter stands twice, or is too long"));
            }
            *slot = Some(value.into_owned());
        }
        let state = state.ok_or(OidcError::NotOurs("it has no state"))?;
        let brought = match (code, refusal) {
            (Some(code), None) => Brought::Code(code),
            (None, Some(word)) => Brought::Refusal(shown(&word)),
            _ => return Err(OidcError::NotOurs("it has neither a code nor an error, or both")),
        };
        Ok(Self { state, issuer, brought })
    }
}

/// An error code as it may be shown: the characters that RFC 6749 has in such words, or nothing.
fn shown(word: &str) -> String {
    let plain = word.len() <= 64 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if plain { word.to_owned() } else { "an error without a name".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_state_and_either_a_code_or_an_error() {
        let read = |query: &str| AuthorizationAnswer::parse(query).ok();
        let good = read("code=a%2Bb&state=s&iss=https%3A%2F%2Fidp.example&session_state=x&scope=openid").unwrap();
        assert_eq!((good.state.as_str(), good.issuer.as_deref()), ("s", Some("https://idp.example")));
        assert_eq!(good.brought, Brought::Code("a+b".into()));
        let refused = read("error=access_denied&error_description=%3Cb%3E&state=s").unwrap();
        assert_eq!(refused.brought, Brought::Refusal("access_denied".into()));
        let odd = read("error=%3Cscript%3E&state=s").unwrap();
        assert_eq!(odd.brought, Brought::Refusal("an error without a name".into()));
        for bad in
            ["", "code=a", "state=s", "code=a&error=b&state=s", "code=a&code=b&state=s", "code=a&state=s&state=t"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(read(&format!("state=s&code={}", "a".repeat(5_000))), None);
    }
}
