//! What every HTTP interface of the service shares.
//!
//! * [`Problem`]: RFC 9457 problem documents, and the one table from [`session_service::ServiceError`] to them.
//! * [`Request`]: trace context, credential and caller of a request.
//! * [`Fields`]: a JSON body read strictly, naming each bad field by its JSON pointer.
//! * [`Cursor`]: opaque page cursors.

mod body;
mod cursor;
mod problem;
mod request;

pub use body::{BadField, Fields, read_body};
pub use cursor::Cursor;
pub use problem::{Problem, ProblemCode, ProblemDocument, ProblemField, answer};
pub use request::{Gate, GateKeeper, RefusedRequest, Request, Trace, caller, query};
