//! Signing people in with an identity provider: the relying party's side of OpenID Connect Core 1.0, authorization code flow with
//! PKCE, as RFC 9700 (best current practice for OAuth security) wants it.
//!
//! * [`Provider`] asks the provider: where its endpoints are, what its keys are, whom a code stands for.
//! * [`IdToken`] is a token that holds; there is no other way to one than [`check`], which is pure.
//! * [`AuthorizationAnswer`] is what a browser brings back.
//!
//! What this crate does not do: it keeps nobody signed in, sets no cookie, and takes no implicit or hybrid flow, no encrypted token, no token
//! signed by a shared secret, and no claim from anywhere but the ID token. Signatures are verified by OpenSSL (`sealing`); crates that do
//! all of this bring their own cryptography with them.
//!
//! Start with [`Provider`], then `id_token.rs`.

mod answer;
mod id_token;
mod keys;
mod metadata;
mod provider;
#[cfg(feature = "test-util")]
pub mod testing;

pub use answer::{AuthorizationAnswer, Brought};
pub use id_token::{Expected, IdToken, TokenFault, check};
pub use keys::{Key, KeySet};
pub use metadata::{Metadata, MetadataFault, is_safe_url};
pub use provider::{Attempt, ClientSecret, OidcError, Provider, ProviderConfig};
