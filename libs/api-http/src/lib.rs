//! What every HTTP interface of the service shares.
//!
//! * [`Problem`]: RFC 9457 problem documents, and the one table from [`session_service::ServiceError`] to them.
//! * [`Request`]: trace context, credential and caller of a request.
//! * [`Fields`]: a JSON body read strictly, naming each bad field by its JSON pointer.
//! * [`Cursor`]: opaque page cursors.
//! * [`rules`]: what every mouth asks of a request's values; [`Observed`]: what it counts.

mod body;
mod cursor;
mod observed;
mod problem;
mod request;
pub mod rules;

pub use body::{BadField, Fields, read_body};
pub use cursor::Cursor;
pub use observed::{Observed, Observer};
pub use problem::{Problem, ProblemCode, ProblemDocument, ProblemField, SoapFault, answer};
pub use request::{
    ClientCertificate, Gate, GateKeeper, RefusedRequest, Request, Trace, caller, has_bearer, next_link, query,
};
