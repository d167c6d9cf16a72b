//! Each operation: its element to a command, the command to the service, what came of it to an element.

use std::collections::BTreeMap;
use std::net::IpAddr;

use actix_web::HttpRequest;
use api_http::rules::{self, LEVEL, METHODS, PAGE, SUBJECT, USER_AGENT};
use api_http::{Cursor, Observed, Problem, ProblemCode, Request};
use audit_log::Place;
use audit_search::EntryFilter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use merkle_log::leaf_hash;
use roxmltree::Node;
use serde_json::value::RawValue;
use session_model::{
    Action, Attributes, Client, EndReason, Kind, Leaf, LeafIndex, MergePatch, Outcome, Session, SessionId, Token,
    Version,
};
use session_service::{Happened, Idempotency, ListQuery, NewSession, Record, ServiceError, Validation};

use crate::audit;
use crate::fault::Fault;
use crate::operation::Operation;
use crate::reader::Children;
use crate::security::millis;
use crate::writer::Xml;
use crate::{NAMESPACE, SoapApi};

/// Bytes of a page of sessions or entries: the default quota of a .NET client is 64 KiB for the whole answer.
const PAGE_BYTES: usize = 48 << 10;
/// Bytes of a token as it may be presented: far more than one has.
const TOKEN: usize = 4_096;

/// A request that was let in.
pub(crate) struct Asked<'a, 'text> {
    pub(crate) request: &'a HttpRequest,
    pub(crate) admitted: Request,
    pub(crate) operation: Operation,
    pub(crate) element: Node<'a, 'text>,
    /// The element as it came, for the idempotency key.
    pub(crate) source: &'a [u8],
}

/// Does what is asked; writes the answer's element. Answers where in the log it is recorded, if it is a change.
///
/// # Errors
/// A [`Fault`].
pub(crate) async fn perform(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let name = asked.operation.name();
    xml.raw("<").raw(name).raw("Response xmlns=\"").raw(NAMESPACE).raw("\">");
    let place = match asked.operation {
        Operation::CreateSession => create(api, asked, xml).await?,
        Operation::ValidateSession => validate(api, asked, xml).await?,
        Operation::GetSession => get(api, asked, xml).await?,
        Operation::TouchSession => touch(api, asked, xml).await?,
        Operation::UpdateSession => update(api, asked, xml).await?,
        Operation::AuthenticateSession => authenticate(api, asked, xml).await?,
        Operation::RenewSession => renew(api, asked, xml).await?,
        Operation::TerminateSession => terminate(api, asked, xml).await?,
        Operation::TerminateSubjectSessions => terminate_subject(api, asked, xml).await?,
        Operation::ListSessions => list(api, asked, xml).await?,
        Operation::QueryAudit => query_audit(api, asked, xml).await?,
        Operation::GetReceipt => receipt(api, asked, xml).await?,
    };
    xml.raw("</").raw(name).raw("Response>");
    Ok(place)
}

impl Asked<'_, '_> {
    fn idempotency(&self) -> Result<Option<Idempotency>, Problem> {
        self.admitted.idempotency(self.request, self.source)
    }
}

/// An id that is none leads to no session: whether one exists is not told apart from whether one could.
fn session_id(text: &str) -> Result<SessionId, ServiceError> {
    text.trim().parse().map_err(|_| ServiceError::NotFound)
}

/// Reads the session id of a request that has nothing else.
fn only_session_id(asked: &Asked<'_, '_>) -> Result<SessionId, Fault> {
    let mut children = Children::of(asked.element);
    let id = children.required("sessionId", 256);
    children.done()?;
    Ok(session_id(&id)?)
}

async fn create(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let caller = &asked.admitted.caller;
    let mut children = Children::of(asked.element);
    let subject = children.text("subject", SUBJECT).map(String::into_boxed_str);
    // Like REST: a session begun through SOAP is not for that of the kind `soap`.
    let kind = children.value("kind", rules::kind, "is not a kind of session").unwrap_or(Kind::Api);
    let seconds = "must be a whole number of seconds from 1 to 4294967295";
    let idle_timeout = children.value("idleTimeoutSeconds", |text| text.parse().ok(), seconds);
    let absolute_timeout = children.value("absoluteTimeoutSeconds", |text| text.parse().ok(), seconds);
    let address: Option<IpAddr> = children.value("clientAddress", |text| text.parse().ok(), "must be an IP address");
    let user_agent = children.text("userAgent", USER_AGENT);
    let attributes = attribute_map(&mut children, Vec::new());
    let attributes = match attributes.map(|json| Attributes::parse(&json, &api.limits(&caller.realm))) {
        None => Attributes::empty(),
        Some(Ok(attributes)) => attributes,
        Some(Err(fault)) => {
            children.refuse(&format!("attributeMap{}", fault.pointer()), &fault.to_string());
            Attributes::empty()
        }
    };
    children.done()?;
    let client = (address.is_some() || user_agent.is_some()).then_some(Client { address, user_agent });
    let new = NewSession {
        subject,
        kind,
        attributes,
        authentication: None,
        client,
        idle_timeout: idle_timeout.map(session_model::Seconds),
        absolute_timeout: absolute_timeout.map(session_model::Seconds),
    };
    let changed = api.service.create(caller, new, asked.idempotency()?).await?;
    if !changed.replayed {
        (api.observer)(Observed::Created);
    }
    Ok(api.changed(xml, &changed))
}

async fn validate(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let mut children = Children::of(asked.element);
    let token = children.required("token", TOKEN);
    children.done()?;
    match api.service.validate(&asked.admitted.caller, token.trim()).await? {
        Validation::Active(session) => {
            (api.observer)(Observed::Validated("active"));
            xml.plain("valid", true);
            write_session(xml, &session);
        }
        Validation::Inactive(reason) => {
            (api.observer)(Observed::Validated(reason.name()));
            xml.plain("valid", false).plain("reason", reason.name());
        }
    }
    Ok(None)
}

async fn get(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let id = only_session_id(asked)?;
    write_session(xml, &*api.service.get(&asked.admitted.caller, id).await?);
    Ok(None)
}

async fn touch(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let id = only_session_id(asked)?;
    write_session(xml, &*api.service.touch(&asked.admitted.caller, id).await?);
    Ok(None)
}

async fn update(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let caller = &asked.admitted.caller;
    let mut children = Children::of(asked.element);
    let id = children.required("sessionId", 256);
    let expected = children.value("expectedVersion", |text| text.parse().ok().map(Version), "must be a version");
    let limits = api.limits(&caller.realm);
    let removed = children.texts("removeKeys", "key", limits.key_bytes).unwrap_or_default();
    let json = attribute_map(&mut children, removed).unwrap_or_else(|| "{}".to_owned());
    let patch = MergePatch::parse(&json, &limits);
    if let Err(fault) = &patch {
        children.refuse(&format!("attributeMap{}", fault.pointer()), &fault.to_string());
    }
    children.done()?;
    let id = session_id(&id)?;
    let patch = patch.map_err(ServiceError::Attributes)?;
    let changed = api.service.update(caller, id, patch, expected).await?;
    Ok(api.changed(xml, &changed))
}

async fn authenticate(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let mut children = Children::of(asked.element);
    let id = children.required("sessionId", 256);
    let subject = children.required("subject", SUBJECT);
    let methods = children.texts("methods", "method", METHODS.1).unwrap_or_default();
    if methods.is_empty() || methods.len() > METHODS.0 {
        children.refuse("methods", &format!("must have 1 to {} items", METHODS.0));
    }
    let level = children.text("level", LEVEL).map(|level| match level.as_str() {
        "1" | "2" | "3" | "4" => format!("aal{level}"),
        _ => level,
    });
    children.done()?;
    let (id, idempotency) = (session_id(&id)?, asked.idempotency()?);
    let caller = &asked.admitted.caller;
    let changed = api.service.authenticate(caller, id, subject.into(), methods, level, idempotency).await?;
    (api.observer)(Observed::Renewed);
    Ok(api.changed(xml, &changed))
}

async fn renew(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let id = only_session_id(asked)?;
    let changed = api.service.renew(&asked.admitted.caller, id, asked.idempotency()?).await?;
    (api.observer)(Observed::Renewed);
    Ok(api.changed(xml, &changed))
}

fn reason(children: &mut Children<'_, '_>) -> EndReason {
    let word = children.text("reason", EndReason::MAX);
    rules::reason(word.as_deref()).unwrap_or_else(|| {
        children.refuse("reason", rules::REASON);
        EndReason::ExpiredIdle
    })
}

async fn terminate(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let mut children = Children::of(asked.element);
    let id = children.required("sessionId", 256);
    let reason = reason(&mut children);
    children.done()?;
    let changed = api.service.end(&asked.admitted.caller, session_id(&id)?, reason).await?;
    if !changed.replayed {
        (api.observer)(Observed::Ended("requested"));
    }
    Ok(api.changed(xml, &Happened { replayed: false, ..changed }))
}

async fn terminate_subject(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let mut children = Children::of(asked.element);
    let subject = children.required("subject", SUBJECT);
    let except = children.value("exceptSessionId", |text| text.parse().ok(), "must be a session id");
    let reason = reason(&mut children);
    children.done()?;
    let ended = api.service.end_subject(&asked.admitted.caller, &subject, except, reason).await?;
    ended.iter().for_each(|_| (api.observer)(Observed::Ended("requested")));
    xml.plain("ended", ended.len());
    Ok(ended.iter().filter_map(|one| one.place).map(|place| place.index).max())
}

/// Reads how many a page may have, and where it begins.
fn page(children: &mut Children<'_, '_>) -> (usize, Option<Cursor>) {
    let size = |text: &str| text.parse().ok().filter(|size| (1..=PAGE.1).contains(size));
    let size = children.value("pageSize", size, &format!("must be from 1 to {}", PAGE.1)).unwrap_or(PAGE.0);
    (size, children.value("pageToken", Cursor::decode, NO_TOKEN))
}

const NO_TOKEN: &str = "is not a token of this list";

async fn list(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let mut children = Children::of(asked.element);
    let subject = children.text("subject", SUBJECT).map(String::into_boxed_str);
    let (limit, cursor) = page(&mut children);
    let before = match cursor {
        None => None,
        Some(Cursor::Session(id)) => Some(SessionId::new(id)),
        Some(Cursor::Entry(_)) => {
            children.refuse("pageToken", NO_TOKEN);
            None
        }
    };
    children.done()?;
    let query = ListQuery { subject, active: None, kind: None, before, limit };
    let page = api.service.list(&asked.admitted.caller, &query).await?;
    let (mut next, mut last) = (page.next, None);
    xml.open("sessions");
    for session in &page.items {
        // At least one, however large: a page without any would lead nowhere.
        if let Some(last) = last
            && xml.len() > PAGE_BYTES
        {
            next = Some(last);
            break;
        }
        write_session(xml, session);
        last = Some(session.id);
    }
    xml.close("sessions");
    if let Some(next) = next {
        xml.plain("nextPageToken", Cursor::Session(next.uuid()).encode());
    }
    Ok(None)
}

async fn query_audit(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let caller = &asked.admitted.caller;
    let mut children = Children::of(asked.element);
    let (from, to) = (children.time("from"), children.time("to"));
    let subject = children.text("subject", SUBJECT);
    let session = children.value("sessionId", |text| text.parse::<SessionId>().ok(), "must be a session id");
    let (limit, cursor) = page(&mut children);
    let before = match cursor {
        None => None,
        Some(Cursor::Entry(index)) => Some(index),
        Some(Cursor::Session(_)) => {
            children.refuse("pageToken", NO_TOKEN);
            None
        }
    };
    children.done()?;
    // Recorded before anything is read: a reading that is not recorded does not happen. Only ids are facts for the leaf.
    let mut detail = caller.detail.clone();
    if let Some(session) = session {
        detail.insert("session".to_owned(), session.to_string());
    }
    let handle = match &subject {
        None => None,
        Some(subject) => {
            Some(api.archive.of(&caller.realm).subject_key(&caller.realm, subject).await.map_err(audit::problem)?)
        }
    };
    if let Some(Some(handle)) = handle {
        detail.insert("subject_key".to_owned(), handle.uuid().to_string());
    }
    let record = Record {
        action: Action::AuditRead,
        outcome: Outcome::Success,
        detail,
        facts: Default::default(),
        credential: None,
    };
    api.service.record(caller, record).await?;
    // The realm holds nothing on that subject.
    if handle == Some(None) {
        xml.raw("<events/>");
        return Ok(None);
    }
    let filter = EntryFilter { from, to, subject: handle.flatten(), session, ..EntryFilter::all(caller.realm.clone()) };
    let found = audit::find(api.archive.of(&caller.realm), &filter, before, limit).await?;
    let (mut next, mut last) = (found.next, None);
    xml.open("events");
    for (stored, leaf) in &found.entries {
        if let Some(last) = last
            && xml.len() > PAGE_BYTES
        {
            next = Some(last);
            break;
        }
        write_event(xml, stored.index, leaf, &stored.leaf)?;
        last = Some(stored.index.0);
    }
    xml.close("events");
    if let Some(next) = next {
        xml.plain("nextPageToken", Cursor::Entry(next).encode());
    }
    Ok(None)
}

async fn receipt(api: &SoapApi, asked: &Asked<'_, '_>, xml: &mut Xml) -> Result<Option<LeafIndex>, Fault> {
    let mut children = Children::of(asked.element);
    let index = children.value("leafIndex", |text| text.parse().ok().map(LeafIndex), "must be a leaf index");
    if index.is_none() {
        children.refuse("leafIndex", "is required");
    }
    children.done()?;
    let absent = || Problem::new(ProblemCode::NotFound, "the realm has no entry at this index");
    let index = index.ok_or_else(absent)?;
    match api.service.receipt(&asked.admitted.caller.realm, index).await {
        Ok(receipt) => xml.text("receiptText", &receipt.to_string()),
        Err(ServiceError::NotFound) => return Err(absent().into()),
        Err(failure) => return Err(failure.into()),
    };
    Ok(None)
}

/// Reads the attribute map as the text of a JSON object, `null` for those removed; `None` if neither is there. What it holds is
/// checked by the same readers that check REST's.
pub(crate) fn attribute_map(children: &mut Children<'_, '_>, removed: Vec<String>) -> Option<String> {
    let entries = children.list("attributeMap", "entry");
    if entries.is_none() && removed.is_empty() {
        return None;
    }
    let mut members: Vec<String> = removed.iter().map(|key| format!("{}:null", quoted(key))).collect();
    for (at, node) in entries.unwrap_or_default().into_iter().enumerate() {
        let mut entry = children.item(node, "attributeMap", "entry", at);
        let key = entry.verbatim("key");
        if key.is_none() {
            entry.refuse("key", "is required");
        }
        let value = match (entry.verbatim("value"), entry.verbatim("json")) {
            (Some(text), None) => quoted(&text),
            (None, Some(json)) => match serde_json::from_str::<&RawValue>(&json) {
                // JSON's grammar knows no number that is too large, but nothing could read it back.
                Ok(raw) if serde_json::from_str::<serde_json::Value>(&json).is_ok() => raw.get().to_owned(),
                Ok(_) | Err(_) => {
                    entry.refuse("json", "is not one JSON value, or holds a number that is too large");
                    String::from("null")
                }
            },
            (Some(_), Some(_)) | (None, None) => {
                entry.refuse("value", "is required, or json: one of the two");
                String::from("null")
            }
        };
        members.push(format!("{}:{value}", quoted(&key.unwrap_or_default())));
        children.finish(entry);
    }
    Some(format!("{{{}}}", members.join(",")))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl SoapApi {
    fn limits(&self, realm: &session_model::RealmName) -> session_model::Limits {
        self.service.policy(realm).map(|policy| policy.limits).unwrap_or_default()
    }

    /// Writes the answer to a change: with a receipt, where it has an entry.
    fn changed(&self, xml: &mut Xml, changed: &Happened) -> Option<LeafIndex> {
        if changed.replayed {
            (self.observer)(Observed::Replayed);
        }
        write_session(xml, &changed.session);
        if let Some(token) = changed.token.as_ref().map(Token::expose) {
            xml.plain("token", token);
        }
        let place = changed.place.as_ref()?;
        self.receipt(xml, &changed.session.realm, place);
        Some(place.index)
    }

    fn receipt(&self, xml: &mut Xml, realm: &session_model::RealmName, place: &Place) {
        xml.open("receipt").text("origin", self.origin.of(realm)).plain("leafIndex", place.index);
        xml.plain("leafHash", place.hash).plain("treeSize", place.tree_size).close("receipt");
    }
}

fn write_session(xml: &mut Xml, session: &Session) {
    let ended = session.ended();
    xml.open("session").plain("sessionId", session.id).optional("subject", session.subject.as_deref());
    xml.plain("kind", session.kind.name()).plain("state", if ended.is_some() { "ended" } else { "active" });
    xml.plain("version", session.version);
    write_attributes(xml, session.attributes.as_json());
    xml.plain("createdAt", millis(session.created_at)).plain("lastSeenAt", millis(session.last_seen_at));
    xml.plain("idleExpiresAt", millis(session.idle_expires_at())).plain("expiresAt", millis(session.expires_at));
    if let Some(address) = session.client.as_ref().and_then(|client| client.address) {
        xml.plain("clientAddress", address);
    }
    xml.optional("endReason", ended.map(|ended| ended.reason.name())).close("session");
}

/// Texts as they are, every other value as JSON. The attributes are checked JSON already.
fn write_attributes(xml: &mut Xml, json: &str) {
    xml.open("attributeMap");
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).unwrap_or_default();
    for (key, raw) in &members {
        xml.open("entry").text("key", key);
        match serde_json::from_str::<String>(raw.get()) {
            Ok(text) => xml.text("value", &text),
            Err(_) => xml.text("json", raw.get()),
        };
        xml.close("entry");
    }
    xml.close("attributeMap");
}

fn write_event(xml: &mut Xml, index: LeafIndex, leaf: &Leaf, bytes: &[u8]) -> Result<(), Fault> {
    // Words of the leaf are written as the leaf has them.
    let word = |value: serde_json::Result<serde_json::Value>| match value {
        Ok(serde_json::Value::String(word)) => Ok(word),
        Ok(_) | Err(_) => Err(Problem::new(ProblemCode::Internal, "an entry cannot be written")),
    };
    xml.open("event").plain("leafIndex", index).plain("time", millis(leaf.time));
    xml.text("action", &word(serde_json::to_value(leaf.action))?);
    xml.text("outcome", &word(serde_json::to_value(leaf.outcome))?);
    xml.text("actor", &leaf.actor.id).text("role", &word(serde_json::to_value(leaf.actor.role))?);
    xml.text("protocol", &word(serde_json::to_value(leaf.protocol))?).text("node", &leaf.node);
    if let Some(id) = leaf.session_id {
        xml.plain("sessionId", id);
    }
    if let Some(version) = leaf.version {
        xml.plain("version", version);
    }
    xml.optional("traceId", leaf.trace_id.as_deref());
    xml.plain("leafHash", leaf_hash(bytes)).plain("leaf", STANDARD.encode(bytes)).close("event");
    Ok(())
}
